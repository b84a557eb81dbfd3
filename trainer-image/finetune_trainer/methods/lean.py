"""Spares the GPU from waiting while Trainer walks through the model's modules.

An adapted 8B model has 2,700 of them. Trainer walks through all of them four times in each step:
for the mode, for the gradients to clip, for the gradients to drop, and to count FLOPs.
"""

from functools import partial
from typing import Any

from accelerate.utils import DistributedType

_OWN_WAYS = {DistributedType.FSDP, DistributedType.DEEPSPEED}
"""They clip and drop gradients themselves."""


class LeanTrainer:
    """Mixed into a TRL trainer: what a step needs of the model is known from the optimizer."""

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Go forward and backward with one micro-batch."""
        if "train" not in vars(self.model):
            # A new adapter's model says that it trains while the model within, as loaded, does not.
            self.model.train()
            self.model.train = partial(_train, self.model)
            if self.accelerator.distributed_type not in _OWN_WAYS:
                model.zero_grad = self.optimizer.zero_grad
        if self.accelerator.distributed_type is DistributedType.FSDP:
            # With a copy on each node: only the sums of a whole step pass between nodes.
            model.set_requires_all_reduce(self.accelerator.sync_gradients)
        return super().training_step(model, *args, **kwargs)  # type: ignore[misc]

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 - Trainer's signature
        """Return nothing: finetune_trainer.utilization counts them once."""
        return 0

    def _clip_grad_norm(self: Any, model: Any) -> Any:
        if self.accelerator.distributed_type in _OWN_WAYS:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        return self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)


def _train(model: Any, mode: bool = True) -> Any:
    """Set the mode, unless the model is in it."""
    return model if model.training == mode else type(model).train(model, mode)
