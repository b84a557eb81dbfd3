"""Every method, from a manifest to a model that loads; chains; several pods; a rollback."""

import json
from typing import Any

import pytest

from e2e.site import FINISHED, MODELS, SOURCES, Site, make_job
from harness import install

pytestmark = pytest.mark.e2e

TRAINING = {"maxSteps": 4, "batchSize": 8, "learningRate": 0.001}
REWARD = {"name": "length", "builtin": "length"}
GENERATION = {"groupSize": 4, "maxCompletionLength": 8}

LEARNED = {"maxSteps": 30, "batchSize": 16, "learningRate": 0.01, "warmupRatio": 0}
SAMPLED = {"groupSize": 8, "maxCompletionLength": 12}
VOWELS = """
def vowels(completions, **kwargs):
    return [sum(text.count(v) for v in "aeiou") / max(len(text), 1) for text in completions]
"""
FUNCTIONS = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "rewards"},
    "data": {"rewards.py": VOWELS},
}


def data(name: str, **fields: Any) -> dict[str, Any]:
    """Return a dataset of the sources' claim."""
    return {"source": f"pvc://{SOURCES}/{name}.jsonl", **fields}


METHODS: dict[str, dict[str, Any]] = {
    "m-sft-qlora": {"adapter": {"type": "qlora"}},
    "m-dpo-lora": {"method": "dpo", "dataset": data("preferences", evalFraction=0.2)},
    "m-kto-lora": {"method": "kto", "dataset": data("labels", evalFraction=0.2)},
    "m-orpo-full": {
        "method": "orpo",
        "dataset": data("preferences", evalFraction=0.2),
        "adapter": {"type": "full"},
    },
    "m-reward-lora": {"method": "reward", "dataset": data("preferences", evalFraction=0.2)},
    "m-grpo-full": {
        "method": "grpo",
        "dataset": data("prompts", evalFraction=0.2),
        "adapter": {"type": "full"},
        "rewards": [{"name": "vowels", "function": "configmap://rewards/rewards.py:vowels"}],
        "generation": SAMPLED,
    },
    "m-ebft-full": {
        "method": "ebft",
        "adapter": {"type": "full"},
        "ebft": {"pooling": "completion_mean", "featureLayers": [0.5, 1.0]},
        "dataset": data("answers", evalFraction=0.2),
        "generation": SAMPLED,
    },
}

IMPROVES = {
    "m-sft-qlora": ("eval_loss", -0.5),
    "m-dpo-lora": ("eval_rewards/margins", 0.2),
    "m-kto-lora": ("eval_loss", -0.01),
    "m-orpo-full": ("eval_loss", -0.5),
    "m-reward-lora": ("eval_loss", -0.2),
    "m-grpo-full": ("eval_reward", 0.1),
    "m-ebft-full": ("eval_ebft/alignment", 0.05),
}
"""What is measured on held-out rows, and by how much it changes at least."""

LOAD = """
import glob, sys
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for name in sys.argv[1:]:
    folder = "/claim/" + name
    files = [path.rsplit("/", 1)[1] for path in glob.glob(folder + "/*")]
    assert "report.html" in files, files
    if "adapter_config.json" in files:
        assert PeftConfig.from_pretrained(folder).base_model_name_or_path
        weights = load_file(folder + "/adapter_model.safetensors")
    else:
        weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert weights and all(bool(tensor.isfinite().all()) for tensor in weights.values())
    print(name, "loads")
"""


@pytest.fixture(scope="module")
def trained(site: Site) -> dict[str, dict[str, Any]]:
    """Status of one job for each method; applied at once, two of them train at a time."""
    site.kubectl.apply(
        FUNCTIONS,
        *(make_job(name, **{"training": LEARNED, **spec}) for name, spec in METHODS.items()),
    )
    return {name: site.finish(name, 600)["status"] for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_method_ends_with_a_model(trained: dict[str, dict[str, Any]], name: str) -> None:
    status = trained[name]
    assert status["phase"] == "Succeeded", status
    assert status["progress"]["steps"] == "30/30"
    assert status["artifact"]["uri"] == f"pvc://{MODELS}/{name}"
    assert status["stability"]["verdict"] in {"Stable", "Warning"}


def test_models_load(site: Site, trained: dict[str, dict[str, Any]]) -> None:
    script = f"python3 -c '{LOAD}' {' '.join(trained)}"
    said = install.read_claim(site.kubectl, MODELS, site.images["trainer"], script)
    assert said.splitlines() == [f"{name} loads" for name in trained]


def test_models_have_learned(site: Site, trained: dict[str, dict[str, Any]]) -> None:
    logged = site.logged(*trained)
    moved = {}
    for name, (metric, change) in IMPROVES.items():
        values = [entry[metric] for entry in logged[name] if metric in entry]
        moved[name] = (values[-1] - values[0]) / change
    assert min(moved.values()) >= 1, moved


def test_three_chained_jobs_in_any_order(site: Site) -> None:
    """The last is applied first: each waits for the one before and starts from its model."""
    jobs = [
        make_job(
            "c-grpo",
            method="grpo",
            model={"source": "job://c-dpo", "jobAdapter": "continue"},
            dataset=data("prompts"),
            training=TRAINING,
            rewards=[REWARD],
            generation=GENERATION,
        ),
        make_job(
            "c-dpo",
            method="dpo",
            model={"source": "job://c-sft"},
            dataset=data("preferences"),
            training=TRAINING,
        ),
    ]
    site.kubectl.apply(*jobs)
    waiting = site.wait("c-grpo", lambda status: "job c-dpo" in status.get("message", ""))
    assert waiting["status"]["phase"] == "Pending"
    site.kubectl.apply(make_job("c-sft", training=TRAINING))
    for name in ("c-sft", "c-dpo", "c-grpo"):
        status = site.finish(name)["status"]
        assert status["phase"] == "Succeeded", (name, status)
    dpo = start_of(site, "c-dpo", "job://c-sft")
    assert dpo == {"base": f"pvc://{SOURCES}/tiny", "merge": [f"pvc://{MODELS}/c-sft"]}
    assert start_of(site, "c-grpo", "job://c-dpo") == {
        **dpo,
        "adapter": f"pvc://{MODELS}/c-dpo",
    }


def start_of(site: Site, name: str, source: str) -> dict[str, Any]:
    """Return what a job's source stood for, without its size."""
    start: dict[str, Any] = site.kubectl.get("finetunejob", name)["status"]["starts"][source]
    assert start.pop("weightsBytes") > 0
    return start


def test_a_failed_predecessor_is_said(site: Site) -> None:
    site.kubectl.apply(
        make_job("f-second", model={"source": "job://f-first"}),
        make_job("f-first", dataset=data("pairs")),
    )
    seen = site.wait("f-second", lambda status: "Failed" in status.get("message", ""))
    (condition,) = [c for c in seen["status"]["conditions"] if c["type"] == "SourcesReady"]
    assert (condition["status"], condition["reason"]) == ("False", "JobFailed")
    assert seen["status"]["phase"] == "Pending"
    site.kubectl.delete("finetunejob", "f-second", "f-first")


def test_two_pods_train_one_model(site: Site) -> None:
    """Two pods of one process each, which meet through the headless Service, over gloo."""
    job = make_job(
        "two-pods",
        training={"maxSteps": 6, "batchSize": 8},
        resources={
            "gpu": {"count": 2},
            "cpu": "500m",
            "nodes": 2,
            "strategy": "ddp",
            "workspace": {"claim": SOURCES},
        },
    )
    site.kubectl.apply(job)
    status = site.finish("two-pods")["status"]
    assert status["phase"] == "Succeeded", status
    assert (status["plan"]["nodes"], status["plan"]["gpusPerNode"]) == (2, 1)
    assert len(site.trainer_pods("two-pods")) == 2
    assert status["progress"]["steps"] == "6/6"


def test_data_that_turns_bad_is_rolled_back(site: Site) -> None:
    """Rows in their own order: easy ones, then noise, then easy ones again."""
    job = make_job(
        "rolled-back",
        dataset=data("turns-bad"),
        training={
            "maxSteps": 75,
            "batchSize": 16,
            "learningRate": 0.01,
            "checkpoint": {"everySteps": 10, "keep": 5},
            "extra": {"train_sampling_strategy": "sequential"},
        },
        stability={"policy": "Rollback"},
    )
    site.kubectl.apply(job)
    status = site.wait("rolled-back", lambda status: status.get("phase") in FINISHED, 300)["status"]
    assert status["phase"] == "Succeeded", status
    (rollback,) = status["rollbacks"][:1]
    assert rollback["toStep"] <= 40 < rollback["step"]
    assert "RolledBack" in [attempt.get("reason") for attempt in status["attempts"]]
    lines = install.read_claim(
        site.kubectl, MODELS, site.images["trainer"], "cat /claim/rolled-back/metrics.jsonl"
    ).splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "loss" in row]
    skipped = set(range(rollback["toStep"] + 1, rollback["step"] + 1))
    assert not skipped & set(steps)
    assert steps[-1] == 75
