"""Direct preference optimisation by TRL's DPOTrainer, on pairs that preparation has made."""

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from finetune_api.methods import Dpo
from finetune_trainer.methods.head import HeadTrainer
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup

CONFIGURATION = DPOConfig
"""Whose fields training.extra may name."""


class ResumableDpoTrainer(ResumableTrainer, HeadTrainer, DPOTrainer):
    """TRL's trainer with our checkpoints, on rows as it would have made them itself."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def build(setup: Setup) -> ResumableDpoTrainer:
    """Return the trainer with its adapter in place.

    The reference is the model without its adapter; when all weights are trained, TRL loads it a
    second time.
    """
    options = setup.spec.dpo or Dpo()
    arguments = DPOConfig(
        **setup.arguments(),
        max_length=setup.plan.max_length,
        beta=options.beta,
        loss_type=list(options.losses),
        loss_weights=options.loss_weights,
        label_smoothing=options.label_smoothing,
        trust_remote_code=setup.spec.model.trust_remote_code,
    )
    return ResumableDpoTrainer(
        model=setup.model,
        args=arguments,
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )
