"""How many GPU-hours training takes, by speeds that were measured."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_api import flops
from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import ModelFacts, Plan, Preparation
from finetune_operator.planning.architecture import FAMILIES, facts_of_name
from finetune_operator.planning.calibration import calibration_of
from finetune_operator.planning.memory.layers import passed_width

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
    needed = flops_per_token(preparation.model, spec.adapter.type, preparation.dataset.mean_tokens)
    speeds = {ratio: speed for ratio, speed in _alike(spec, plan, needed) if ratio <= _FARTHEST}
    if not speeds:
        return None
    return training_tokens(spec, preparation, plan.max_length) / speeds[min(speeds)] / 3600


def _alike(spec: FineTuneJobSpec, plan: Plan, needed: float) -> Iterator[tuple[float, float]]:
    """Yield how far each measured run is from the job, and the speed of the job by it."""
    product = plan.gpu_product or ""
    calibration = calibration_of(product)
    if product not in calibration.products or not plan.gpus:
        return
    for run in calibration.runs:
        known = facts_of_name(run["model"])
        if "tokensPerSecond" in run and known is not None and _fits(run, spec, plan):
            measured = flops_per_token(known[1], run["adapter"], run["length"])
            speed = run["tokensPerSecond"] * measured / needed
            yield max(needed / measured, measured / needed), speed


def _fits(run: Mapping[str, Any], spec: FineTuneJobSpec, plan: Plan) -> bool:
    same = {
        "method": spec.method.value,
        "adapter": spec.adapter.type,
        "checkpointing": plan.gradient_checkpointing,
        "compiled": plan.compile,
    }
    return same.items() <= run.items()


def flops_per_token(model: ModelFacts, adapter: str, length: float) -> float:
    """Return the FLOPs of training on one token in a row of a length."""
    return flops.flops_per_token(model, multiplied_weights(model), length, full=adapter == "full")


def multiplied_weights(model: ModelFacts) -> int:
    """Return the weights that a token is multiplied by; an embedding only looks rows up.

    Of a mixture of experts that are the experts that it passes through.
    """
    embedding = model.vocabulary * model.hidden_size
    family = FAMILIES.get(model.model_type)
    if family is None or not family.sparse:
        return model.parameters - (0 if model.tied_embeddings else embedding)
    attention = 2 * model.hidden_size * model.head_dim * (model.heads + model.kv_heads)
    feed_forward = 3 * model.hidden_size * passed_width(model)
    return model.layers * (attention + feed_forward) + embedding


def training_tokens(spec: FineTuneJobSpec, preparation: Preparation, max_length: int) -> float:
    """Return the tokens of all steps, with packed rows filled to max_length."""
    training, dataset = spec.training, preparation.dataset
    if training.max_steps is None:
        return training.epochs * dataset.tokens
    row = max_length if training.packing else min(dataset.mean_tokens, max_length)
    return training.max_steps * training.batch_size * row
