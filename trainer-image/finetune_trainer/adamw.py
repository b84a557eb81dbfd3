"""AdamW for weights of bf16 that are rounded up or down at random, in one pass over the memory.

Weights of bf16 have 8 significant bits. What a step changes is mostly less than half of the last
one, and is lost when rounded to the nearest; so is the decay of the second moment, 0.1 % a step.
Rounded at random, up with a probability of how near that is, both come out right in expectation:
stochastic rounding, as in "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUARTER = tl.constexpr(1024)
"""Elements of a block for each of the four random numbers that are drawn at once."""


class RoundingAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW and its state, for weights of bf16 that lie row by row.

    How a weight is rounded depends on its place among the weights and on the step alone, on no
    seed: processes that have the same gradients keep the same weights, and a resumed run goes on as
    it would have. amsgrad, maximize and rates that are tensors are not supported.

    As PyTorch's own, it divides gradients by `grad_scale` and does nothing where `found_inf` is 1;
    both are tensors of one number on the GPU. Unlike that, it leaves the gradients as they are.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what the closure does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        first = 0
        for group in self.param_groups:
            weights = {
                place: weight
                for place, weight in enumerate(group["params"], first)
                if weight.grad is not None
            }
            if weights:
                self._step(group, weights)
            first += len(group["params"])
        return loss

    def _step(self, group: dict[str, Any], weights: dict[int, Tensor]) -> None:
        states = [self._state(weight) for weight in weights.values()]
        zero = torch.zeros((), device=states[0]["step"].device)
        skips = zero if self.found_inf is None else self.found_inf
        scale = zero + 1 if self.grad_scale is None else self.grad_scale
        steps = [state["step"] for state in states]
        # A single number in place of the list would be asked for: the GPU would wait.
        torch._foreach_add_(steps, [1 - skips] * len(steps))
        counted = torch.stack(steps)
        corrections = [1 - beta ** counted.double() for beta in group["betas"]]
        numbers = torch.stack([counted, *corrections], dim=1).float()
        for (place, weight), state, of_weight in zip(weights.items(), states, numbers, strict=True):
            _kernel[(triton.cdiv(weight.numel(), 4 * _QUARTER.value),)](
                weight,
                weight.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                of_weight,
                scale,
                skips,
                place,
                weight.numel(),
                group["lr"],
                group["weight_decay"],
                *group["betas"],
                group["eps"],
                num_warps=8,
            )

    def _state(self, weight: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state


@triton.jit
def _rounded(number: tl.tensor, bits: tl.tensor) -> tl.tensor:
    """Round float32 to bf16 by 16 random bits: added to what is cut off, they may carry over."""
    sums = number.to(tl.uint32, bitcast=True) + bits
    whole = (sums & 0xFFFF0000).to(tl.float32, bitcast=True)
    # What is no number would become one.
    return tl.where(number == number, whole, number).to(tl.bfloat16)  # noqa: PLR0124


@triton.jit(do_not_specialize=["place"])
def _kernel(
    weights: tl.tensor,
    gradients: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    numbers: tl.tensor,
    scale: tl.tensor,
    skips: tl.tensor,
    place: tl.tensor,
    size: tl.tensor,
    rate: tl.tensor,
    decay: tl.tensor,
    beta1: tl.tensor,
    beta2: tl.tensor,
    epsilon: tl.tensor,
) -> None:
    """Compute in float32 what torch.optim.AdamW documents, and round the results."""
    if tl.load(skips) != 0:
        return
    step = tl.load(numbers)
    of_mean = tl.load(numbers + 1)
    of_square = tl.sqrt(tl.load(numbers + 2))
    scaled = 1 / tl.load(scale)
    block = tl.program_id(0)
    lanes = tl.arange(0, _QUARTER)
    drawn = tl.randint4x((step.to(tl.int64) << 32) | place, block * _QUARTER + lanes)
    for quarter in tl.static_range(4):
        bits = drawn[quarter].to(tl.uint32, bitcast=True)
        at = (block.to(tl.int64) * 4 + quarter) * _QUARTER + lanes
        within = at < size
        gradient = tl.load(gradients + at, within).to(tl.float32) * scaled
        mean = tl.load(means + at, within).to(tl.float32)
        square = tl.load(squares + at, within).to(tl.float32)
        weight = tl.load(weights + at, within).to(tl.float32) * (1 - rate * decay)
        mean += (gradient - mean) * (1 - beta1)
        square = square * beta2 + gradient * gradient * (1 - beta2)
        weight -= rate / of_mean * mean / (tl.sqrt(square) / of_square + epsilon)
        tl.store(weights + at, _rounded(weight, bits & 0xFFFF), within)
        # It changes by a tenth each step: the nearest is near enough.
        tl.store(means + at, mean.to(tl.bfloat16), within)
        tl.store(squares + at, _rounded(square, bits >> 16), within)
