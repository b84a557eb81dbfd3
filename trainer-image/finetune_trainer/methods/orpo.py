"""Odds-ratio preference optimisation by TRL's ORPOTrainer, on pairs that preparation has made."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from finetune_api.methods import Orpo
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup

# TRL warns of what may change; it is pinned.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.utils import DPODataCollatorWithPadding

CONFIGURATION = ORPOConfig
"""Whose fields training.extra may name."""


class ResumableOrpoTrainer(ResumableTrainer, ORPOTrainer):
    """TRL's trainer with our checkpoints, on rows as preparation has made them."""

    def __init__(self, train_dataset: Dataset, eval_dataset: Dataset | None, **rest: Any) -> None:
        # It tokenises what it is given: that is nothing.
        nothing = train_dataset.select([])
        super().__init__(
            train_dataset=nothing, eval_dataset=None if eval_dataset is None else nothing, **rest
        )
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        # It is its own collator, made to read our rows.
        self.use_dpo_data_collator = True


@dataclass
class PairCollator(DPODataCollatorWithPadding):
    """Makes the batches of TRL's collator of rows with prompt_ids, chosen_ids and rejected_ids."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return both sides padded, and all attention for the count of tokens."""
        batch: dict[str, Any] = super().__call__([_sides(row) for row in features])
        masks = [batch["chosen_attention_mask"], batch["rejected_attention_mask"]]
        # The count needs input_ids beside it.
        attention = torch.cat([mask.flatten() for mask in masks])
        return batch | {"attention_mask": attention, "input_ids": attention}


def _sides(row: dict[str, Any]) -> dict[str, Any]:
    prompt = row["prompt_ids"]
    columns: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        completion = row[f"{side}_ids"]
        ids = prompt + completion
        columns |= {
            f"{side}_input_ids": ids,
            f"{side}_attention_mask": [1] * len(ids),
            f"{side}_labels": [-100] * len(prompt) + completion,
        }
    return columns


def build(setup: Setup) -> ResumableOrpoTrainer:
    """Return the trainer with its adapter in place."""
    options = setup.spec.orpo or Orpo()
    arguments = ORPOConfig(
        **setup.arguments(),
        max_length=setup.plan.max_length,
        beta=options.beta,
        remove_unused_columns=False,
    )
    return ResumableOrpoTrainer(
        model=setup.model,
        args=arguments,
        data_collator=PairCollator(pad_token_id=setup.tokenizer.pad_token_id),
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )
