"""Preference methods on tiny models: they learn, they resume, and what they make loads again."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.status import ModelStart
from finetune_api.trainer import TrainerConfig
from unit.trainer.builders import make_config, make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption

METHODS = ("dpo", "kto", "orpo", "reward")
QUESTION = [{"role": "user", "content": "number 7"}]


def pairs(count: int) -> list[dict[str, Any]]:
    """Return questions whose better answers are a's, and whose worse ones are b's."""
    return [
        {"question": f"number {number}", "chosen": "a" * (3 + number % 4), "rejected": "b" * 4}
        for number in range(count)
    ]


def job(
    site: Site, method: str, starts: dict[str, ModelStart] | None = None, **fields: Any
) -> TrainerConfig:
    """Prepare a job on pairs; with dropout the random state matters, and sums between logs do."""
    site.write_data(pairs(40))
    training = {
        "maxSteps": 16,
        "batchSize": 4,
        "learningRate": 0.01,
        "checkpoint": {"everySteps": 5},
        "logEverySteps": 3,
        "extra": {"disable_dropout": False},
    }
    spec: dict[str, Any] = {
        "method": method,
        "dataset": {"source": "pvc://data/rows.jsonl", "evalFraction": 0.2},
        "adapter": {"type": "lora", "lora": {"rank": 4, "dropout": 0.2}},
        "training": training | fields.pop("training", {}),
        "output": {"claim": "out", "merged": True},
    }
    config = make_config(make_plan(), **(spec | fields))
    config = config.model_copy(update={"starts": starts or {}})
    site.prepare(config)
    return config


def finished(site: Site, config: TrainerConfig) -> dict[str, float]:
    """Run to the end and return the result's metrics."""
    assert site.run(config) == 0, site.result().message
    return site.result().metrics


@pytest.fixture(scope="module", params=METHODS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> tuple[str, Site]:
    """Return a method and the site of its uninterrupted run."""
    site = Site(tmp_path_factory.mktemp(request.param))
    shutil.copytree(tiny_model, site.model)
    finished(site, job(site, request.param))
    return request.param, site


def test_held_out_answers_are_told_apart(trained: tuple[str, Site]) -> None:
    method, site = trained
    metrics = site.result().metrics
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    if method == "kto":
        assert metrics["eval_rewards/margins"] > 0.1 > metrics["eval_rewards/margins_before"]
    else:
        name = "eval_accuracy" if method == "reward" else "eval_rewards/accuracies"
        assert metrics[name] == 1.0
        assert f"{name}_before" in metrics
    assert metrics["num_tokens"] > 0


def test_a_killed_run_ends_like_an_uninterrupted_one(site: Site, trained: tuple[str, Site]) -> None:
    method, uninterrupted = trained
    config = job(site, method)
    assert site.run(config, Interruption("step", 12)) == -signal.SIGKILL
    finished(site, config)
    assert site.metrics() == uninterrupted.metrics()


def test_adapters_and_merged_models_load_and_agree(trained: tuple[str, Site]) -> None:
    from peft import PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    method, site = trained
    options: dict[str, Any] = {"num_labels": 1} if method == "reward" else {}
    kind: Any = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    base = kind.from_pretrained(site.model, **options)
    adapted = PeftModel.from_pretrained(base, str(site.artifact)).eval()
    merged = kind.from_pretrained(site.artifact / "merged").eval()
    assert merged.config.pad_token_id is not None
    tokenizer = AutoTokenizer.from_pretrained(site.artifact)
    answers = [
        [*QUESTION, {"role": "assistant", "content": content}] for content in ("aaaa", "bbbb")
    ]
    inputs: Any = tokenizer.apply_chat_template(answers, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        logits = merged(**inputs).logits
        torch.testing.assert_close(adapted(**inputs).logits, logits, atol=1e-4, rtol=1e-3)
    if method == "reward":
        assert logits[0] > logits[1] + 0.5


@pytest.mark.parametrize("trained", ["dpo"], indirect=True)
def test_a_continued_adapter_is_its_own_reference_also_when_resumed(
    tmp_path: Path, trained: tuple[str, Site], tiny_model: Path
) -> None:
    start = ModelStart(base="pvc://models/tiny", adapter="pvc://out/first")
    metrics = []
    for interruption in (None, Interruption("step", 6)):
        site = Site(tmp_path / str(interruption and interruption.when))
        shutil.copytree(tiny_model, site.model)
        shutil.copytree(trained[1].artifact, site.paths.sources / "pvc/out/first")
        model = {"source": "job://first", "jobAdapter": "continue"}
        config = job(site, "dpo", {"job://first": start}, model=model, output={"claim": "out"})
        if interruption:
            assert site.run(config, interruption) == -signal.SIGKILL
        assert finished(site, config)["eval_rewards/accuracies_before"] == 0
        metrics.append(site.metrics())
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_full_fine_tuning(site: Site, method: str) -> None:
    config = job(site, method, adapter={"type": "full"}, output={"claim": "out"})
    metrics = finished(site, config)
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    assert (site.artifact / "model.safetensors").exists()


@pytest.mark.parametrize(("method", "bits"), [("dpo", 8), ("orpo", 4), ("reward", 4)])
def test_quantised_bases(site: Site, method: str, bits: int) -> None:
    adapter = {"type": "qlora", "quantization": {"bits": bits}}
    metrics = finished(site, job(site, method, adapter=adapter))
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    assert (site.artifact / "merged/model.safetensors").exists()


@pytest.mark.parametrize(
    "losses",
    [
        ["sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard"],
        ["aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"],
    ],
)
def test_all_losses_of_dpo(site: Site, losses: list[str]) -> None:
    options = {"losses": losses, "lossWeights": [0.5] * len(losses), "labelSmoothing": 0.1}
    config = job(site, "dpo", dpo=options, training={"maxSteps": 2, "logEverySteps": 1})
    assert finished(site, config)["loss"] > 0
