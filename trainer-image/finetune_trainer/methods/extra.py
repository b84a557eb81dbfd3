"""training.extra: further fields of a method's TRL configuration, checked before a GPU is taken."""

import dataclasses
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure

OWNED = {
    "output_dir": "output.path",
    "max_steps": "training.maxSteps",
    "num_train_epochs": "training.epochs",
    "learning_rate": "training.learningRate",
    "lr_scheduler_type": "training.scheduler",
    "warmup_steps": "training.warmupRatio",
    "warmup_ratio": "training.warmupRatio",
    "weight_decay": "training.weightDecay",
    "max_grad_norm": "training.maxGradNorm",
    "per_device_train_batch_size": "training.microBatchSize",
    "per_device_eval_batch_size": "training.microBatchSize",
    "gradient_accumulation_steps": "training.batchSize",
    "auto_find_batch_size": "training.microBatchSize",
    "max_length": "training.maxLength",
    "truncation_mode": "dataset.tooLong",
    "packing": "training.packing",
    "eval_packing": "training.packing",
    "assistant_only_loss": "training.assistantOnlyLoss",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "gradient_checkpointing": "training.gradientCheckpointing",
    "gradient_checkpointing_kwargs": "training.gradientCheckpointing",
    "torch_compile": "training.compile",
    "seed": "training.seed",
    "save_strategy": "training.checkpoint",
    "save_steps": "training.checkpoint.everySteps",
    "save_total_limit": "training.checkpoint.keep",
    "save_only_model": "training.checkpoint",
    "enable_jit_checkpoint": "training.checkpoint",
    "load_best_model_at_end": "training.checkpoint",
    "resume_from_checkpoint": "training.checkpoint",
    "ignore_data_skip": "training.checkpoint",
    "eval_strategy": "training.evalEverySteps",
    "eval_steps": "training.evalEverySteps",
    "eval_on_start": "training.evalEverySteps",
    "logging_strategy": "training.logEverySteps",
    "logging_steps": "training.logEverySteps",
    "logging_nan_inf_filter": "stability.policy",
    "deepspeed": "resources.strategy",
    "fsdp": "resources.strategy",
    "fsdp_config": "resources.strategy",
    "parallelism_config": "resources.strategy",
    "accelerator_config": "resources.strategy",
    "use_cpu": "resources.gpu.count",
    "model_init_kwargs": "model and training.precision",
    "trust_remote_code": "model.trustRemoteCode",
    "chat_template_path": "model.chatTemplate",
    "eos_token": "model.chatTemplate",
    "pad_token": "model.chatTemplate",
    "dataset_text_field": "dataset.columns",
    "dataset_kwargs": "dataset",
    "dataset_num_proc": "resources.cpu",
    "shuffle_dataset": "training.seed",
    "report_to": "nothing: metrics are served at /metrics",
    "disable_tqdm": "nothing: progress is served at /progress",
    "push_to_hub": "output.claim",
    "hub_model_id": "output.claim",
    "hub_token": "output.claim",
    "hub_strategy": "output.claim",
    "ddp_find_unused_parameters": "nothing: every trained weight gets a gradient",
    "dataloader_pin_memory": "nothing: it follows from the device",
    "include_num_input_tokens_seen": "nothing: tokens are always counted",
    "beta": "the beta of the method's options",
    "loss_type": "the loss of the method's options",
    "loss_weights": "dpo.lossWeights",
    "label_smoothing": "dpo.labelSmoothing",
    "desirable_weight": "kto.desirableWeight",
    "undesirable_weight": "kto.undesirableWeight",
    "center_rewards_coefficient": "reward.centerRewardsCoefficient",
    "generate_during_eval": "evaluation.samplePrompts",
    "is_encoder_decoder": "model",
    "sync_ref_model": "nothing: the reference stays the model before training",
    "epsilon": "grpo.epsilon",
    "epsilon_high": "grpo.epsilonHigh",
    "num_iterations": "grpo.iterations",
    "scale_rewards": "grpo.scaleRewards",
    "mask_truncated_completions": "grpo.maskTruncatedCompletions",
    "reward_weights": "rewards[].weight",
    "remove_unused_columns": "nothing: rows have the columns that the method reads",
    "num_generations": "generation.groupSize",
    "generation_batch_size": "training.batchSize",
    "steps_per_generation": "training.batchSize",
    "max_completion_length": "generation.maxCompletionLength",
    "temperature": "generation.temperature",
    "top_p": "generation.topP",
    "top_k": "generation.topK",
    "use_vllm": "rollout.mode",
    "vllm_mode": "rollout.mode",
    "log_completions": "evaluation.samplePrompts",
    "do_train": "nothing: it always trains",
    "do_eval": "dataset.evalFraction",
    "do_predict": "evaluation.samplePrompts",
}
"""TRL fields that follow from the spec, and where the spec has them."""


_OWNED_BY = {
    "KTOConfig": {"train_sampling_strategy": "nothing: preparation puts the rows in random order"},
}
"""What is owned in the configuration of one method only."""


def check_extra(extra: dict[str, Any], configuration: type) -> None:
    """Raise JobFailure for a field that is unknown, owned by the spec, or that TRL refuses."""
    known = {field.name for field in dataclasses.fields(configuration)}
    owned = OWNED | _OWNED_BY.get(configuration.__name__, {})
    for name, value in extra.items():
        if name in owned:
            raise _failure(f"training.extra.{name} is set by the spec: use {owned[name]}.")
        if name not in known:
            near = get_close_matches(name, known - OWNED.keys(), n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it."
            raise _failure(
                f"training.extra.{name} is no field of TRL's {configuration.__name__}: {hint}"
            )
        _check_type(name, value, get_type_hints(configuration)[name])
    try:
        configuration(use_cpu=True, bf16=False, report_to="none", **extra)
    except (TypeError, ValueError) as error:
        raise _failure(f"training.extra: {' '.join(str(error).split())}") from error


def _check_type(name: str, value: Any, expected: Any) -> None:
    adapter = TypeAdapter(expected, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        kind = getattr(expected, "__name__", None)
        wanted = kind if kind and not hasattr(expected, "__args__") else str(expected)
        raise _failure(
            f"training.extra.{name} is {value!r}, expected {wanted.replace('typing.', '')}."
        ) from error


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.CONFIG_INVALID, message)
