"""An adapter added within the layer's product: PEFT's numbers, and PEFT's layer in all else."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from finetune_trainer.lora import AddedLinear, add_within_products
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site


class Model(nn.Module):
    """Two layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Go through both."""
        output: torch.Tensor = self.down(nn.functional.silu(self.up(inputs)))
        return output


def adapted(**options: Any) -> Any:
    """Return the model in bf16 with a random adapter in float32."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["up", "down"], **options)
    model: Any = get_peft_model(Model().to(torch.bfloat16), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape) / 4
    for module in model.modules():
        if isinstance(module, Linear):
            module.cast_input_dtype_enabled = False
    return model


def step(model: Any, run: Any = None) -> dict[str, torch.Tensor]:
    """Return what a model, or what runs in its place, makes of the same rows, and the gradients."""
    torch.manual_seed(1)
    dtype = next(model.parameters()).dtype
    rows = torch.randn(2, 5, 32, dtype=torch.bfloat16).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        output = (model if run is None else run)(rows)
    output.backward(torch.randn(output.shape, dtype=torch.bfloat16).to(dtype))
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    found = {"output": output.detach(), "rows": rows.grad, **gradients}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return how far a result is from the exact one, as a share of it."""
    return float((found.double() - exact).norm() / exact.norm())


def kinds(model: Any) -> set[type]:
    """Return what the adapted layers are."""
    return {type(module) for module in model.modules() if isinstance(module, Linear)}


@pytest.mark.parametrize("compiles", [False, True])
def test_output_and_gradients_are_those_of_peft(compiles: bool) -> None:
    usual, added = adapted(), adapted()
    add_within_products(added)
    assert kinds(added) == {AddedLinear}
    torch.compiler.reset()
    run = torch.compile(added, fullgraph=True, backend="aot_eager") if compiles else added
    expected, found, exact = step(usual), step(added, run), step(adapted().double())
    assert len(found) == 6
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        # It rounds to bf16 once where PEFT does twice.
        assert distance(found[name], exact[name]) <= 1.1 * distance(tensor, exact[name])


def test_without_the_adapter_it_is_the_base() -> None:
    model = adapted()
    add_within_products(model)
    rows = torch.randn(3, 32, dtype=torch.bfloat16)
    with model.disable_adapter():
        assert torch.equal(model(rows), adapted().unload()(rows))


def test_another_adapter_is_its_own() -> None:
    model = adapted()
    model.add_adapter("reference", LoraConfig(r=2, target_modules=["up", "down"]))
    usual = copy.deepcopy(model)
    add_within_products(model)
    for each in (usual, model):
        each.set_adapter("reference")
    # As it begins: the base.
    rows = torch.randn(3, 32, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected, other = model(rows), usual(rows), adapted()(rows)
    assert distance(found, expected.double()) < 0.01
    assert distance(found, other.double()) > 0.1


def test_layers_that_run_again_have_the_same_gradients() -> None:
    model = adapted()
    add_within_products(model)
    again = partial(torch.utils.checkpoint.checkpoint, model, use_reentrant=False)
    expected = step(model)
    model.zero_grad()
    found = step(model, again)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_no_rows_are_no_rows() -> None:
    model = adapted()
    add_within_products(model)
    rows = torch.empty(0, 32, dtype=torch.bfloat16, requires_grad=True)
    model(rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.shape == (0, 32)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_is_more_than_two_matrices_stays_peft_s(options: dict[str, Any]) -> None:
    usual, added = adapted(**options), adapted(**options)
    add_within_products(added)
    expected, found = step(usual), step(added)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_weights_stay_peft_s() -> None:
    model = adapted().float()
    add_within_products(model)
    assert kinds(model) == {Linear}


def test_it_is_saved_and_merged_as_peft_s() -> None:
    usual, added = adapted(), adapted()
    add_within_products(added)
    assert added.state_dict().keys() == usual.state_dict().keys()
    expected, found = (model.merge_and_unload().state_dict() for model in (usual, added))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_job_with_compiled_layers_learns_as_with_peft_s(site: Site) -> None:
    losses = []
    for compiles in (False, True):
        plan = make_plan(gpus=1, gpus_per_node=1, precision="bf16", compile=compiles)
        training = {"maxSteps": 8, "batchSize": 4, "learningRate": 1e-3, "precision": "bf16"}
        config = site.job(plan, adapter={"type": "lora", "lora": {"rank": 4}}, training=training)
        # The layers run as they are: what counts is what they consist of.
        environment = {"FINETUNE_DEVICE": "cpu", "TORCHDYNAMO_DISABLE": "1"}
        assert site.run(config, environment=environment) == 0, site.result().message
        losses.append([entry["loss"] for entry in site.metrics() if "loss" in entry])
        site.clear()
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
