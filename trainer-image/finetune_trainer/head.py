"""The output head's gradients, made while its logits are there.

TRL's fused head multiplies hidden states and weights tile by tile, keeps of the logits what the
loss needs, and computes them once more in the backward pass. What the gradient of a log-probability
is for its own logits is known as soon as these are, but for the factor that the loss gives it. So
one product in three is saved where the head is frozen, one in four where it is trained.
"""
# ruff: noqa: SLF001 - TRL's kernels are private

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from trl.kernels import chunked_logprob as trl
from trl.trainer import utils

_UNIT: Final = 256
"""Tokens of a tile are a multiple of it, as those of the GPU's own tiles are."""


_models: Any = utils
"""Where TRL's models look the function up each time."""


@contextmanager
def gradients_in_forward(*, weighs_alike: bool) -> Iterator[None]:
    """Have TRL's fused heads make their gradients in the forward pass, where they can.

    `weighs_alike` says that the loss has the same factor for all log-probabilities: only then can a
    trained head's gradient be summed before that factor is known. Where it was wrong, that gradient
    is NaN, which no optimizer gets to see. The entropy has no gradient.
    """
    theirs = _models._ChunkedLogProbFunction
    _models._ChunkedLogProbFunction = _Choice(theirs, weighs_alike)
    try:
        yield
    finally:
        _models._ChunkedLogProbFunction = theirs


@dataclass(frozen=True)
class _Choice:
    """Takes the place of TRL's function, and leaves to it what cannot be made before."""

    theirs: Any
    weighs_alike: bool

    def apply(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Any:
        """Return what either function does."""
        wanted = torch.is_grad_enabled() and hidden.requires_grad and len(hidden) > 0
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        possible = not trained or (self.weighs_alike and bias is None)
        chosen = LogProbabilities if wanted and possible else self.theirs
        return chosen.apply(hidden, weight, bias, *others)


class LogProbabilities(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction with the gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = trl.OPTIONAL_OUTPUTS,
    ) -> tuple[Tensor | None, ...]:
        """Return the log-probabilities of targets (N), in float32, and the outputs asked for.

        As TRL does, of hidden states (N, H), weights (V, H) and a bias (V).
        """
        ctx.set_materialize_grads(False)
        kind = hidden.device.type
        cast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if cast else hidden.dtype
        statistics = _Statistics(targets, outputs)
        transform = {
            "logit_scale": logit_scale,
            "softcap": final_logit_softcapping or 1.0,
            "inv_t": 1 / temperature,
            "HAS_SOFTCAP": final_logit_softcapping is not None,
        }
        tokens = tokens_of_a_tile(hidden, weight, chunk_size)
        of_hidden, of_weight = _fold(hidden, weight, bias, statistics, transform, tokens, dtype)
        ctx.save_for_backward(of_hidden, None if of_weight is None else of_weight.to(weight.dtype))
        found = statistics.found(weight.shape[0])
        ctx.mark_non_differentiable(*(each for each in found[1:] if each is not None))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Return the gradients, now that the factors (N) are known."""
        of_hidden, of_weight = ctx.saved_tensors
        factors = gradients[0]
        if factors is None:
            return (None,) * 9
        if of_weight is not None:
            lowest, highest = factors.float().aminmax()
            of_weight.mul_(torch.where(lowest == highest, lowest, math.nan))
        return of_hidden.mul_(factors[:, None]), of_weight, *(None,) * 7


def tokens_of_a_tile(hidden: Tensor, weight: Tensor, chunk_size: int) -> int:
    """Return as many tokens as TRL's backward pass has memory for.

    It holds a tile, the gradient of the hidden states in float32, and in the end that of a trained
    head once more in bf16.
    """
    size = 2 * trl.TOKEN_CHUNK_SIZE * chunk_size + 4 * hidden.numel()
    if weight.requires_grad:
        size += 2 * weight.numel()
    return max(_UNIT, size // (2 * weight.shape[0]) // _UNIT * _UNIT)


def _fold(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    statistics: "_Statistics",
    transform: dict[str, Any],
    tokens: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Go through all tokens; return the gradients of their summed log-probabilities.

    That of the weights is in float32, as TRL's: sums of many tiles.
    """
    count, vocabulary = len(hidden), len(weight)
    columns = weight.to(dtype)
    of_hidden, of_weight = torch.empty_like(hidden), None
    if weight.requires_grad:
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
    tiles = hidden.new_empty((min(count, tokens), vocabulary), dtype=dtype)
    for start in range(0, count, tokens):
        part = slice(start, min(start + tokens, count))
        rows = hidden[part].to(dtype)
        tile = tiles[: len(rows)]
        torch.mm(rows, columns.t(), out=tile)
        if bias is not None:
            tile.add_(bias.to(dtype))
        statistics.fold(tile, part, transform)
        of_hidden[part] = tile @ columns
        if of_weight is not None:
            trl._addmm_fp32(of_weight, tile.t(), rows)
    return of_hidden, of_weight


class _Statistics:
    """What is kept of each token's logits."""

    def __init__(self, targets: Tensor, outputs: tuple[str, ...]) -> None:
        def filled(value: float) -> Tensor:
            return torch.full_like(targets, value, dtype=torch.float32)

        self.targets, self.outputs = targets, outputs
        self.largest, self.before = filled(-math.inf), filled(-math.inf)
        self.sums, self.weighted, self.squares = filled(0), filled(0), filled(0)
        self.plain, self.target, self.ones = filled(0), filled(0), filled(1)

    def fold(self, tile: Tensor, part: slice, transform: dict[str, Any]) -> None:
        """Keep what is needed of some tokens' logits, which then become their gradient."""
        count, vocabulary = tile.shape
        on_gpu = trl._use_triton(tile.device)
        common = {"BLOCK_SIZE": trl._BLOCK_SIZE, **transform}
        kept = (
            self.largest, self.sums, self.weighted, self.squares, self.plain, self.before,
            self.target,
        )  # fmt: skip
        forward: Any = trl._forward_kernel[(count,)] if on_gpu else trl._forward_tile
        forward(
            tile,
            tile.stride(0),
            self.targets[part],
            *(each[part] for each in kept),
            0,
            vocabulary,
            **{f"HAS_{name.upper()}": name in self.outputs for name in trl.OPTIONAL_OUTPUTS},
            **common,
        )
        normalizer = self.largest[part] + self.sums[part].log()
        blocks = -(-vocabulary // trl._BLOCK_SIZE)
        backward: Any = trl._backward_kernel[(count, blocks)] if on_gpu else trl._backward_tile
        backward(
            tile,
            tile.stride(0),
            self.targets[part],
            normalizer,
            normalizer,
            self.ones[part],
            normalizer,
            0,
            vocabulary,
            HAS_LOGPROB_GRAD=True,
            HAS_ENTROPY_GRAD=False,
            **common,
        )

    def found(self, vocabulary: int) -> tuple[Tensor | None, ...]:
        """Return log-probabilities, and of the other outputs those asked for, else None."""
        normalizer = self.largest + self.sums.log()
        others = {
            "entropy": normalizer - self.weighted / self.sums,
            "log_sum_sq_probs": self.squares.log() - 2 * self.sums.log(),
            "mean_logits": self.plain / vocabulary,
            "is_top1": (self.target >= self.largest) & (self.target > self.before),
        }
        chosen = (others[name] if name in self.outputs else None for name in trl.OPTIONAL_OUTPUTS)
        return self.target - normalizer, *chosen
