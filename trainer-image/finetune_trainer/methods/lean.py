"""Spares the GPU from waiting for the CPU, which is to stay ahead of it.

Trainer walks through all the model's modules four times in each step: for the mode, for the
gradients to clip, for the gradients to drop, and to count FLOPs. An adapted 8B model has 2,700 of
them. And it asks the GPU for a number after each backward pass, while the rest of the step is yet
to be given to it.
"""

from functools import partial
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn.utils import get_total_norm

_OWN_WAYS = {DistributedType.FSDP, DistributedType.DEEPSPEED}
"""They clip and drop gradients themselves, and step with float32 copies of weights."""


class LeanTrainer:
    """Mixed into a TRL trainer: what a step needs of the model is known from the optimizer."""

    _uncounted: Tensor | None = None
    """Tokens of this process's micro-batches that the state does not count yet."""

    @property
    def has_own_ways(self: Any) -> bool:
        """Whether gradients are left to FSDP or DeepSpeed."""
        return self.accelerator.distributed_type in _OWN_WAYS

    @property
    def torch_optimizer(self: Any) -> Any:
        """The optimizer that Accelerate has wrapped."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def optimizer_scales(self: Any) -> bool:
        """Whether the optimizer divides gradients and skips a step as it is told on the GPU.

        PyTorch's fused ones do, for gradient scaling: by `grad_scale`, and where `found_inf` is 1.
        """
        if self.has_own_ways:
            return False
        # PyTorch's own mark of them, which its gradient scaler asks for.
        return bool(getattr(self.torch_optimizer, "_step_supports_amp_scaling", False))

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Go forward and backward with one micro-batch."""
        if "train" not in vars(self.model):
            # A new adapter's model says that it trains while the model within, as loaded, does not.
            self.model.train()
            self.model.train = partial(_train, self.model)
            if not self.has_own_ways:
                model.zero_grad = self.optimizer.zero_grad
        if self.accelerator.distributed_type is DistributedType.FSDP:
            # With a copy on each node: only the sums of a whole step pass between nodes.
            model.set_requires_all_reduce(self.accelerator.sync_gradients)
        return super().training_step(model, *args, **kwargs)  # type: ignore[misc]

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 - Trainer's signature
        """Return nothing: finetune_trainer.utilization counts them once."""
        return 0

    def _track_num_input_tokens(self: Any, inputs: Any) -> None:
        """Note what the micro-batch has; count_tokens asks for it."""
        counts = self.args.include_num_input_tokens_seen == "non_padding"
        if not counts or "attention_mask" not in inputs:
            super()._track_num_input_tokens(inputs)  # type: ignore[misc]
            return
        tokens = inputs["attention_mask"].sum()
        self._uncounted = tokens if self._uncounted is None else self._uncounted + tokens

    def count_tokens(self: Any) -> None:
        """Count in the state what all processes noted; all of them together."""
        if self._uncounted is not None:
            total = self.accelerator.reduce(self._uncounted, reduction="sum")
            self.state.num_input_tokens_seen += int(total)
            self._uncounted = None

    def _clip_grad_norm(self: Any, model: Any) -> Any:
        if self.has_own_ways:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        limit = self.args.max_grad_norm
        if not self.optimizer_scales:
            return self.accelerator.clip_grad_norm_(trained, limit)
        norm = get_total_norm([weight.grad for weight in trained if weight.grad is not None])
        # As torch.nn.utils.clip_grad_norm_ clips, without another walk through all gradients.
        self.torch_optimizer.grad_scale = ((norm.float() + 1e-6) / limit).clamp(min=1)
        return norm


def _train(model: Any, mode: bool = True) -> Any:
    """Set the mode, unless the model is in it."""
    return model if model.training == mode else type(model).train(model, mode)
