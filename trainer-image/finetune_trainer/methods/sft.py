"""Supervised fine-tuning by TRL's SFTTrainer, on token rows that preparation has made."""

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup

CONFIGURATION = SFTConfig
"""Whose fields training.extra may name."""


class ResumableSftTrainer(ResumableTrainer, SFTTrainer):
    """TRL's trainer with our checkpoints."""


def build(setup: Setup) -> ResumableSftTrainer:
    """Return the trainer with its adapter in place."""
    packing = setup.spec.training.packing
    # Rows are tokenised, labelled and cut by preparation; TRL only packs them, or cuts them when
    # the plan is for shorter rows.
    prepared = not packing and setup.longest <= setup.plan.max_length
    arguments = SFTConfig(
        **setup.arguments(),
        max_length=setup.plan.max_length,
        packing=packing,
        dataset_kwargs={"skip_prepare_dataset": prepared},
    )
    return ResumableSftTrainer(
        model=setup.model,
        args=arguments,
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )
