"""The output head, forward and backward: gradients made in the forward pass beside TRL's way.

Random hidden states and weights in bf16, 8192 tokens; on a GPU:

    PYTHONPATH=tests python -m bench.head
"""

import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from trl.kernels import ChunkedLogProbFunction

from finetune_trainer.head import LogProbabilities, tokens_of_a_tile

TOKENS, COLUMNS, STEPS = 8192, 32768, 10
"""COLUMNS are the logits of TRL's tiles (trl.trainer.utils)."""
OUTPUTS = ("entropy", "is_top1")
"""What TRL's SFTTrainer asks for beside log-probabilities."""


@dataclass(frozen=True)
class Shape:
    """A model's output head."""

    model: str
    width: int
    vocabulary: int


SHAPES = [
    Shape("Llama-3.1-8B", 4096, 128256),
    Shape("Qwen2.5-7B", 3584, 152064),
    Shape("Llama-3.2-3B", 3072, 128256),
]


def measure(shape: Shape, *, trained: bool, ours: bool) -> tuple[float, float]:
    """Return the median milliseconds of a pass, and the MiB that it takes at most."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    hidden = torch.randn(TOKENS, shape.width, **options, requires_grad=True)
    weight = (0.02 * torch.randn(shape.vocabulary, shape.width, **options)).requires_grad_(trained)
    targets = torch.randint(shape.vocabulary, (TOKENS,), device="cuda")
    function: Any = LogProbabilities if ours else ChunkedLogProbFunction
    size = tokens_of_a_tile(hidden, weight, COLUMNS) if ours else COLUMNS
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        outputs = function.apply(hidden, weight, None, targets, 1.0, size, None, 1.0, OUTPUTS)
        (-outputs[0].sum() / TOKENS).backward()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
        hidden.grad = weight.grad = None
    return median(times), (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        sys.exit("bench.head: CUDA sees no GPU: run it where there is one.")
    print("| head | ms | TRL | ratio | MiB | TRL |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        for trained in (False, True):
            ours, theirs = (measure(shape, trained=trained, ours=ours) for ours in (True, False))
            name = f"{shape.model}, {'trained' if trained else 'frozen'}"
            times = f"{ours[0]:.1f} | {theirs[0]:.1f} | {theirs[0] / ours[0]:.2f}"
            print(f"| {name} | {times} | {ours[1]:.0f} | {theirs[1]:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
