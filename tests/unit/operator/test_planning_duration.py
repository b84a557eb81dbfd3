"""How long training takes, by speeds that were measured."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.status import Plan
from finetune_operator.planning import duration, expected_gpu_hours
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.calibration import calibration_of
from unit.operator.builders import make_plan_of, make_preparation, make_spec

H100 = "NVIDIA-H100-80GB-HBM3"
RUN: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B", "method": "sft", "adapter": "lora", "rank": 16,
    "length": 200, "microBatch": 2, "checkpointing": "none", "compiled": False,
    "tokensPerSecond": 10_000,
}  # fmt: skip
EIGHT_B = facts_of_name("meta-llama/Llama-3.1-8B")
SIXTEEN_SECONDS_OF_TOKENS = 16 * 10_000


def hours(
    monkeypatch: pytest.MonkeyPatch,
    *runs: dict[str, Any],
    plan: dict[str, Any] | None = None,
    product: str = H100,
    **parts: Any,
) -> float | None:
    """Return the expected GPU-hours of 160,000 tokens in rows of 200, with these measured runs."""
    calibration = replace(calibration_of(H100), runs=runs)
    monkeypatch.setattr(duration, "calibration_of", lambda _: calibration)
    resources = {"gpu": {"product": product, "memory": "80Gi"}}
    spec = make_spec(**{"resources": resources, "training": {"compile": "never"}, **parts})
    made: Plan = make_plan_of(resources=resources, training={"compile": "never"})
    assert EIGHT_B is not None
    preparation = make_preparation()
    facts = preparation.dataset.model_copy(update={"tokens": SIXTEEN_SECONDS_OF_TOKENS})
    preparation = preparation.model_copy(update={"model": EIGHT_B[1], "dataset": facts})
    known = {"gradient_checkpointing": "none", "compile": False}
    return expected_gpu_hours(spec, preparation, made.model_copy(update=known | (plan or {})))


def test_the_tokens_of_all_epochs_at_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hours(monkeypatch, RUN) == pytest.approx(16 / 3600)
    twice = {"compile": "never", "epochs": 2}
    assert hours(monkeypatch, RUN, training=twice) == pytest.approx(32 / 3600)


def test_steps_win_over_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"maxSteps": 50, "batchSize": 8, "epochs": 3}
    expected = 50 * 8 * 200 / 10_000 / 3600
    assert hours(monkeypatch, RUN, training=steps) == pytest.approx(expected)


def test_packed_rows_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"maxSteps": 50, "batchSize": 8, "packing": True, "maxLength": 4096}
    found = hours(monkeypatch, RUN, training=steps, plan={"max_length": 4096})
    assert found == pytest.approx(50 * 8 * 4096 / 10_000 / 3600)


def test_several_gpus_take_as_many_gpu_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hours(monkeypatch, RUN, plan={"gpus": 4}) == pytest.approx(16 / 3600)


def test_a_larger_model_takes_longer_and_the_nearest_run_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smaller = RUN | {"model": "meta-llama/Llama-3.2-3B", "tokensPerSecond": 20_000}
    found = hours(monkeypatch, smaller)
    assert found is not None
    assert found > 1.5 * 8 / 3600
    assert hours(monkeypatch, smaller, RUN) == pytest.approx(16 / 3600)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "meta-llama/Llama-3.1-70B"},
        {"model": "nobodys/model"},
        {"method": "dpo"},
        {"adapter": "full"},
        {"checkpointing": "full"},
        {"compiled": True},
    ],
)
def test_a_run_that_is_unlike_the_job_tells_nothing(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hours(monkeypatch, RUN | change) is None


def test_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: value for name, value in RUN.items() if name != "tokensPerSecond"}
    assert hours(monkeypatch, without) is None
    assert hours(monkeypatch, RUN, plan={"gpu_product": "NVIDIA-L4"}) is None
    assert hours(monkeypatch, RUN, plan={"gpu_product": None}) is None
    assert hours(monkeypatch, RUN, plan={"gpus": 0}) is None
    assert hours(monkeypatch, RUN, method="dpo") is None


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen1.5-MoE-A2.7B", 2.7),
        ("meta-llama/Llama-3.1-8B", 8.0),
    ],
)
def test_a_token_is_multiplied_by_as_many_weights_as_the_models_makers_say(
    name: str, billions: float
) -> None:
    named = facts_of_name(name)
    assert named is not None
    model = named[1]
    looked_up = model.vocabulary * model.hidden_size
    found = duration.multiplied_weights(model) + looked_up
    assert found == pytest.approx(billions * 1e9, rel=0.02)
