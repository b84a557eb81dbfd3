"""LoRA's product added to the layer's own while that is computed.

PEFT computes both and then adds them: another tensor as large as the layer's output is written and
read, forward and backward. A matrix product can add to what is there.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


@torch.library.custom_op("finetune::sum_of_products", mutates_args=())
def sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return a @ b + c @ d, all in one format; c @ d is the smaller product.

    An operator of its own, since the compiler takes such sums apart: it counts on fusing the
    addition with what follows, and so has it read both products.
    """
    return (c @ d).addmm_(a, b)


@sum_of_products.register_fake
def _(a: Tensor, b: Tensor, *_: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


class AddedLinear(Linear):
    """PEFT's layer, computed so where it is a plain one; its weights and names are PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x (..., in) times the weight and the adapter, shape (..., out)."""
        name = self._plain_adapter()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        found: Tensor = _Function.apply(
            x.to(base.weight.dtype),
            base.weight,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return found if base.bias is None else found + base.bias

    def _plain_adapter(self) -> str | None:
        """Return the one adapter that is in use, if it is but two matrices."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant:
            return None
        is_plain = isinstance(self.lora_dropout[name], nn.Identity) and not self.lora_bias[name]
        return name if is_plain else None


class _Function(torch.autograd.Function):
    """The sum, and its gradients for the inputs and the adapter; a frozen weight has none."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        within = rows @ a.to(weight.dtype).t()
        ctx.save_for_backward(rows, within, weight, a, b)
        ctx.scaling = scaling
        scaled = (b * scaling).to(weight.dtype)
        found: Tensor = sum_of_products(rows, weight.t(), within, scaled.t())
        return found.reshape(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, within, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        scaled = (b * ctx.scaling).to(weight.dtype)
        back = gradient @ scaled
        inputs = sum_of_products(gradient, weight, back, a.to(weight.dtype))
        of_a = (back.t() @ rows).to(a.dtype)
        of_b = (gradient.t() @ within).to(b.dtype) * ctx.scaling
        return inputs.reshape(*gradients[0].shape[:-1], weight.shape[1]), None, of_a, of_b, None


def add_within_products(model: nn.Module) -> None:
    """Let all of PEFT's linear layers with a frozen base of bf16 compute so."""
    for module in model.modules():
        if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
            continue
        weight = module.base_layer.weight
        if weight.dtype is torch.bfloat16 and not weight.requires_grad:
            module.__class__ = AddedLinear
