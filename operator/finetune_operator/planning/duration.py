"""How many GPU-hours training takes: by speeds that were measured, else by its arithmetic."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from finetune_api.flops import flops_per_token, forward_flops, multiplied_weights
from finetune_api.lengths import PADDED_TOGETHER
from finetune_api.spec import ONLINE, FineTuneJobSpec, Generation, Grpo, Kto, Method
from finetune_api.status import ModelFacts, Plan, Preparation
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.calibration import calibration_of
from finetune_operator.planning.memory.candidate import PAIRED
from finetune_operator.planning.products import PRODUCTS

REACHED: Final = 0.4
"""Share of a GPU's bf16 peak that training is taken to come to where nothing was measured."""

_FARTHEST: Final = 4.0
"""Models that take more times the arithmetic of a measured one, or less, are too unlike it."""

_USUAL: Final[Mapping[str, Any]] = {"precision": "bf16", "packed": False}
"""What a run was where its row does not say."""


@dataclass(frozen=True)
class Expected:
    """What the training steps should take."""

    gpu_hours: float
    basis: Literal["Measured", "Arithmetic"]
    """Measured: the speed of a like run on this GPU product; Arithmetic: REACHED of its peak."""


def expected_time(spec: FineTuneJobSpec, preparation: Preparation, plan: Plan) -> Expected | None:
    """Return the GPU-hours of the training steps; None where nothing tells them.

    Like are runs on the same GPU product (tokensPerSecond in its calibration file, of one GPU) of
    the same method with the same kind of adapter, checkpointing, number format and compilation, and
    of mixtures of experts for mixtures; of those the one whose model is nearest. Speed goes by the
    arithmetic of a token; padding is tokens, too. Start, evaluation, export and communication
    between GPUs come on top. Methods that write completions do that for most of the time, so that
    there is none for them, nor by arithmetic for GPUs that are not known and for float32.
    """
    if spec.method in ONLINE or not plan.gpus:
        return None
    length = _attended_tokens(spec, preparation, plan.max_length, plan.micro_batch_size)
    checkpointing = plan.gradient_checkpointing
    needed = _flops_of_token(spec, preparation.model, length, checkpointing)
    tokens = _training_tokens(spec, preparation, plan.max_length, length)
    nearest = min(_alike(spec, plan, preparation.model, length, needed), default=None)
    if nearest is not None and nearest[0] <= _FARTHEST:
        return Expected(tokens / nearest[1] / 3600, "Measured")
    product = PRODUCTS.get(plan.gpu_product or "")
    if product is None or product.teraflops is None or plan.precision == "float32":
        return None
    return Expected(tokens * needed / (REACHED * product.teraflops * 1e12) / 3600, "Arithmetic")


def training_flops(
    spec: FineTuneJobSpec, preparation: Preparation, max_length: int, checkpointing: str
) -> float:
    """Return the FLOPs of all training steps, with what checkpointing computes again; padding is
    left out.
    """
    length = _attended_tokens(spec, preparation, max_length)
    token = _flops_of_token(spec, preparation.model, length, checkpointing)
    return _training_tokens(spec, preparation, max_length, length) * token


def _alike(
    spec: FineTuneJobSpec, plan: Plan, model: ModelFacts, row: float, needed: float
) -> Iterator[tuple[float, float]]:
    """Yield how far each measured run is from the job, and the speed of the job by it."""
    product = plan.gpu_product or ""
    calibration = calibration_of(product)
    if product not in calibration.products:
        return
    for run in calibration.runs:
        known = facts_of_name(run["model"])
        if "tokensPerSecond" not in run or known is None or not _fits(run, spec, plan):
            continue
        if (known[1].experts is None) == (model.experts is None):
            # Of packed rows it is not told how long their documents were: as long as the job's.
            length = row if spec.training.packing else run["length"]
            measured = _flops_of_token(spec, known[1], length, run["checkpointing"])
            speed = run["tokensPerSecond"] * measured / needed
            yield max(needed / measured, measured / needed), speed


def _fits(run: Mapping[str, Any], spec: FineTuneJobSpec, plan: Plan) -> bool:
    same = {
        "method": spec.method.value,
        "adapter": spec.adapter.type,
        "checkpointing": plan.gradient_checkpointing,
        "compiled": plan.compile,
        "precision": plan.precision,
        "packed": spec.training.packing,
    }
    return same.items() <= {**_USUAL, **run}.items()


def _flops_of_token(
    spec: FineTuneJobSpec, model: ModelFacts, length: float, checkpointing: str
) -> float:
    """Return the FLOPs that a GPU computes for one token of a model, in a row of a length.

    Beside training that are further forward passes: of the reference (dpo, kto), of policy and
    reference on the mismatched pairs of the kto loss (arXiv 2402.01306, section 4.1), and of what
    checkpointing computes again.
    """
    compares = (spec.kto or Kto()).loss == "kto"
    passes = {Method.DPO: 1, Method.KTO: 3 if compares else 1}.get(spec.method, 0)
    weights = multiplied_weights(model, has_head=spec.method is not Method.REWARD)
    trained = flops_per_token(model, weights, length, full=spec.adapter.type == "full")
    return (
        trained
        + passes * forward_flops(model, weights, length)
        + again_flops(model, weights, length, checkpointing)
    )


def again_flops(model: ModelFacts, weights: int, length: float, checkpointing: str) -> float:
    """Return the FLOPs of what checkpointing computes again; the selective kind keeps attention."""
    if checkpointing == "none":
        return 0.0
    return forward_flops(model, weights, length if checkpointing == "full" else 0)


def _training_tokens(
    spec: FineTuneJobSpec, preparation: Preparation, max_length: int, row: float
) -> float:
    """Return the tokens of all steps, of both sequences of a pair, with rows of so many unless they
    are packed.
    """
    training, dataset = spec.training, preparation.dataset
    if training.packing:
        row = max_length
    if training.max_steps is not None:
        tokens = training.max_steps * training.batch_size * row
    elif training.packing:
        tokens = training.epochs * dataset.tokens
    elif spec.method in ONLINE:
        # Each prompt has a group of completions, each of which is trained on several times.
        written = dataset.rows * (spec.generation or Generation()).group_size
        tokens = training.epochs * written * (spec.grpo or Grpo()).iterations * row
    else:
        tokens = training.epochs * dataset.rows * row
    return tokens * (2 if spec.method in PAIRED else 1)


def _attended_tokens(
    spec: FineTuneJobSpec, preparation: Preparation, max_length: int, micro_batch_size: int = 1
) -> float:
    """Return the tokens of a sequence in the mean, of which packed rows hold several; others are
    padded to the longest of a micro-batch, and completions are as long as they may be.
    """
    dataset = preparation.dataset
    tokens = dataset.mean_tokens
    if not spec.training.packing:
        # Preparations of older versions have none; of other sizes the next smaller one counts.
        for together, padded in zip(PADDED_TOGETHER, dataset.padded_tokens, strict=False):
            tokens = padded if together <= micro_batch_size else tokens
    written = 0
    if spec.method in ONLINE:
        written = (spec.generation or Generation()).max_completion_length
    return min(tokens + written, max_length)
