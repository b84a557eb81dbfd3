"""Packed rows: full, and the same training as with each document in a row of its own."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer.data.dataset import EVAL, load_rows
from finetune_trainer.device import Device
from finetune_trainer.packing import attention_for, check_packs, pack
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.run import build
from gpu import packing as on_a_gpu
from unit.trainer.builders import make_config, make_plan
from unit.trainer.conftest import Site
from unit.trainer.ranks import run_ranks

LENGTH = 160
DOCUMENTS = 12
_TEXTS = (
    "a short one",
    "one of a middling length, such as this",
    "the longest of all: " + "x" * 40,
)


def documents(count: int = DOCUMENTS) -> list[dict[str, str]]:
    """Return texts of which three, one of each length, fill most of a row."""
    return [{"text": f"{number:02} is {_TEXTS[number % 3]}"} for number in range(count)]


def job(site: Site, *, packing: bool, processes: int = 1, **dataset: Any) -> TrainerConfig:
    """Prepare one step of SGD over all documents, in two micro-batches of each process."""
    rows = DOCUMENTS // 3 if packing else DOCUMENTS
    plan = make_plan(
        micro_batch_size=rows // 2 // processes,
        gradient_accumulation_steps=2,
        max_length=LENGTH,
        **({"gpus": 2, "gpus_per_node": 2, "strategy": "ddp"} if processes > 1 else {}),
    )
    training = {
        "maxSteps": 1,
        "batchSize": rows,
        "packing": packing,
        "learningRate": 1,
        "scheduler": "constant",
        "warmupRatio": 0,
        "maxGradNorm": 1000,
        "extra": {"optim": "sgd"},
    }
    source = {"source": "pvc://data/rows.jsonl", **dataset}
    return site.job(plan, dataset=source, training=training, adapter={"type": "full"})


def run(site: Site, config: TrainerConfig) -> list[dict[str, Any]]:
    """Run to the end and return what was logged."""
    if config.plan and config.plan.gpus:
        assert run_ranks(site, config) == [0, 0]
    else:
        assert site.run(config) == 0
    return site.metrics()


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packing_trains_fewer_and_fuller_rows(site: Site, strategy: str) -> None:
    training = {
        "epochs": 1,
        "batchSize": 1,
        "packing": True,
        "extra": {"packing_strategy": strategy},
    }
    plan = make_plan(micro_batch_size=1, gradient_accumulation_steps=1, max_length=256)
    assert site.run(site.job(plan, training=training)) == 0
    step = site.result().step
    assert step is not None
    assert 5 <= step <= 8


@pytest.mark.parametrize("length", [4096, 8192])
def test_rows_of_long_tailed_documents_are_full(length: int) -> None:
    lengths = random.Random(0)  # noqa: S311 - no secret
    sizes = [min(4096, round(lengths.lognormvariate(6, 1))) for _ in range(12_000)]
    tokens = [[1] * size for size in sizes]
    rows = pack(Dataset.from_dict({"input_ids": tokens, "labels": tokens}), length, "bfd")
    assert sum(sizes) / (len(rows) * length) > 0.99


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_packed_rows_is_that_of_its_documents(site: Site, processes: int) -> None:
    site.write_data(documents())
    entries, gradients = [], []
    start = load_file(site.model / "model.safetensors")
    for packing in (False, True):
        config = job(site, packing=packing, processes=processes if packing else 1)
        entries.append(run(site, config)[0])
        trained = load_file(site.artifact / "model.safetensors")
        # The learning rate is 1.
        gradients.append({name: start[name] - weight for name, weight in trained.items()})
        site.clear()
    apart, packed = entries
    assert packed["loss"] == pytest.approx(apart["loss"], rel=1e-6)
    assert (
        packed["num_tokens"]
        == apart["num_tokens"]
        == sum(len(row["text"]) + 1 for row in documents())
    )
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_held_out_loss_is_that_of_each_token(site: Site) -> None:
    site.write_data(documents(DOCUMENTS + 7))
    model = AutoModelForCausalLM.from_pretrained(site.model)
    losses, held_out = [], None
    for packing, processes in ((False, 1), (False, 2), (True, 1), (True, 2)):
        config = job(site, packing=packing, processes=processes, evalFraction=7 / 19)
        held_out = load_rows(site.paths.data, EVAL)
        losses.append(run(site, config)[0]["eval_loss"])
        site.clear()
    assert held_out is not None
    assert len(held_out) == 7
    rows = [(torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])) for row in held_out]
    with torch.no_grad():
        counted = [(model(ids, labels=ids).loss, ids.shape[1] - 1) for ids, _ in rows]
    expected = sum(loss * count for loss, count in counted) / sum(count for _, count in counted)
    assert losses == pytest.approx([float(expected)] * 4, rel=1e-5)


def test_a_document_changes_nothing_for_those_beside_it(site: Site) -> None:
    site.write_data(documents())
    config = job(site, packing=True)
    assert config.plan is not None
    device = Device(cuda=False, dtype=torch.float32)
    trainer = build(config, config.plan, site.paths, ProgressBoard(), device).trainer
    row = trainer.train_dataset[0]
    first, second, third = row["seq_lengths"]
    found = []
    for token in (40, 90):
        batch = trainer.data_collator([row])
        changed = slice(first, first + second)
        batch["input_ids"][0, changed] = token
        batch["labels"][0, changed] = -100
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        weights = trainer.model.named_parameters()
        found.append([loss.detach(), *(w.grad for name, w in weights if "proj" in name)])
    assert third
    assert len(found[0]) > 10
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_micro_batches_are_of_one_size_and_padding_is_not_learned(site: Site) -> None:
    site.write_data(documents(5))
    config = job(site, packing=True)
    assert config.plan is not None
    device = Device(cuda=False, dtype=torch.float32)
    trainer = build(config, config.plan, site.paths, ProgressBoard(), device).trainer
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    assert {tuple(values.shape) for values in batch.values()} == {(len(rows), LENGTH)}
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert batch["attention_mask"].sum() == tokens < len(rows) * LENGTH
    # All but the first of each document.
    assert (batch["labels"] != -100).sum() == tokens - 5


@pytest.mark.parametrize(
    ("kind", "options"),
    [("mamba2", {}), ("qwen3_next", {}), ("lfm2", {"layer_types": ["conv"] * 32}), ("bloom", {})],
)
def test_models_that_would_mix_documents_are_refused(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    AutoConfig.for_model(kind, **options).save_pretrained(tmp_path)
    packing = make_config(training={"packing": True}).spec
    with pytest.raises(JobFailure, match=f"training.packing is true, but in a {kind} "):
        check_packs(packing, tmp_path)
    check_packs(make_config().spec, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "own"])
def test_models_with_code_of_their_own_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing is known of what it does, also where it stands in for a model that is known."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", tmp_path / "cache")
    code = {"AutoModelForCausalLM": "own.Model"}
    if kind == "own":
        code["AutoConfig"] = "own.Config"
        text = "from transformers import PreTrainedConfig\n\nclass Config(PreTrainedConfig):\n"
        (tmp_path / "own.py").write_text(f"{text}    model_type = 'own'\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": code}))
    model = {"source": "hf://acme/own", "trustRemoteCode": True}
    words = r"training\.packing is true, but model\.source hf://acme/own runs Python code"
    with pytest.raises(JobFailure, match=words):
        check_packs(make_config(model=model, training={"packing": True}).spec, tmp_path)
    check_packs(make_config(model=model).spec, tmp_path)


def test_code_that_is_not_run_is_no_reason_to_refuse(tmp_path: Path) -> None:
    config = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_packs(make_config(training={"packing": True}).spec, tmp_path)


def test_gpus_skip_what_no_token_may_see(site: Site) -> None:
    model = AutoModelForCausalLM.from_pretrained(site.model)
    assert attention_for(model, cuda=True) == "flex_attention"
    assert attention_for(model, cuda=False) is None
    model.config.attention_dropout = 0.1
    assert attention_for(model, cuda=True) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="it takes the GPU where there is one")
def test_what_compares_them_on_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DEVICE", "cpu")
    assert on_a_gpu.main() == 0
