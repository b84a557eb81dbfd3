"""The spec of a FineTuneJob: what the user asks for."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Form, ObjectName, Rule, forbidden, rules
from finetune_api.methods import (
    Dpo,
    Ebft,
    Generation,
    Grpo,
    ImportanceSampling,
    Kto,
    Orpo,
    Reward,
    RewardFunction,
    Rollout,
)
from finetune_api.resources import Gpu, Resources, RunPolicy, Toleration, Workspace
from finetune_api.sources import Dataset, DatasetFormat, DatasetPart, Model
from finetune_api.training import Adapter, Checkpointing, Evaluation, Lora, Quantization, Training

__all__ = [
    "FORMATS",
    "FSDP",
    "ONLINE",
    "SHARDED",
    "TRAINING_FIELDS",
    "Adapter",
    "Checkpointing",
    "Dataset",
    "DatasetFormat",
    "DatasetPart",
    "Dpo",
    "Ebft",
    "Evaluation",
    "FineTuneJobSpec",
    "Generation",
    "Gpu",
    "Grpo",
    "ImportanceSampling",
    "Kto",
    "Lora",
    "Method",
    "Model",
    "Orpo",
    "Output",
    "Quantization",
    "Resources",
    "Reward",
    "RewardFunction",
    "Rollout",
    "RunPolicy",
    "StabilityPolicy",
    "Toleration",
    "Training",
    "Workspace",
]


class Method(StrEnum):
    """The fine-tuning method, by the name that users of TRL and Axolotl type."""

    SFT = "sft"
    DPO = "dpo"
    KTO = "kto"
    ORPO = "orpo"
    GRPO = "grpo"
    REWARD = "reward"
    EBFT = "ebft"


ONLINE: Final = (Method.GRPO, Method.EBFT)
"""Methods that train on the model's own answers to the prompts of the data."""

FSDP: Final = ("fsdp", "hsdp")
"""Strategies of PyTorch FSDP2: weights spread over all GPUs, or over those of each node."""

SHARDED: Final = (*FSDP, "zero2", "zero3")
"""Strategies that spread more than the batch over the GPUs."""

_PAIRS = (DatasetFormat.PREFERENCE,)
_DEMONSTRATIONS = (
    DatasetFormat.CHAT,
    DatasetFormat.INSTRUCTION,
    DatasetFormat.PROMPT_COMPLETION,
)

FORMATS: dict[Method, tuple[DatasetFormat, ...]] = {
    Method.SFT: (*_DEMONSTRATIONS, DatasetFormat.COMPLETION, DatasetFormat.TOKENIZED),
    Method.DPO: _PAIRS,
    # TRL splits a pair into a desirable and an undesirable example.
    Method.KTO: (DatasetFormat.UNPAIRED_PREFERENCE, *_PAIRS),
    Method.ORPO: _PAIRS,
    # An answer is at hand as the reference of a reward such as exact-match.
    Method.GRPO: (
        DatasetFormat.PROMPT,
        DatasetFormat.PROMPT_COMPLETION,
        DatasetFormat.INSTRUCTION,
    ),
    Method.REWARD: _PAIRS,
    Method.EBFT: _DEMONSTRATIONS,
}
"""The dataset formats that each method can train on."""


def _format_rule(method: Method, formats: tuple[DatasetFormat, ...]) -> Rule:
    allowed = ", ".join(f"'{known}'" for known in (DatasetFormat.AUTO, *formats))
    return Rule(
        f"self.method != '{method}' || (has(self.dataset.mixture)"
        f" ? self.dataset.mixture.all(part, part.format in [{allowed}])"
        f" : self.dataset.format in [{allowed}])",
        f"method {method} trains on the formats auto, {', '.join(formats)}",
        ".dataset.format",
    )


_ONLINE = f"self.method in {[method.value for method in ONLINE]}"
_BY_ONE_METHOD = [
    forbidden(
        f"self.method == '{method}'",
        f"{method} options are only for method {method}, found method {{self.method}}",
        f".{method}",
    )
    for method in (Method.DPO, Method.KTO, Method.ORPO, Method.REWARD, Method.EBFT)
]
_BY_ONLINE_METHODS = [
    forbidden(
        _ONLINE,
        f"{field} is only for methods grpo and ebft, found method {{self.method}}",
        f".{field}",
    )
    for field in ("grpo", "generation", "rollout")
]
_GROUP_SIZE = "(has(self.generation) ? self.generation.groupSize : 8)"
_REWARDS = (
    forbidden(
        "self.method == 'grpo'",
        "rewards are only for method grpo, found method {self.method}",
        ".rewards",
    ),
    Rule(
        "self.method != 'grpo' || has(self.rewards)",
        "method grpo needs at least one reward: a builtin, a function or a model",
        ".rewards",
        required=True,
    ),
)
_IS_SHARDED = f"self.resources.strategy in {list(SHARDED)}"
_STRATEGIES = (
    Rule(
        f"self.method != 'ebft' || !({_IS_SHARDED})",
        "strategy is {self.resources.strategy}, but method ebft reads hidden states of the whole"
        " model on each GPU: use ddp",
        ".resources.strategy",
    ),
    Rule(
        f"self.stability.policy != 'Rollback' || !({_IS_SHARDED})",
        "policy is Rollback, which cannot change the spread checkpoints of resources.strategy"
        " {self.resources.strategy}: use Halt or Warn, or strategy ddp",
        ".stability.policy",
    ),
    Rule(
        f"self.adapter.type != 'qlora' || self.resources.strategy == 'zero2' || !({_IS_SHARDED})",
        "strategy is {self.resources.strategy}, which cannot spread the quantised weights of"
        " adapter type qlora: use ddp or zero2, or adapter type lora",
        ".resources.strategy",
    ),
)
_BATCHES = (
    Rule(
        "type(self.training.microBatchSize) != int || type(self.resources.gpu.count) != int"
        " || self.resources.gpu.count < 1 || self.training.microBatchSize < 1"
        " || self.training.batchSize"
        " % (self.training.microBatchSize * self.resources.gpu.count) == 0",
        "batchSize {self.training.batchSize} must be a multiple of microBatchSize"
        " {self.training.microBatchSize} x resources.gpu.count {self.resources.gpu.count}",
        ".training.batchSize",
    ),
    Rule(
        f"!({_ONLINE}) || self.training.batchSize % {_GROUP_SIZE} == 0",
        "batchSize {self.training.batchSize} must be a multiple of generation.groupSize"
        f" {{{_GROUP_SIZE}}}: one step holds whole groups of completions",
        ".training.batchSize",
    ),
    Rule(
        "self.method != 'kto' || (has(self.kto) && self.kto.loss != 'kto')"
        " || (self.training.microBatchSize != 1 && self.training.batchSize != 1)",
        "the kto loss compares sequences with each other: microBatchSize and batchSize must be at"
        " least 2, or kto.loss apo_zero_unpaired",
        ".training.microBatchSize",
    ),
)
_COMBINATIONS = (
    Rule(
        "!self.training.packing || self.method == 'sft'",
        "packing is only for method sft, found method {self.method}",
        ".training.packing",
    ),
    Rule(
        "!self.training.packing || self.training.gradientCheckpointing != 'selective'",
        "gradientCheckpointing is selective, which keeps nothing of packed rows: use full, none or"
        " auto",
        ".training.gradientCheckpointing",
    ),
    Rule(
        "!has(self.training.assistantOnlyLoss) || !self.training.assistantOnlyLoss"
        " || self.method == 'sft'",
        "assistantOnlyLoss is only for method sft, found method {self.method}",
        ".training.assistantOnlyLoss",
    ),
    Rule(
        "self.training.precision != 'float8' || self.adapter.type == 'lora'",
        "float8 needs a frozen, unquantised base: adapter type lora, found {self.adapter.type}",
        ".training.precision",
    ),
    Rule(
        "self.training.precision != 'float8' || !has(self.adapter.lora) || !self.adapter.lora.dora",
        "float8 does not keep the weights as adapter.lora.dora needs them: use bf16, or no dora",
        ".training.precision",
    ),
    Rule(
        "self.training.precision != 'float8' || self.resources.strategy in ['auto', 'ddp']",
        "float8 weights cannot be spread: resources.strategy must be ddp or auto, found"
        " {self.resources.strategy}",
        ".training.precision",
    ),
    Rule(
        "self.training.precision != 'float8' || self.resources.gpu.count != 0",
        "float8 needs a GPU, but resources.gpu.count is 0",
        ".training.precision",
    ),
    Rule(
        "!has(self.training.evalEverySteps) || has(self.dataset.evalSplit)"
        " || self.dataset.evalFraction > 0.0",
        "evalEverySteps needs held-out data: give dataset.evalSplit or dataset.evalFraction",
        ".training.evalEverySteps",
    ),
    Rule(
        f"!({_ONLINE}) || self.dataset.tooLong != 'truncate'",
        "a prompt that is cut asks something else: with method {self.method} tooLong must be fail"
        " or drop",
        ".dataset.tooLong",
    ),
    forbidden(
        "self.method != 'reward'",
        "samplePrompts are for methods whose model writes, found method reward",
        ".evaluation.samplePrompts",
    ),
    Rule(
        "!has(self.rollout) || self.rollout.weightSync != 'lora' || self.adapter.type != 'full'",
        "weightSync lora needs an adapter, but adapter.type is full: use full or auto",
        ".rollout.weightSync",
    ),
    Rule(
        "!has(self.rollout) || self.rollout.weightSync != 'lora' || !has(self.adapter.lora)"
        " || !self.adapter.lora.dora",
        "vLLM cannot load an adapter with dora: use weightSync full or auto, or switch dora off",
        ".rollout.weightSync",
    ),
    Rule(
        "!self.output.merged || self.adapter.type != 'full'",
        "merged is only for adapter types lora and qlora: with type full the model is whole",
        ".output.merged",
    ),
)


class StabilityPolicy(ApiModel):
    """What happens when training becomes unstable."""

    policy: Literal["Warn", "Halt", "Rollback"] = "Warn"
    """Warn: report it; Halt: fail, and keep the last good checkpoint; Rollback: go back to the last
    good checkpoint, skip the bad data, lower the learning rate."""
    max_rollbacks: int = Field(default=2, ge=0, le=10)
    """Rollbacks after which the job fails."""
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1)
    """The learning rate is multiplied by this at each rollback."""


class Output(ApiModel):
    """Where the model goes."""

    claim: ObjectName
    """Existing PersistentVolumeClaim that receives the model."""
    path: (
        Annotated[
            str,
            Field(max_length=256),
            Form(
                r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*",
                "a relative folder such as team/model-1: letters, digits, '_', '-', '.' and '/'",
            ),
        ]
        | None
    ) = None
    """Folder in the claim. Unset: the job's name."""
    merged: bool = False
    """Also write the model with the adapter merged into its weights, in merged/. It is rounded to
    the number format of the model's files: in bf16 a small update loses part of itself."""


class FineTuneJobSpec(ApiModel):
    """What to train, on what, and where the model goes; everything else has a default."""

    model_config = rules(
        *_BY_ONE_METHOD,
        *_BY_ONLINE_METHODS,
        *_REWARDS,
        *[_format_rule(method, formats) for method, formats in FORMATS.items()],
        *_BATCHES,
        *_STRATEGIES,
        *_COMBINATIONS,
    )

    method: Method
    """sft, dpo, kto, orpo, grpo, reward or ebft."""
    model: Model
    """The model to start from."""
    dataset: Dataset
    """The data to train on."""
    adapter: Adapter = Adapter()
    """What is trained: a LoRA adapter, one on a quantised base, or all weights."""
    training: Training = Training()
    """Hyperparameters."""
    dpo: Dpo | None = None
    """Options of method dpo."""
    kto: Kto | None = None
    """Options of method kto."""
    orpo: Orpo | None = None
    """Options of method orpo."""
    reward: Reward | None = None
    """Options of method reward."""
    grpo: Grpo | None = None
    """Options of methods grpo and ebft."""
    ebft: Ebft | None = None
    """Options of method ebft."""
    rewards: list[RewardFunction] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Rewards of method grpo, added up by their weights."""
    generation: Generation | None = None
    """How completions are sampled (grpo, ebft)."""
    rollout: Rollout | None = None
    """Where completions are sampled (grpo, ebft)."""
    evaluation: Evaluation = Evaluation()
    """What is shown of the model before and after training."""
    resources: Resources = Resources()
    """Hardware; everything that is auto is planned."""
    run_policy: RunPolicy = RunPolicy()
    """When the job runs, how often it is tried and how long it is kept."""
    stability: StabilityPolicy = StabilityPolicy()
    """What happens when training becomes unstable."""
    output: Output
    """Where the model goes."""


TRAINING_FIELDS = tuple(
    str(field.alias) for name, field in FineTuneJobSpec.model_fields.items() if name != "run_policy"
)
"""Wire names of the spec's parts that are immutable once a plan has been made; runPolicy is not."""
