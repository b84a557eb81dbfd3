"""Supervised fine-tuning by TRL's SFTTrainer, on token rows that preparation has made."""

from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.methods.head import HeadTrainer
from finetune_trainer.methods.resumable import ResumableTrainer
from finetune_trainer.methods.setup import Setup
from finetune_trainer.packing import PackedCollator, PackedTrainer, attention_for, pack

CONFIGURATION = SFTConfig
"""Whose fields training.extra may name."""


class ResumableSftTrainer(ResumableTrainer, HeadTrainer, SFTTrainer):
    """TRL's trainer with our checkpoints, and a held-out loss in which all tokens count alike."""

    weighs_alike = True

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; Trainer would average over micro-batches, however many tokens they have."""
        self._losses: list[torch.Tensor] = []
        output: Any = super().evaluation_loop(*args, **kwargs)
        total, tokens = self.accelerator.reduce(torch.stack(self._losses).sum(0)).tolist()
        loss = next(name for name in output.metrics if name.endswith("_loss"))
        output.metrics[loss] = total / max(1, tokens)
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one micro-batch."""
        labels = inputs["labels"]
        labels[self._own_rows(len(labels)) :] = -100
        result = super().prediction_step(model, inputs, *args, **kwargs)
        tokens = (labels[:, 1:] != -100).sum().to(self.args.device)
        self._losses.append(torch.stack([result[0].double() * tokens, tokens.double()]))
        return result

    def _own_rows(self, size: int) -> int:
        """Return how many rows of the micro-batch no process has seen.

        Accelerate fills the last ones up with the first rows, so that all processes go as far.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return size
        left: int = state.remainder - self.args.process_index * size
        return min(size, max(0, left))


class PackedSftTrainer(PackedTrainer, ResumableSftTrainer):
    """The same for packed rows."""


def build(setup: Setup) -> ResumableSftTrainer:
    """Return the trainer with its adapter in place."""
    packing, length = setup.spec.training.packing, setup.plan.max_length
    is_ready = packing or setup.longest <= length
    # Rows are tokenised, labelled and cut by preparation; TRL only cuts them when the plan is for
    # shorter rows.
    arguments = SFTConfig(
        **setup.arguments(),
        max_length=length,
        dataset_kwargs={"skip_prepare_dataset": is_ready},
    )
    train, held_out = setup.train, setup.held_out
    if packing:
        train = pack(train, length, arguments.packing_strategy)
        held_out = held_out and pack(held_out, length, arguments.packing_strategy)
    if is_ready:
        # Else each row becomes lists of Python's numbers first.
        train = train.with_format("numpy")
    trainer = (PackedSftTrainer if packing else ResumableSftTrainer)(
        model=setup.model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=setup.tokenizer,
        peft_config=setup.adapter,
    )
    if isinstance(trainer, PackedSftTrainer):
        trainer.data_collator = PackedCollator(length, setup.tokenizer.pad_token_id)
        trainer.attention = attention_for(setup.model, cuda=setup.device.cuda)
    return trainer
