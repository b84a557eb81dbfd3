"""Compiled layers stay compiled, whatever rows a job has and whatever it does beside training."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.faults import run_here

LAYERS, STEPS = 2, 12


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Return a list that grows by whether gradients are wanted, each time a compiled layer runs."""
    found: list[bool] = []

    def compiler(graph: Any, _: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            found.append(torch.is_grad_enabled())
            return graph.forward(*arguments)

        return run

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda layer: compile_module(layer, backend=compiler))
    usual = torch._dynamo.config.recompile_limit
    torch.compiler.reset()
    yield found
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = usual


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_training_runs_compiled_layers_to_the_end(
    site: Site, ran: list[bool], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_DEVICE", "cpu")
    site.write_data([row(method, index) for index in range(30)])
    config = site.job(
        make_plan(gpus=1, gpus_per_node=1, compile=True, gradient_accumulation_steps=1),
        method=method,
        dataset={"source": "pvc://data/rows.jsonl", "evalFraction": 0.3},
        adapter={"type": "lora", "lora": {"rank": 4}},
        training={"maxSteps": STEPS, "batchSize": 2, "evalEverySteps": 4},
        evaluation={"samplePrompts": ["hello"], "sampleMaxTokens": 4},
    )
    assert run_here(site, config) == 0, site.result().message
    assert sum(ran) == LAYERS * STEPS
    assert not all(ran)


def row(method: str, index: int) -> dict[str, Any]:
    """Return a row; they are of many lengths, and some neighbours of one."""
    text = "a" * (4 + 5 * (index // 2 % 7))
    if method == "dpo":
        return {"prompt": "say a", "chosen": text, "rejected": "b" * (3 + index % 3)}
    return {"prompt": "say a", "completion": text}
