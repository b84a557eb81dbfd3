"""What Prometheus sees: every metric named by the conventions, none without bounds."""

import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from finetune_api.metrics import LOGGED, OWN, PARTS, SECONDS
from finetune_api.spec import Method
from finetune_api.stability import rules_of
from finetune_api.status import Finding, Preparation
from finetune_api.trainer import TrainerConfig
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.server import TrainingCollector
from finetune_trainer.utilization import flops_budget, flops_per_token
from unit.api.samples import preparation
from unit.trainer.builders import make_config, make_plan

JOB = {"namespace": "demo", "finetunejob": "chat"}


def _board(method: Method) -> ProgressBoard:
    board = ProgressBoard()
    keys = [metric.key.replace("*", "be-short") for metric in LOGGED if method in metric.methods]
    board.measured(dict.fromkeys(keys, 0.5) | {f"eval_{key}": 0.25 for key in keys})
    board.measured({"rewards/be-kind/mean": 0.75, "made/up/by-someone": 1.0, "epoch": 2.0})
    board.measured({f"{SECONDS}{part}": 0.125 for part in PARTS})
    finding = Finding(rule="loss-jump", severity="Warning", step=3, message="m", advice="a")
    board.found([finding], rules_of(method))
    board.update(step=3, total_steps=9, tokens_per_second=100.0, eta_seconds=4)
    board.checkpointed(2)
    board.step_seconds, board.peak_tokens_per_second = 0.5, 400.0
    return board


def _families(board: ProgressBoard) -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(TrainingCollector(board, JOB))
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize("method", list(Method))
def test_names_follow_the_conventions_of_prometheus(method: Method) -> None:
    """The rules of `promtool check metrics` that apply to gauges and counters."""
    words = {"gauge", "counter", "summary", "histogram", "untyped", "milliseconds", "minutes"}
    words |= {"hours", "days", "percent", "kilobytes", "megabytes", "gigabytes", "kibibytes"}
    abbreviations = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "m", "h", "d"}
    for name, family in _families(_board(method)).items():
        assert re.fullmatch(r"finetune(_[a-z0-9]+)+", name)
        assert family.documentation.endswith("."), name
        parts = set(name.split("_"))
        assert not parts & (words | abbreviations), name
        assert not name.endswith(("_total", "_bucket", "_sum", "_count", "_info")), name
        for sample in family.samples:
            assert sample.name == name + ("_total" if family.type == "counter" else "")
            assert sample.labels.items() >= JOB.items()


def test_every_value_is_under_its_name() -> None:
    families = _families(_board(Method.GRPO))
    values = {
        (sample.name, *sorted(sample.labels.items() - JOB.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["finetune_loss",] == 0.5
    assert values["finetune_eval_loss",] == 0.25
    assert values["finetune_entropy_nats",] == 0.5
    assert values["finetune_completion_mean_tokens",] == 0.5
    assert values["finetune_reward_function_mean", ("reward", "be-short")] == 0.5
    assert values["finetune_reward_function_mean", ("reward", "be-kind")] == 0.75
    assert values["finetune_model_flops_utilization_ratio",] == 0.25
    assert {values["finetune_step_part_seconds", ("part", part)] for part in PARTS} == {0.125}
    assert values["finetune_stability_verdict",] == 1
    count = "finetune_stability_findings_total"
    assert values[count, ("rule", "loss-jump"), ("severity", "Warning")] == 1
    assert values[count, ("rule", "entropy-collapse"), ("severity", "Critical")] == 0
    assert values["finetune_host_memory_peak_bytes",] > 1e6


def test_what_is_not_in_the_catalogue_is_not_exported() -> None:
    names = _families(_board(Method.GRPO))
    assert [name for name in names if "made" in name or "someone" in name] == []


def test_no_two_metrics_share_a_name() -> None:
    names = [metric.name for metric in OWN] + [f"finetune_{metric.name}" for metric in LOGGED]
    assert len(set(names)) == len(names)


def test_a_board_without_values_is_served() -> None:
    assert {"finetune_step", "finetune_trained_tokens"} <= _families(ProgressBoard()).keys()


def _shape(**model: Any) -> Preparation:
    """Return the shape of Llama-3.1-8B, on rows of 4096 tokens."""
    found = preparation()
    dataset = found.dataset.model_copy(update={"mean_tokens": 4096.0})
    return Preparation(model=found.model.model_copy(update=model), dataset=dataset)


def _config(shape: Preparation, **spec: Any) -> TrainerConfig:
    return make_config(make_plan(gpus=2), **spec).model_copy(update={"preparation": shape})


@pytest.mark.parametrize(("adapter", "gflops"), [("lora", 33.2), ("qlora", 33.2), ("full", 48.2)])
def test_training_takes_what_the_shape_and_the_adapter_say(adapter: str, gflops: float) -> None:
    config = _config(_shape(), adapter={"type": adapter})
    # 7.50e9 weights are multiplied with; 4096 tokens of attention are 3.2e9 more.
    assert flops_per_token(config) == pytest.approx(gflops * 1e9, rel=0.002)
    budget = flops_budget(config, "NVIDIA H100 80GB HBM3")
    assert budget == pytest.approx(2 * 989e12 / (gflops * 1e9), rel=0.002)
    assert flops_budget(config, "cpu") is None


def test_what_is_looked_up_or_unused_takes_nothing() -> None:
    untied, tied = _shape(), _shape(tied_embeddings=True)
    embedding = 4 * untied.model.vocabulary * untied.model.hidden_size
    whole = flops_per_token(_config(tied))
    assert whole is not None
    assert flops_per_token(_config(untied)) == whole - embedding
    # A reward model has one output in place of the vocabulary's.
    assert flops_per_token(_config(untied, method="reward")) == whole - 2 * embedding


def test_utilisation_is_unknown_before_preparation() -> None:
    assert flops_per_token(make_config(make_plan())) is None
