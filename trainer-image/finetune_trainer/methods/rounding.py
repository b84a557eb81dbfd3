"""Chooses AdamW that rounds at random where the trained weights are in bf16."""

import logging
from typing import Any

import torch

from finetune_trainer.adamw import RoundingAdamW, can_round
from finetune_trainer.methods.lean import LeanTrainer

log = logging.getLogger(__name__)


class RoundingTrainer(LeanTrainer):
    """Mixed into a TRL trainer: small changes of weights in bf16 are not lost.

    Those are all weights of a model that is trained whole, what TRL trains on a quantised base, and
    the new head of a reward model.
    """

    def get_optimizer_cls_and_kwargs(self: Any, args: Any, model: Any = None) -> tuple[Any, Any]:
        """Return the optimizer and its options."""
        kind, options = super().get_optimizer_cls_and_kwargs(args, model)  # type: ignore[misc]
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        in_bf16 = [weight for weight in trained if weight.dtype is torch.bfloat16]
        if not in_bf16 or self.has_own_ways:
            return kind, options
        if kind is torch.optim.AdamW and options.get("fused") and any(map(can_round, in_bf16)):
            log.info("weights of bf16 are rounded at random")
            return RoundingAdamW, options
        log.warning(
            "%s may round weights of bf16 to the nearest: small changes are lost; AdamW on a GPU"
            " rounds at random",
            kind.__name__,
        )
        return kind, options
