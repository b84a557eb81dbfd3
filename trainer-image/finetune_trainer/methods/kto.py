"""Kahneman-Tversky optimisation by TRL's KTOTrainer, on rows that preparation has made."""

from typing import Any, cast

from datasets import Dataset
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from finetune_api.methods import Kto
from finetune_trainer.methods.head import HeadTrainer
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup

CONFIGURATION = KTOConfig
"""Whose fields training.extra may name."""


class ResumableKtoTrainer(ResumableTrainer, HeadTrainer, KTOTrainer):
    """TRL's trainer with our checkpoints, on rows as it would have made them itself."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


class MismatchingCollator(DataCollatorForUnpairedPreference):
    """Gives each prompt the completion of its neighbour in the batch too.

    The divergence from the reference is estimated on such pairs (arXiv 2402.01306, section 4.1).
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch."""
        neighbours = [examples[-1], *examples[:-1]]
        pairs = zip(examples, neighbours, strict=True)
        batch: dict[str, Any] = super().torch_call(
            [example | {"KL_completion_ids": other["completion_ids"]} for example, other in pairs]
        )
        return batch


def build(setup: Setup) -> ResumableKtoTrainer:
    """Return the trainer with its adapter in place; the reference is as for DPO."""
    options = setup.spec.kto or Kto()
    arguments = KTOConfig(
        **setup.arguments(),
        max_length=setup.plan.max_length,
        beta=options.beta,
        loss_type=options.loss,
        desirable_weight=options.desirable_weight,
        undesirable_weight=options.undesirable_weight,
        trust_remote_code=setup.spec.model.trust_remote_code,
    )
    collator = MismatchingCollator if options.loss == "kto" else DataCollatorForUnpairedPreference
    return ResumableKtoTrainer(
        model=setup.model,
        args=arguments,
        data_collator=collator(
            pad_token_id=setup.tokenizer.pad_token_id,
            max_length=arguments.max_length,
            pad_to_multiple_of=cast("int | None", arguments.pad_to_multiple_of),
        ),
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )
