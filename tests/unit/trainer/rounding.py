"""Steps of RoundingAdamW beside PyTorch's AdamW: on a GPU, or on the CPU by Triton's interpreter.

Triton decides when it is imported whether it interprets: these run in a process of their own.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from finetune_trainer import adamw
from finetune_trainer.adamw import RoundingAdamW

SHAPES = [(70, 100), (33,), (1, 5)]
"""One takes more than a block, and none fills its last."""


def begin() -> None:
    """Use the GPU; without one, have the interpreter round what is in bf16 on the CPU."""
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    else:
        adamw.can_round = lambda weight: weight.dtype is torch.bfloat16


def run(function: Callable[..., Any], *options: Any) -> Any:
    """Return what the function does, on the CPU."""
    return tree_map(
        lambda part: part.cpu() if isinstance(part, Tensor) else part, function(*options)
    )


class Steps(NamedTuple):
    """What both came to, all weights in a row."""

    rounded: Tensor
    """Weights in bf16."""
    exact: Tensor
    """Weights in float32."""
    nearest: Tensor
    """Weights in bf16 after PyTorch's fused AdamW."""
    squares: Tensor
    exact_squares: Tensor


def take(gradients: list[float], rate: float, scale: float = 1.0) -> Steps:
    """Take a step with each gradient, which all weights have; `scale` times it is given to ours."""
    weights = [copied(weight, torch.bfloat16) for weight in made()]
    nearest = [copied(weight, torch.bfloat16) for weight in weights]
    exact = [copied(weight, torch.float32) for weight in weights]
    ours = RoundingAdamW(weights, lr=rate, fused=True)
    ours.grad_scale = torch.tensor(scale)
    theirs = [torch.optim.AdamW(each, lr=rate, fused=True) for each in (nearest, exact)]
    for gradient in gradients:
        for weight, other, whole in zip(weights, nearest, exact, strict=True):
            weight.grad = torch.full_like(weight, gradient * scale)
            other.grad = torch.full_like(other, gradient)
            whole.grad = torch.full_like(whole, gradient)
        for optimizer in (ours, *theirs):
            optimizer.step()
    squares = [ours.state[weight]["exp_avg_sq"] for weight in weights]
    exact_squares = [theirs[1].state[weight]["exp_avg_sq"] for weight in exact]
    return Steps(*map(flat, (weights, exact, nearest, squares, exact_squares)))


def step(groups: list[float], size: float, rate: float) -> list[tuple[Tensor, Tensor]]:
    """Return weights and what float32 has, group by group, after a step with random gradients.

    `groups` are weight decays, `size` is the gradients' scale. All groups begin with the same.
    """
    weights = [[copied(weight, torch.bfloat16) for weight in made()] for _ in groups]
    exact = [[copied(weight, torch.float32) for weight in group] for group in weights]
    torch.manual_seed(1)
    gradients = [torch.randn_like(weight) * size for weight in weights[0]]
    for kind, all_groups in ((RoundingAdamW, weights), (torch.optim.AdamW, exact)):
        named = [
            {"params": group, "weight_decay": decay}
            for group, decay in zip(all_groups, groups, strict=True)
        ]
        for group in all_groups:
            for weight, gradient in zip(group, gradients, strict=True):
                weight.grad = gradient.to(weight.dtype)
        kind(named, lr=rate, fused=True).step()
    return [(flat(group), flat(other)) for group, other in zip(weights, exact, strict=True)]


def patterns() -> list[Tensor]:
    """Return what was rounded up, each time of as many as a quarter of a block.

    Two quarters of a block, a block after it, another weight, their second moments, and the first
    after another step.
    """
    size = 1024
    weights = [nn.Parameter(torch.full((5 * size,), 0.02, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = RoundingAdamW(weights, lr=6e-5, weight_decay=0.0, fused=True)
    found = []
    before = weights[0].detach().clone()
    for weight in weights:
        # Of its second moment's last bit, half is cut off.
        weight.grad = torch.full_like(weight, -0.3007812)
    optimizer.step()
    first = weights[0] != before
    squares = optimizer.state[weights[0]]["exp_avg_sq"]
    found += [first[:size], first[size : 2 * size], first[4 * size :]]
    found += [(weights[1] != before)[:size], (squares == squares.max())[:size]]
    before = weights[0].detach().clone()
    optimizer.step()
    found.append((weights[0] != before)[:size])
    return found


def partly() -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights after a step of all, and after one without a gradient for the second."""
    found = []
    for second in (True, False):
        weights = [copied(weight, torch.bfloat16) for weight in made()]
        for place, weight in enumerate(weights):
            if second or place != 1:
                weight.grad = torch.full_like(weight, 0.5)
        optimizer = RoundingAdamW(weights, lr=1e-4, fused=True)
        optimizer.step()
        assert len(optimizer.state) == 2 + second
        found.append([weight.detach() for weight in weights])
    return found[0], found[1]


def take_with(betas: tuple[float, float], epsilon: float) -> list[tuple[Tensor, Tensor]]:
    """Return weights and moments, and what float32 has, after three steps with these options."""
    options: dict[str, Any] = {"lr": 0.01, "betas": betas, "eps": epsilon, "fused": True}
    weights = [copied(weight, torch.bfloat16) for weight in made()]
    exact = [copied(weight, torch.float32) for weight in weights]
    optimizers = RoundingAdamW(weights, **options), torch.optim.AdamW(exact, **options)
    for gradient in (1.0, 0.25, 0.5):
        for weight in (*weights, *exact):
            weight.grad = torch.full_like(weight, gradient)
        for optimizer in optimizers:
            optimizer.step()
    found = [(flat(weights), flat(exact))]
    for moment in ("exp_avg", "exp_avg_sq"):
        ours, theirs = (
            flat([state[moment] for state in optimizer.state.values()]) for optimizer in optimizers
        )
        found.append((ours, theirs))
    return found


def mixed() -> tuple[list[Tensor], list[Tensor]]:
    """Return all there is of a weight in float32 beside one in bf16, and of one in AdamW.

    After a step with scaled gradients, and one to be skipped.
    """
    found: list[list[Tensor]] = []
    for kind in (RoundingAdamW, torch.optim.AdamW):
        weight, other = copied(made()[0], torch.float32), copied(made()[1], torch.bfloat16)
        optimizer: Any = kind([other, weight], lr=0.001, fused=True)
        optimizer.grad_scale = torch.tensor(2.0)
        for skipped in (0.0, 1.0):
            optimizer.found_inf = torch.tensor(skipped)
            weight.grad = torch.full_like(weight, 0.3)
            other.grad = torch.full_like(other, 0.3)
            optimizer.step()
        found.append(parts([weight], optimizer))
    return found[0], found[1]


def take_over() -> dict[str, Tensor]:
    """Return what is remembered of a weight after PyTorch's step, its state dict, and ours."""
    weight = copied(made()[0], torch.bfloat16)
    optimizer: Any = torch.optim.AdamW([weight], lr=0.001, fused=True)
    for kind in (torch.optim.AdamW, RoundingAdamW):
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = kind([weight], lr=0.001, fused=True)
        optimizer.load_state_dict(state)
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    remembered: dict[str, Tensor] = optimizer.state[weight]
    return remembered


def skip() -> list[tuple[Tensor, Tensor]]:
    """Return all that a step with `found_inf` might change, before and after it."""
    weights, optimizer = started()
    before = [part.clone() for part in parts(weights, optimizer)]
    optimizer.found_inf = torch.tensor(1.0)
    for weight in weights:
        weight.grad = torch.full_like(weight, float("nan"))
    optimizer.step()
    return list(zip(before, parts(weights, optimizer), strict=True))


def resume() -> tuple[Tensor, Tensor]:
    """Return weights after two steps, and after one, a state dict, and another."""
    weights, optimizer = started()
    doubles = [copied(weight, torch.bfloat16) for weight in weights]
    other = RoundingAdamW(doubles, lr=0.001, fused=True)
    # As it is saved: else both share their moments.
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, double in zip(weights, doubles, strict=True):
        weight.grad = torch.full_like(weight, 0.3)
        double.grad = weight.grad.clone()
    optimizer.step()
    other.step()
    return flat(weights), flat(doubles)


def broken() -> Tensor:
    """Return a weight that was no number and one that was infinite, after a step."""
    weight = nn.Parameter(torch.tensor([float("nan"), float("inf")], dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    RoundingAdamW([weight], lr=0.001, fused=True).step()
    return weight.detach()


def started() -> tuple[list[nn.Parameter], RoundingAdamW]:
    """Return weights and their optimizer after a step."""
    weights = [copied(weight, torch.bfloat16) for weight in made()]
    optimizer = RoundingAdamW(weights, lr=0.001, fused=True)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return weights, optimizer


def made() -> list[Tensor]:
    """Return random weights of both signs, none near zero; the same on all devices."""
    drawn = torch.Generator("cpu").manual_seed(0)
    options: dict[str, Any] = {"generator": drawn, "device": "cpu"}
    weights = [
        0.02 * (1 + torch.rand(shape, **options)) * torch.randn(shape, **options).sign()
        for shape in SHAPES
    ]
    return [weight.bfloat16().to(torch.get_default_device()) for weight in weights]


def copied(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Return a weight of its own."""
    return nn.Parameter(weight.detach().clone().to(dtype))


def parts(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the weights and all that the optimizer remembers of them."""
    remembered: list[dict[str, Any]] = [optimizer.state[weight] for weight in weights]
    return [*(weight.detach() for weight in weights), *(p for s in remembered for p in s.values())]


def flat(tensors: list[Any]) -> Tensor:
    """Return all in a row."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
