"""A frozen base in float8: near bf16 in what it computes and learns, saved as the base is."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.trainer import JobFailure
from finetune_trainer import float8
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site

PLAN = make_plan(gpus=1, gpus_per_node=1, precision="float8")
CPU = {"FINETUNE_DEVICE": "cpu"}
LORA = {"type": "lora", "lora": {"rank": 4}}


def layers() -> tuple[nn.Linear, float8.Float8Linear]:
    """Return a frozen layer in bf16, and the same in float8."""
    torch.manual_seed(0)
    exact = nn.Linear(64, 96).to(torch.bfloat16).requires_grad_(False)
    return exact, float8.Float8Linear(exact)


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Tell whether two results differ by no more than float8's 3 bits of mantissa make them."""
    difference = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return 0 < float(difference.detach()) < 0.06


def test_products_and_gradients_are_near_those_of_bf16() -> None:
    exact, quantised = layers()
    # Rows of very different sizes: each has a scale of its own.
    sizes = torch.logspace(-4, 2, 10)[None, :, None]
    inputs = (torch.randn(2, 10, 64) * sizes).to(torch.bfloat16)
    gradient = torch.randn(2, 10, 96).to(torch.bfloat16)
    results = []
    for layer in (exact, quantised):
        leaf = inputs.clone().requires_grad_()
        output = layer(leaf)
        output.backward(gradient)
        assert leaf.grad is not None
        results.append((output, leaf.grad))
    for found, wanted in zip(results[1], results[0], strict=True):
        assert found.shape == wanted.shape
        assert all(near(found[:, row], wanted[:, row]) for row in range(10))


def test_rows_of_zeros_stay_zeros() -> None:
    quantised = layers()[1]
    output = quantised(torch.zeros(3, 64, dtype=torch.bfloat16))
    assert quantised.bias is not None
    assert torch.equal(output, quantised.bias.expand(3, -1))


def test_a_model_without_fitting_layers_is_refused() -> None:
    odd = nn.ModuleList([nn.Linear(10, 10).requires_grad_(False)])
    model = SimpleNamespace(get_decoder=lambda: SimpleNamespace(layers=odd))
    with pytest.raises(JobFailure, match="no linear layers whose widths are multiples of 16"):
        float8.convert(model)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_job_learns_and_its_artifact_is_as_always(site: Site, method: str) -> None:
    losses, saved = [], []
    rows = [
        {"prompt": f"number {n}", "chosen": "a" * 4, "rejected": "b" * 4}
        if method == "dpo"
        else {"prompt": f"number {n}", "completion": "a" * 4}
        for n in range(20)
    ]
    site.write_data(rows)
    for precision in ("bf16", "float8"):
        plan = PLAN.model_copy(update={"precision": precision})
        training = {"maxSteps": 8, "batchSize": 4, "learningRate": 1e-3, "precision": precision}
        config = site.job(plan, method=method, adapter=LORA, training=training, output=MERGED)
        assert site.run(config, environment=CPU) == 0, site.result().message
        losses.append([entry["loss"] for entry in site.metrics() if "loss" in entry])
        saved.append(merged_shapes(site))
        site.clear()
    assert saved[1] == saved[0]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.01)


MERGED: dict[str, Any] = {"claim": "out", "merged": True}


def merged_shapes(site: Site) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Return what the merged model consists of."""
    from safetensors.torch import load_file

    assert (site.artifact / "adapter_model.safetensors").exists()
    merged = load_file(site.artifact / "merged/model.safetensors")
    return {name: (weight.dtype, weight.shape) for name, weight in merged.items()}


def test_it_cannot_be_spread(site: Site) -> None:
    plan = PLAN.model_copy(update={"strategy": "fsdp", "gpus": 2, "gpus_per_node": 2})
    config = site.job(plan, training={"precision": "float8"})
    assert site.run(config, environment=CPU) == 64
    assert "cannot spread weights in float8" in site.result().message
