"""The sum of all parts."""

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Memory, Preparation
from finetune_operator.planning.calibration import Calibration, calibration_of
from finetune_operator.planning.memory.activations import fullest
from finetune_operator.planning.memory.candidate import Candidate, batch_of
from finetune_operator.planning.memory.rollout import writing
from finetune_operator.planning.memory.states import states
from finetune_operator.planning.quantity import GIB


def estimate(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> Memory:
    """Return the memory of one GPU in GiB; of the process, when the candidate has no GPU."""
    product = spec.resources.gpu.product
    calibration = calibration_of("cpu" if candidate.gpus == 0 else product)
    sizes = {name: size / GIB for name, size in held(spec, preparation, candidate).items()}
    sizes["slack"] = calibration.slack * sum(sizes.values())
    sizes["context"] = _context(calibration, candidate)
    rounded = {name: round(size, 2) for name, size in sizes.items()}
    return Memory(**rounded, total=round(sum(sizes.values()), 2))


def held(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> dict[str, float]:
    """Return the bytes that tensors fill when they fill most, by what they are."""
    model = preparation.model
    kept = states(spec, model, candidate)
    moment = fullest(spec, model, candidate, batch_of(spec, preparation, candidate), kept)
    # Completions are written between two steps, when only kept gradients are there.
    free = moment.total - kept.kept_gradients
    return {
        "weights": kept.weights,
        "quantization": kept.quantization,
        "adapter": kept.adapter,
        "gradients": moment.gradients,
        "optimizer": kept.optimizer,
        "activations": moment.activations,
        "logits": moment.logits,
        "reference": kept.reference,
        "rollout": writing(spec, preparation, candidate, free),
    }


def _context(calibration: Calibration, candidate: Candidate) -> float:
    return calibration.context + (calibration.collectives if candidate.gpus > 1 else 0.0)
