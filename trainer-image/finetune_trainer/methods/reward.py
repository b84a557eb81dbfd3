"""A reward model by TRL's RewardTrainer, on pairs that preparation has made."""

from typing import Any, cast

from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from finetune_api.methods import Reward
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup

CONFIGURATION = RewardConfig
"""Whose fields training.extra may name."""


class ResumableRewardTrainer(ResumableTrainer, RewardTrainer):
    """TRL's trainer with our checkpoints."""


class PairCollator(DataCollatorForPreference):
    """Puts the prompt before both completions: rewards are given to whole sequences."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch, the better sequences first."""
        sides = ("chosen_ids", "rejected_ids")
        batch: dict[str, Any] = super().torch_call(
            [{side: row["prompt_ids"] + row[side] for side in sides} for row in examples]
        )
        return batch


def build(setup: Setup) -> ResumableRewardTrainer:
    """Return the trainer with its adapter in place, and a new head that is trained whole."""
    options = setup.spec.reward or Reward()
    arguments = RewardConfig(
        **setup.arguments(),
        # Preparation has cut or left out what is longer.
        max_length=None,
        center_rewards_coefficient=options.center_rewards_coefficient,
        remove_unused_columns=False,
    )
    trainer: Any = ResumableRewardTrainer(
        model=setup.model,
        args=arguments,
        data_collator=PairCollator(
            pad_token_id=setup.tokenizer.pad_token_id,
            pad_to_multiple_of=cast("int | None", arguments.pad_to_multiple_of),
        ),
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )
    # TRL makes what is trained on a quantised base bfloat16; the head must be as what it reads.
    for name, weights in trainer.model.named_parameters():
        if ".score." in name:
            weights.data = weights.data.to(setup.device.dtype)
    return cast("ResumableRewardTrainer", trainer)
