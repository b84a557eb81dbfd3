"""The output head's gradients, made while its logits are there.

TRL's fused head multiplies hidden states and weights tile by tile, keeps of the logits what the
loss needs, and computes them once more in the backward pass. What the gradient of a log-probability
is for its own logits is known as soon as these are, but for the factor that the loss gives it. So
one product in three is saved where the head is frozen, one in four where it is trained.
"""
# ruff: noqa: SLF001 - what TRL's models call has no public seam

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from trl.kernels import chunked_logprob as kernels
from trl.trainer import utils

_trl: Any = utils
"""Where TRL's models look the function up at each call."""
_UNIT: Final = 256
"""Tokens of a tile are a multiple of it, as those of the GPU's own tiles are."""


@contextmanager
def gradients_in_forward(*, weighs_alike: bool) -> Iterator[None]:
    """Have TRL's fused heads make their gradients in the forward pass, where they can.

    `weighs_alike` says that the loss has the same factor for all log-probabilities: only then can a
    trained head's gradient be summed before that factor is known. Where it was wrong, that gradient
    is NaN, which no optimizer gets to see. The entropy has no gradient.
    """
    theirs = _trl._ChunkedLogProbFunction
    _trl._ChunkedLogProbFunction = _Choice(theirs, weighs_alike)
    try:
        yield
    finally:
        _trl._ChunkedLogProbFunction = theirs


@dataclass(frozen=True)
class _Choice:
    """Takes the place of TRL's function, and leaves to it what cannot be made before."""

    theirs: Any
    weighs_alike: bool

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        *others: Any,
    ) -> Any:
        """Return what either function does."""
        possible = self._can_be_made(hidden, weight, bias)
        tokens = tokens_of_a_tile(hidden, weight, chunk_size) if possible else 0
        if not tokens:
            arguments = (hidden, weight, bias, targets, temperature, chunk_size)
            return self.theirs.apply(*arguments, *others)
        return LogProbabilities.apply(hidden, weight, bias, targets, temperature, tokens, *others)

    def _can_be_made(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        # On CPUs TRL computes masked tokens, too, which have another factor.
        if not (_trl._use_triton(hidden.device) and torch.is_grad_enabled()):
            return False
        # A head that is cast would be there twice.
        if not hidden.requires_grad or {hidden.dtype, weight.dtype} != {_computed_in(hidden)}:
            return False
        if weight.requires_grad:
            return self.weighs_alike and bias is None
        return bias is None or not bias.requires_grad


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
        tokens: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = kernels.OPTIONAL_OUTPUTS,
    ) -> tuple[Tensor | None, ...]:
        """Return the log-probabilities of targets (N), in float32, and the outputs asked for.

        As TRL does, of hidden states (N, H), weights (V, H) and a bias (V); with the logits of
        `tokens` tokens at a time.
        """
        ctx.set_materialize_grads(False)
        transform = {
            "logit_scale": logit_scale,
            "softcap": final_logit_softcapping or 1.0,
            "inv_t": 1 / temperature,
            "HAS_SOFTCAP": final_logit_softcapping is not None,
        }
        statistics = _Statistics(targets, outputs, transform)
        of_hidden, of_weight = _gradients(hidden, weight, bias, tokens, statistics)
        ctx.save_for_backward(of_hidden, None if of_weight is None else of_weight.to(weight.dtype))
        found = statistics.outputs_for(len(weight))
        ctx.mark_non_differentiable(*(each for each in found[1:] if each is not None))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Return the gradients, now that the factors (N) are known; once, as they are scaled."""
        of_hidden, of_weight = ctx.saved_tensors
        factors = gradients[0]
        if factors is None:
            return (None,) * 9
        if of_weight is not None:
            lowest, highest = factors.float().aminmax()
            of_weight.mul_(torch.where(lowest == highest, lowest, math.nan))
        return of_hidden.mul_(factors[:, None]), of_weight, *(None,) * 7


def tokens_of_a_tile(hidden: Tensor, weight: Tensor, chunk_size: int) -> int:
    """Return of how many tokens the logits take no more memory than TRL's backward pass.

    That has a tile of `chunk_size` logits for some tokens, and in the end a trained head's gradient
    once more, cast from float32. 0 where that is too little for a product.
    """
    size = min(len(hidden), kernels.TOKEN_CHUNK_SIZE) * chunk_size
    if weight.requires_grad and weight.dtype is not torch.float32:
        size += weight.numel()
    return size // len(weight) // _UNIT * _UNIT


def _computed_in(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: int, statistics: "_Statistics"
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the summed log-probabilities, and fill in the statistics.

    That of the weights is summed over the tiles in float32, as TRL's is.
    """
    of_hidden, of_weight = torch.empty_like(hidden), None
    if weight.requires_grad:
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
    logits = hidden.new_empty((min(len(hidden), tokens), len(weight)))
    for start in range(0, len(hidden), tokens):
        part = slice(start, min(start + tokens, len(hidden)))
        tile = logits[: part.stop - start]
        torch.mm(hidden[part], weight.t(), out=tile)
        if bias is not None:
            tile.add_(bias)
        statistics.turn_into_gradient(tile, part)
        torch.mm(tile, weight, out=of_hidden[part])
        if of_weight is not None:
            kernels._addmm_fp32(of_weight, tile.t(), hidden[part])
    return of_hidden, of_weight


class _Statistics:
    """What is kept of each token's logits."""

    def __init__(
        self, targets: Tensor, outputs: tuple[str, ...], transform: dict[str, Any]
    ) -> None:
        def filled(value: float) -> Tensor:
            return torch.full_like(targets, value, dtype=torch.float32)

        self.targets, self.outputs, self.transform = targets, outputs, transform
        self.largest, self.before = filled(-math.inf), filled(-math.inf)
        self.sums, self.weighted, self.squares = filled(0), filled(0), filled(0)
        self.plain, self.target, self.ones = filled(0), filled(0), filled(1)

    def turn_into_gradient(self, tile: Tensor, part: slice) -> None:
        """Keep what is needed of some tokens' logits, and replace these by their gradient."""
        count, vocabulary = tile.shape
        on_gpu = kernels._use_triton(tile.device)
        common = {"BLOCK_SIZE": kernels._BLOCK_SIZE, **self.transform}
        kept = (
            self.largest, self.sums, self.weighted, self.squares, self.plain, self.before,
            self.target,
        )  # fmt: skip
        forward: Any = kernels._forward_kernel[(count,)] if on_gpu else kernels._forward_tile
        forward(
            tile,
            tile.stride(0),
            self.targets[part],
            *(each[part] for each in kept),
            0,
            vocabulary,
            **{f"HAS_{name.upper()}": name in self.outputs for name in kernels.OPTIONAL_OUTPUTS},
            **common,
        )
        normalizer = self.largest[part] + self.sums[part].log()
        grid = (count, -(-vocabulary // kernels._BLOCK_SIZE))
        backward: Any = kernels._backward_kernel[grid] if on_gpu else kernels._backward_tile
        backward(
            tile,
            tile.stride(0),
            self.targets[part],
            normalizer,
            # Of the entropy and its gradient, which is not asked for.
            normalizer,
            self.ones[part],
            normalizer,
            0,
            vocabulary,
            HAS_LOGPROB_GRAD=True,
            HAS_ENTROPY_GRAD=False,
            **common,
        )

    def outputs_for(self, vocabulary: int) -> tuple[Tensor | None, ...]:
        """Return log-probabilities, and of the other outputs those asked for, else None."""
        normalizer = self.largest + self.sums.log()
        others = {
            "entropy": lambda: normalizer - self.weighted / self.sums,
            "log_sum_sq_probs": lambda: self.squares.log() - 2 * self.sums.log(),
            "mean_logits": lambda: self.plain / vocabulary,
            "is_top1": lambda: (self.target >= self.largest) & (self.target > self.before),
        }
        chosen = (
            others[name]() if name in self.outputs else None for name in kernels.OPTIONAL_OUTPUTS
        )
        return self.target - normalizer, *chosen
