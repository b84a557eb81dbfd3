"""Mixtures of experts: which layers an adapter gets, and what is handed over."""

import shutil
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from finetune_api.status import Experts
from finetune_api.trainer import JobFailure
from unit.trainer.builders import make_config, make_plan, save_mixture
from unit.trainer.conftest import Site

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
SHARED = {"gate_proj", "up_proj", "down_proj", "shared_expert_gate"}
EXPERTS = ["q_proj", "gate_proj", "up_proj", "down_proj"]
CPU = {"FINETUNE_DEVICE": "cpu"}
MERGED = {"claim": "out", "merged": True}


@pytest.fixture
def mixture(site: Site, request: pytest.FixtureRequest) -> Site:
    """The mounts with a mixture instead of the dense model."""
    shutil.rmtree(site.model)
    save_mixture(site.model, getattr(request, "param", "qwen3_moe"))
    return site


def losses(site: Site) -> list[float]:
    return [entry["loss"] for entry in site.metrics() if "loss" in entry]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(4, 36)[None]).logits
    return found


def check_adapter(site: Site) -> set[str]:
    """Check that base and adapter answer as the merged model; return the adapter's layers."""
    base = AutoModelForCausalLM.from_pretrained(site.model)
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(site.artifact)))
    merged = logits(AutoModelForCausalLM.from_pretrained(site.artifact / "merged"))
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(adapted, before, atol=1e-2)
    with safe_open(site.artifact / "adapter_model.safetensors", "pt") as file:
        return {key.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("mixture", FAMILIES, indirect=True)
def test_an_adapter_is_for_linear_layers_and_not_for_experts(
    mixture: Site, request: pytest.FixtureRequest
) -> None:
    # Experts would take no dropout.
    adapter = {"type": "lora", "lora": {"rank": 4, "dropout": 0.1}}
    config = mixture.job(make_plan(), adapter=adapter, output=MERGED)
    assert mixture.run(config) == 0, mixture.result().message
    shared = SHARED if "qwen2_moe" in request.node.name else set()
    assert check_adapter(mixture) == ATTENTION | shared
    assert losses(mixture)[-1] < losses(mixture)[0]


def test_preparation_tells_what_experts_there_are(mixture: Site) -> None:
    preparation = mixture.prepare(make_config(make_plan())).preparation
    assert preparation is not None
    expected = Experts(count=4, per_token=2, size=64, shared_size=0, layers=2)
    assert preparation.model.experts == expected


def test_experts_get_an_adapter_when_their_layers_are_named(mixture: Site) -> None:
    adapter = {"type": "lora", "lora": {"rank": 4, "targetModules": EXPERTS}}
    config = mixture.job(make_plan(), adapter=adapter, output=MERGED)
    assert mixture.run(config) == 0, mixture.result().message
    assert check_adapter(mixture) == {"q_proj", "experts", "base_layer"}
    assert losses(mixture)[-1] < losses(mixture)[0]


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (
            {"targetModules": EXPERTS, "dropout": 0.1},
            "include experts.* leave adapter.lora.dropout",
        ),
        ({"targetModules": EXPERTS, "dora": True}, "include experts.* leave adapter.lora.dora out"),
        ({"targetModules": ["gate_proj"]}, "gate_proj without also targeting up_proj"),
    ],
)
def test_what_experts_cannot_have_is_refused(
    mixture: Site, lora: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobFailure, match=f"adapter.lora.targetModules: .*{words}"):
        mixture.job(adapter={"type": "lora", "lora": lora})


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_all_weights_train_routers_and_experts_too(mixture: Site, checkpointing: Any) -> None:
    plan = make_plan(gradient_checkpointing=checkpointing)
    config = mixture.job(plan, adapter={"type": "full"})
    assert mixture.run(config) == 0, mixture.result().message
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
        for folder in (mixture.model, mixture.artifact)
    )
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert losses(mixture)[-1] < losses(mixture)[0]


def test_the_linear_layers_of_a_mixture_in_float8_learn_alike(mixture: Site) -> None:
    found = []
    for precision in ("bf16", "float8"):
        plan = make_plan(precision=precision, gpus=1, gpus_per_node=1)
        training = {"maxSteps": 6, "batchSize": 4, "learningRate": 0.01, "precision": precision}
        config = mixture.job(plan, training=training)
        assert mixture.run(config, environment=CPU) == 0, mixture.result().message
        found.append(losses(mixture))
        mixture.clear()
    assert found[1] != found[0]
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_qlora_leaves_experts_as_they_are(mixture: Site) -> None:
    config = mixture.job(make_plan(), adapter={"type": "qlora"}, output=MERGED)
    assert mixture.run(config) == 0, mixture.result().message
    assert losses(mixture)[-1] < losses(mixture)[0]
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
        for folder in (mixture.model, mixture.artifact / "merged")
    )
    same = {name.split(".")[-2] for name in before if torch.equal(before[name], after[name])}
    assert "experts" in same
    assert not same & ATTENTION
