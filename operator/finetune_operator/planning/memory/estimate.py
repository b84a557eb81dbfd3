"""The sum of all parts."""

from finetune_api.spec import SHARDED, FineTuneJobSpec, Method
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
    tensors = sum(sizes.values()) + calibration.workspace
    share = calibration.slack_in_pieces if in_pieces(spec, candidate) else calibration.slack
    sizes["slack"] = calibration.workspace + share * tensors
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


def in_pieces(spec: FineTuneJobSpec, candidate: Candidate) -> bool:
    """Tell whether much of what is freed is too small for what comes next.

    So it is where ORPO has logits of all tokens, where the embedding's gradient comes last and no
    head's was there before, where compiled layers have weights, or rows, in a smaller format beside
    them, and where layers that are not compiled run again. It is assumed where layers are gathered
    one by one.
    """
    trains_embedding = spec.method is Method.REWARD and spec.adapter.type == "full"
    if spec.method is Method.ORPO or trains_embedding or candidate.strategy in SHARDED:
        return True
    if candidate.compile:
        return spec.adapter.type == "qlora" or candidate.precision == "float8"
    return candidate.checkpointing != "none"


def _context(calibration: Calibration, candidate: Candidate) -> float:
    return calibration.context + (calibration.collectives if candidate.gpus > 1 else 0.0)
