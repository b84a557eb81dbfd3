"""Tells the step's clock which part of a step Trainer is at."""

from typing import Any

from finetune_trainer.callbacks.timing import StepClock


class TimedTrainer:
    """Mixed into a TRL trainer: what it does in a step is timed."""

    clock = StepClock()
    """Stands still until there is the run's own."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Read, collate and count the micro-batches of one step."""
        with self.clock.part("data"):
            return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("data"):
            return super()._prepare_inputs(*args, **kwargs)  # type: ignore[misc]

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        # Called by the trainers that have it: those that learn from what the model writes.
        with self.clock.part("rollout"):
            return super()._generate_and_score_completions(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Go forward and backward with one micro-batch."""
        with self.clock.part("other"):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Go forward; until its step ends, the micro-batch then goes backward."""
        self.clock.enter("forward")
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.clock.enter("backward")
        return loss

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("sync"):
            return super()._clip_grad_norm(*args, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        self.clock.enter("other")
