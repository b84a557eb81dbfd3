"""AdamW that rounds weights of bf16 up or down at random.

Weights of bf16 have 8 significant bits. What a step changes is mostly less than half of the last
one, and is lost when rounded to the nearest; so is the decay of the second moment, 0.1 % a step.
Rounded at random, up with a probability of how near that is, both come out right in expectation:
stochastic rounding, as in "Revisiting BFloat16 Training", https://arxiv.org/abs/2010.06192.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def can_round(weight: Tensor) -> bool:
    """Tell whether a weight is in bf16, row by row, on a GPU: what the kernel is for."""
    return weight.is_cuda and weight.dtype is torch.bfloat16 and weight.is_contiguous()


class RoundingAdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW and its state; weights that can be, and their second moment, rounded.

    How a weight is rounded depends on its place among the weights and on the step alone, on no
    seed: processes that have the same gradients keep the same weights, and a resumed run goes on as
    it would have. All other weights take PyTorch's own step.

    As PyTorch's own, it divides gradients by `grad_scale` and does nothing where `found_inf` is 1;
    both are tensors of one number on the GPU. Unlike that, it leaves the gradients of rounded
    weights as they are.

    All weights of a group are on one device. Raises ValueError for amsgrad, maximize, and rates
    that are tensors.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, weights: Iterable[Any], **options: Any) -> None:
        super().__init__(weights, **{**options, "fused": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take weights with options of their own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor):
            raise ValueError("RoundingAdamW has no amsgrad, maximize, or rate that is a tensor")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what the closure does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        first = 0
        for group in self.param_groups:
            rounded: dict[int, Tensor] = {}
            others: list[Tensor] = []
            for place, weight in enumerate(group["params"], first):
                if weight.grad is None:
                    continue
                if can_round(weight):
                    rounded[place] = weight
                else:
                    others.append(weight)
            if rounded:
                self._round(group, rounded)
            if others:
                self._step_others(group, others)
            first += len(group["params"])
        return loss

    def _round(self, group: dict[str, Any], weights: dict[int, Tensor]) -> None:
        # Triton is where GPUs are.
        import triton

        from finetune_trainer import adamw_kernel as kernel

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
            gradient: Any = weight.grad
            kernel.step[(triton.cdiv(weight.numel(), 4 * kernel.QUARTER.value),)](
                weight,
                gradient.contiguous(),
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

    def _step_others(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        states = [self._state(weight) for weight in weights]
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, weight: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state
