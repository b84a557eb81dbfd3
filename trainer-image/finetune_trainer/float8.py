"""The frozen layers of a model in float8: products at twice bf16's rate on GPUs that have it.

Each row of activations, of gradients and of weights is scaled to the range of float8_e4m3fn on its
own (rowwise dynamic scaling, as in torchao's recipe of that name). A weight is kept twice, since
the forward and the backward pass need other rows of it: together as large as in bf16. Adapters,
norms, embedding and output head stay as they are.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure
from finetune_trainer.logs import fields
from finetune_trainer.model import decoder_layers

log = logging.getLogger(__name__)

_DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_DTYPE).max
_MULTIPLE = 16
"""Widths that the GPU's float8 products take are multiples of it."""


class Float8Linear(nn.Module):
    """A frozen linear layer. Its weights are no part of the state dict: they are the base's."""

    def __init__(self, layer: nn.Linear) -> None:
        """Take a layer's weights, on whatever device they are."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        for name, rows in (("forward", weight), ("backward", weight.t())):
            quantised, scale = _quantised(rows)
            self.register_buffer(f"{name}_weight", quantised, persistent=False)
            self.register_buffer(f"{name}_scale", scale, persistent=False)
        self.bias: Tensor | None = layer.bias
        self.forward_weight: Tensor
        self.forward_scale: Tensor
        self.backward_weight: Tensor
        self.backward_scale: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs (..., in) times the weight, in bf16, shape (..., out)."""
        found: Tensor = _Linear.apply(
            inputs.to(torch.bfloat16),
            self.forward_weight,
            self.forward_scale,
            self.backward_weight,
            self.backward_scale,
        )
        return found if self.bias is None else found + self.bias.to(found.dtype)


class _Linear(torch.autograd.Function):
    """The product, and its gradient for the inputs; a frozen weight has none."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor, back: Tensor
    ) -> Tensor:
        ctx.save_for_backward(transposed, back)
        return _times(inputs, weight, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        transposed, back = ctx.saved_tensors
        return _times(gradients[0], transposed, back), None, None, None, None


def _times(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return rows (..., in) times a weight of (out, in) with a scale for each of its rows."""
    flat = rows.reshape(-1, rows.shape[-1])
    quantised, own = _quantised(flat)
    if flat.is_cuda:
        product = torch._scaled_mm(  # noqa: SLF001 - PyTorch has no public one for rowwise scales
            quantised,
            weight.t(),
            scale_a=own,
            scale_b=scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    else:
        # The same numbers, for clusters without GPUs: CPUs have no such product.
        exact = (quantised.float() @ weight.float().t()) * own * scale.t()
        product = exact.to(torch.bfloat16)
    return product.reshape(*rows.shape[:-1], -1)


def _quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (n, m) in float8, and what each is to be multiplied by, float32 (n, 1)."""
    exact = rows.float()
    scale = exact.abs().amax(-1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (exact / scale).clamp(-_LARGEST, _LARGEST).to(_DTYPE).contiguous(), scale


def convert(model: Any) -> None:
    """Replace the frozen linear layers of all decoder layers, on the device that they are on.

    Raises JobFailure when there are none.
    """
    odd, count = [], 0
    for owner in list((decoder_layers(model) or nn.Module()).modules()):
        for name, child in list(owner.named_children()):
            if type(child) is not nn.Linear or child.weight.requires_grad:
                continue
            if child.in_features % _MULTIPLE or child.out_features % _MULTIPLE:
                odd.append(f"{name} {child.in_features} x {child.out_features}")
                continue
            setattr(owner, name, Float8Linear(child))
            count += 1
    if not count:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            "training.precision is float8, but the model has no linear layers whose widths are "
            f"multiples of {_MULTIPLE} among its decoder layers: use bf16.",
        )
    if odd:
        log.warning(
            "layers stay in bf16: float8 takes widths that are multiples of 16",
            extra=fields(layers=sorted(set(odd))),
        )
    # Every process has quantised the same weights: there is nothing to send around.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # noqa: SLF001 - no other way
        model,
        [
            f"{path}.{name}"
            for path, module in model.named_modules()
            if isinstance(module, Float8Linear)
            for name, _ in module.named_buffers()
        ],
    )
