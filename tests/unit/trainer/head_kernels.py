"""The output head by its kernels: on a GPU, or on the CPU by Triton's interpreter.

Triton decides when it is imported whether it interprets: this runs in a process of its own.
"""

from typing import Any

import torch
from trl.kernels import chunked_logprob

from finetune_trainer.head import LogProbabilities

WIDTH, VOCABULARY, TOKENS, TILE = 16, 1100, 3, 2
"""Two blocks of logits and two tiles of tokens, the last of both not full."""


def compare() -> None:
    """Hold what the kernels give against what PyTorch does."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    results = []
    for chosen, on_gpu in ((device, True), ("cpu", False)):
        vars(chunked_logprob)["_use_triton"] = lambda _, on_gpu=on_gpu: on_gpu
        rows = hidden.clone().to(chosen).requires_grad_()
        columns = weight.clone().to(chosen).requires_grad_()
        outputs: Any = LogProbabilities.apply(
            rows, columns, None, targets.to(chosen), 0.7, TILE, 30.0
        )
        outputs[0].sum().backward()
        gradients = [each.grad for each in (rows, columns) if each.grad is not None]
        results.append(tuple(each.detach().cpu() for each in (*outputs, *gradients)))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
