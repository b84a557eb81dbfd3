"""Jobs that start from another job's model: merged into its base, or trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from finetune_api.failures import Reason
from finetune_api.status import ModelStart
from finetune_api.trainer import JobFailure, TrainerConfig
from unit.trainer.builders import chat_rows, make_config, make_plan
from unit.trainer.conftest import Site

_BASE = "pvc://models/tiny"
_FIRST = "pvc://out/first"
_MERGE = ModelStart(base=_BASE, merge=[_FIRST])
_CONTINUE = ModelStart(base=_BASE, adapter=_FIRST)
_LORA: dict[str, Any] = {"type": "lora", "lora": {"rank": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The adapter of a first job, trained enough to matter."""
    site = Site(tmp_path_factory.mktemp("first"))
    shutil.copytree(tiny_model, site.model)
    site.write_data(chat_rows(40))
    assert site.run(site.job(adapter=_LORA)) == 0
    return site.artifact


def _second(site: Site, first: Path, start: ModelStart, **spec: Any) -> TrainerConfig:
    shutil.copytree(first, site.paths.sources / "pvc/out/first", dirs_exist_ok=True)
    job_adapter = "continue" if start.adapter else "merge"
    model = {"source": "job://first", "jobAdapter": job_adapter}
    config = make_config(make_plan(), model=model, **spec)
    return config.model_copy(update={"starts": {"job://first": start}})


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(20).unsqueeze(0)).logits
    return logits


def test_merging_adds_what_the_adapter_has_learned_to_the_base(site: Site, first: Path) -> None:
    site.prepare(_second(site, first, _MERGE))
    learned = load_file(first / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    change = (
        learned[f"base_model.model.{name}.lora_B.weight"]
        @ learned[f"base_model.model.{name}.lora_A.weight"]
    )
    before = _weights(site.model)[f"{name}.weight"]
    merged = _weights(site.paths.model)[f"{name}.weight"]
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(merged, before + 8 / 4 * change)
    assert sorted(path.name for path in site.paths.workspace.iterdir()) == ["data", "model"]


def test_what_is_merged_is_not_merged_again(site: Site, first: Path) -> None:
    config = _second(site, first, _MERGE)
    site.prepare(config)
    shutil.rmtree(site.paths.sources / "pvc/models")
    assert site.prepare(config).reason == "Succeeded"


def test_a_job_on_a_merged_model_hands_over_a_model_that_loads_by_itself(
    site: Site, first: Path
) -> None:
    config = _second(site, first, _MERGE)
    site.prepare(config)
    assert site.run(config) == 0
    artifact = site.result().artifact
    assert artifact is not None
    assert artifact.merged_uri == "pvc://out/tiny/merged"
    start = AutoModelForCausalLM.from_pretrained(site.paths.model)
    expected = _logits(PeftModel.from_pretrained(start, str(site.artifact)))
    whole = AutoModelForCausalLM.from_pretrained(site.artifact / "merged")
    torch.testing.assert_close(_logits(whole), expected, rtol=1e-4, atol=1e-4)
    adapter = json.loads((site.artifact / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "job://first"


def test_continuing_trains_the_adapter_from_where_it_is(site: Site, first: Path) -> None:
    training = {"maxSteps": 1, "batchSize": 4, "learningRate": 1e-9}
    config = _second(site, first, _CONTINUE, training=training)
    site.prepare(config)
    assert site.run(config) == 0
    learned = load_file(first / "adapter_model.safetensors")
    continued = load_file(site.artifact / "adapter_model.safetensors")
    torch.testing.assert_close(continued, learned)
    options = json.loads((site.artifact / "adapter_config.json").read_text())
    assert (options["r"], options["base_model_name_or_path"]) == (4, _BASE)
    result = site.result()
    assert result.artifact is not None
    assert result.artifact.merged_uri is None


def test_the_newest_tokenizer_is_used(site: Site, first: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(first, changed)
    (changed / "chat_template.jinja").write_text("{# changed #}" + "{{ messages[0].content }}")
    for start in (_MERGE, _CONTINUE):
        config = _second(site, changed, start, training={"maxSteps": 1, "assistantOnlyLoss": False})
        site.prepare(config)
        assert "changed" in (site.paths.model / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("start", "spec", "message"),
    [
        (_CONTINUE, {"adapter": {"type": "full"}}, "adapter.type is full"),
        (
            _CONTINUE,
            {"adapter": {"type": "lora", "lora": {"rank": 8, "alpha": 8}}},
            "adapter.lora asks for rank 8, but the adapter has 4",
        ),
        (
            _CONTINUE,
            {"adapter": {"type": "lora", "lora": _LORA["lora"] | {"targetModules": ["q_proj"]}}},
            "adapter.lora.targetModules is q_proj, but the adapter has down_proj, gate_proj",
        ),
        (
            ModelStart(base=_BASE, merge=["pvc://out/nowhere"]),
            {},
            "the adapter of model.source job://first is pvc://out/nowhere, but the claim out has",
        ),
        (
            ModelStart(base="pvc://models/nowhere", merge=[_FIRST]),
            {},
            "the base of model.source job://first is pvc://models/nowhere, but the claim models",
        ),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_refused(
    site: Site, first: Path, start: ModelStart, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobFailure) as caught:
        site.prepare(_second(site, first, start, **spec))
    assert message in caught.value.message


def test_a_job_that_is_not_resolved_is_refused(site: Site, first: Path) -> None:
    config = _second(site, first, _MERGE).model_copy(update={"starts": {}})
    with pytest.raises(JobFailure) as caught:
        site.prepare(config)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert "model.source is job://first, but job.json does not say" in caught.value.message


def test_a_reward_model_cannot_be_trained_to_write(site: Site) -> None:
    config = LlamaConfig.from_pretrained(site.model, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(site.model)
    with pytest.raises(JobFailure) as caught:
        site.prepare(make_config())
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
    assert "is a reward model (LlamaForSequenceClassification)" in caught.value.message
