"""Supervised fine-tuning by TRL's SFTTrainer, on token rows that preparation has made."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer.adapter import lora_config
from finetune_trainer.device import Device
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.paths import Paths

CONFIGURATION = SFTConfig
"""Whose fields training.extra may name."""


class ResumableSftTrainer(ResumableTrainer, SFTTrainer):
    """TRL's trainer with our checkpoints."""


def check_extra_values(extra: dict[str, Any]) -> None:
    """Raise JobFailure when TRL refuses the value of a field."""
    try:
        SFTConfig(use_cpu=True, bf16=False, report_to="none", **extra)
    except (TypeError, ValueError) as error:
        raise JobFailure(
            Reason.CONFIG_INVALID, f"training.extra: {' '.join(str(error).split())}"
        ) from error


def learning_rate(spec: FineTuneJobSpec) -> float:
    """Return the peak learning rate; adapters take ten times that of full fine-tuning."""
    default = 2e-5 if spec.adapter.type == "full" else 2e-4
    return spec.training.learning_rate or default


def arguments(
    spec: FineTuneJobSpec, plan: Plan, device: Device, paths: Paths, longest: int, *, held_out: bool
) -> SFTConfig:
    """Return TRL's configuration; longest is the longest row of the data in tokens."""
    training = spec.training
    evaluates = held_out and training.eval_every_steps is not None
    # Rows are tokenised, labelled and cut by preparation; TRL only packs them, or cuts them when
    # the plan is for shorter rows.
    prepared = not training.packing and longest <= plan.max_length
    return SFTConfig(
        output_dir=str(paths.checkpoints),
        max_steps=training.max_steps or -1,
        num_train_epochs=training.epochs,
        learning_rate=learning_rate(spec),
        lr_scheduler_type=training.scheduler,
        # From 1 on Transformers counts steps.
        warmup_steps=min(training.warmup_ratio, 0.9999),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        max_length=plan.max_length,
        packing=training.packing,
        dataset_kwargs={"skip_prepare_dataset": prepared},
        bf16=device.bf16,
        use_cpu=not device.cuda,
        dataloader_pin_memory=device.cuda,
        gradient_checkpointing=plan.gradient_checkpointing != "none",
        gradient_checkpointing_kwargs={"selective": True}
        if plan.gradient_checkpointing == "selective"
        else None,
        save_strategy="steps",
        save_steps=training.checkpoint.every_steps,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=training.eval_every_steps if evaluates else None,
        logging_steps=training.log_every_steps,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        seed=training.seed,
        report_to="none",
        disable_tqdm=True,
        # Every weight that is trained is used; looking for others costs time.
        ddp_find_unused_parameters=False,
        **training.extra,
    )


def build_trainer(
    config: TrainerConfig,
    arguments_: SFTConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: tuple[Dataset, Dataset | None],
) -> ResumableSftTrainer:
    """Return the trainer with its adapter in place; rows are the training and held-out ones."""
    train, held_out = rows
    trainer = ResumableSftTrainer(
        model=model,
        args=arguments_,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=lora_config(config.spec.adapter),
    )
    # It prints what the metrics log has.
    trainer.remove_callback(PrinterCallback)
    if config.plan is not None and config.plan.compile:
        _compile_layers(trainer.model)
    return trainer


def _compile_layers(model: Any) -> None:
    """Compile each decoder layer: compiling the whole model takes minutes."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.get_decoder().layers:
        layer.compile()
