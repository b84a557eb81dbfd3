"""Chooses where the output head's gradients are made."""

from typing import Any

from finetune_trainer.head import gradients_in_forward


class HeadTrainer:
    """Mixed into a TRL trainer whose loss is made of log-probabilities alone."""

    weighs_alike = False
    """Whether all of them have the same factor in it."""

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Go forward."""
        # With spread weights it was never tried on GPUs.
        if self.has_own_ways:
            return super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        with gradients_in_forward(weighs_alike=self.weighs_alike):
            return super().compute_loss(*args, **kwargs)  # type: ignore[misc]
