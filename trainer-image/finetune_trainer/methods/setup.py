"""What every method's trainer is put together from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl.models.selective_activation_checkpointing import (
    enable_selective_activation_checkpointing,
)

from finetune_api.spec import SHARDED, FineTuneJobSpec, Method
from finetune_api.status import Plan
from finetune_api.trainer import TrainerConfig
from finetune_trainer import distributed, float8
from finetune_trainer.adapter import lora_config
from finetune_trainer.device import Device
from finetune_trainer.lora import add_within_products
from finetune_trainer.model import decoder_layers
from finetune_trainer.paths import Paths

log = logging.getLogger(__name__)

_ADAPTER_RATES: Mapping[Method, float] = {
    Method.SFT: 2e-4,
    Method.REWARD: 2e-4,
    Method.DPO: 2e-5,
    Method.KTO: 2e-5,
    Method.ORPO: 2e-5,
    Method.GRPO: 1e-5,
    Method.EBFT: 1e-5,
}
"""Peak learning rates of adapters; full fine-tuning takes a tenth."""

_RECOMPILE_LIMIT = 64


@dataclass(frozen=True)
class Setup:
    """One process's model and data, and what the spec and the plan say of training."""

    config: TrainerConfig
    plan: Plan
    device: Device
    paths: Paths
    model: PreTrainedModel
    """The model as loaded, without a new adapter."""
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    """Rows as preparation made them for the method."""
    held_out: Dataset | None
    longest: int
    """Tokens of the longest row."""

    @property
    def spec(self) -> FineTuneJobSpec:
        """The job's spec."""
        return self.config.spec

    @property
    def adapter(self) -> LoraConfig | None:
        """The adapter to make; None when all weights are trained, or one is continued."""
        if hasattr(self.model, "peft_config"):
            return None
        return lora_config(self.spec.adapter, self.spec.method, self.model)

    def arguments(self) -> dict[str, Any]:
        """Return the fields that the configurations of all methods share."""
        spec, plan, device = self.spec, self.plan, self.device
        training = spec.training
        evaluates = self.held_out is not None and training.eval_every_steps is not None
        return {
            "output_dir": str(self.paths.checkpoints),
            "max_steps": training.max_steps or -1,
            "num_train_epochs": training.epochs,
            "learning_rate": learning_rate(spec),
            "lr_scheduler_type": training.scheduler,
            # From 1 on Transformers counts steps.
            "warmup_steps": min(training.warmup_ratio, 0.9999),
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "per_device_train_batch_size": plan.micro_batch_size,
            "per_device_eval_batch_size": plan.micro_batch_size,
            "gradient_accumulation_steps": plan.gradient_accumulation_steps,
            "bf16": device.bf16,
            "use_cpu": not device.cuda,
            "dataloader_pin_memory": device.cuda,
            "gradient_checkpointing": plan.gradient_checkpointing != "none",
            "save_strategy": "steps",
            "save_steps": training.checkpoint.every_steps,
            "eval_strategy": "steps" if evaluates else "no",
            "eval_steps": training.eval_every_steps if evaluates else None,
            "logging_steps": training.log_every_steps,
            "logging_nan_inf_filter": False,
            "include_num_input_tokens_seen": "non_padding",
            "seed": training.seed,
            "report_to": "none",
            "disable_tqdm": True,
            # Every weight that is trained is used; looking for others costs time.
            "ddp_find_unused_parameters": False,
            **distributed.arguments(plan, spec, device),
            **training.extra,
        }

    def prepare(self) -> None:
        """Make the model ready for what the trainer will ask of it; before there is a trainer."""
        if self.plan.gradient_checkpointing == "selective":
            # TRL's own switch for it is in its SFTTrainer only.
            enable_selective_activation_checkpointing(self.model)

    def finish(self, trainer: Any) -> Any:
        """Return the trainer without what prints, and with its layers compiled if so planned."""
        # It prints what the metrics log has.
        trainer.remove_callback(PrinterCallback)
        if self.device.bf16:
            _keep_activations(trainer.model)
        if self.plan.precision == "float8":
            float8.convert(trainer.model)
        if self.plan.compile:
            # With spread weights it was never tried on GPUs.
            if self.plan.strategy not in SHARDED:
                add_within_products(trainer.model)
            _compile_layers(trainer.model)
        return trainer


def learning_rate(spec: FineTuneJobSpec) -> float:
    """Return the peak learning rate."""
    default = _ADAPTER_RATES[spec.method] / (10 if spec.adapter.type == "full" else 1)
    return spec.training.learning_rate or default


def _keep_activations(model: Any) -> None:
    """Keep activations in bf16 where the adapter's weights are float32.

    PEFT would cast each of them for the adapter; under autocast that costs memory and time only.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # type: ignore[attr-defined]


def _compile_layers(model: Any) -> None:
    """Compile each decoder layer: compiling the whole model takes minutes."""
    layers = decoder_layers(model)
    if layers is None:
        log.warning("layers are not compiled: the model does not say which they are")
        return
    compiler: Any = torch._dynamo.config  # noqa: SLF001 - it is documented so
    # What the compiler cannot take runs as it is, and torch warns.
    compiler.suppress_errors = True
    # Rows of other lengths, masks, references and evaluations are compiled anew, some 20 times in
    # all; beyond the usual 8 all layers would run as they are.
    compiler.recompile_limit = _RECOMPILE_LIMIT
    log.info("layers are compiled: the first step takes longer")
    for layer in layers:
        layer.compile()
