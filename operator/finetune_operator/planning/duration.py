"""How many GPU-hours training takes, by speeds that were measured."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import ModelFacts, Plan, Preparation
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.calibration import calibration_of

_FARTHEST: Final = 4.0
"""Models that take more times the arithmetic of a measured one, or less, are too unlike it."""


def expected_gpu_hours(spec: FineTuneJobSpec, preparation: Preparation, plan: Plan) -> float | None:
    """Return the GPU-hours of the training steps; None where no like run's speed was measured.

    Like are runs on the same GPU product (tokensPerSecond in its calibration file, of one GPU) with
    the same kind of adapter, checkpointing and compilation; of those the one whose model is
    nearest. Speed goes by the arithmetic of a token. Padding, start, evaluation, export and
    communication between GPUs come on top. Only for sft: other methods count other tokens than
    their data has.
    """
    if spec.method is not Method.SFT:
        return None
    needed = _arithmetic(preparation.model, spec.adapter.type, preparation.dataset.mean_tokens)
    speeds = {ratio: speed for ratio, speed in _alike(spec, plan, needed) if ratio <= _FARTHEST}
    if not speeds:
        return None
    return _tokens(spec, preparation, plan) / speeds[min(speeds)] / 3600


def _alike(spec: FineTuneJobSpec, plan: Plan, needed: float) -> Iterator[tuple[float, float]]:
    """Yield how far each measured run is from the job, and the speed of the job by it."""
    product = plan.gpu_product or ""
    calibration = calibration_of(product)
    if product not in calibration.products or not plan.gpus:
        return
    for run in calibration.runs:
        known = facts_of_name(run["model"])
        if "tokensPerSecond" in run and known is not None and _fits(run, spec, plan):
            measured = _arithmetic(known[1], run["adapter"], run["length"])
            speed = run["tokensPerSecond"] * measured / needed
            yield max(needed / measured, measured / needed), speed


def _fits(run: Mapping[str, Any], spec: FineTuneJobSpec, plan: Plan) -> bool:
    same = {
        "method": spec.method.value,
        "adapter": spec.adapter.type,
        "checkpointing": plan.gradient_checkpointing,
        "compiled": plan.compile,
        "casts": False,
    }
    return same.items() <= run.items()


def _arithmetic(model: ModelFacts, adapter: str, length: float) -> float:
    """Return the FLOPs of training on one token in a row of a length, attention being causal."""
    embedding = 0 if model.tied_embeddings else model.vocabulary * model.hidden_size
    per_weight = 6 if adapter == "full" else 4
    attended = model.layers * model.heads * model.head_dim * length
    return per_weight * (model.parameters - embedding) + 6 * attended


def _tokens(spec: FineTuneJobSpec, preparation: Preparation, plan: Plan) -> float:
    training, dataset = spec.training, preparation.dataset
    if training.max_steps is None:
        return training.epochs * dataset.tokens
    row = plan.max_length if training.packing else dataset.mean_tokens
    return training.max_steps * training.batch_size * row
