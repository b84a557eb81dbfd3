"""How long training takes, by speeds that were measured, else by arithmetic."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from finetune_api import flops
from finetune_api.lengths import padded_tokens
from finetune_api.status import Plan
from finetune_operator.planning import Expected, duration, expected_time
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


def expect(
    monkeypatch: pytest.MonkeyPatch,
    *runs: dict[str, Any],
    plan: dict[str, Any] | None = None,
    product: str = H100,
    data: dict[str, Any] | None = None,
    **parts: Any,
) -> Expected | None:
    """Return the expected GPU-hours of 160,000 tokens in rows of 200, with these measured runs."""
    calibration = replace(calibration_of(H100), runs=runs)
    monkeypatch.setattr(duration, "calibration_of", lambda _: calibration)
    resources = {"gpu": {"product": product, "memory": "80Gi"}}
    spec = make_spec(**{"resources": resources, "training": {"compile": "never"}, **parts})
    made: Plan = make_plan_of(resources=resources, training={"compile": "never"})
    assert EIGHT_B is not None
    preparation = make_preparation()
    rows = SIXTEEN_SECONDS_OF_TOKENS // 200
    known_rows = {"rows": rows, "mean_tokens": 200} | (data or {})
    facts = preparation.dataset.model_copy(update=known_rows)
    preparation = preparation.model_copy(update={"model": EIGHT_B[1], "dataset": facts})
    known = {"gradient_checkpointing": "none", "compile": False}
    return expected_time(spec, preparation, made.model_copy(update=known | (plan or {})))


def hours(monkeypatch: pytest.MonkeyPatch, *runs: dict[str, Any], **parts: Any) -> float:
    """Return the GPU-hours, which these runs have measured."""
    found = expect(monkeypatch, *runs, **parts)
    assert found is not None
    assert found.basis == "Measured"
    return found.gpu_hours


def test_the_tokens_of_all_epochs_at_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hours(monkeypatch, RUN) == pytest.approx(16 / 3600)
    twice = {"compile": "never", "epochs": 2}
    assert hours(monkeypatch, RUN, training=twice) == pytest.approx(32 / 3600)


def test_steps_win_over_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"maxSteps": 50, "batchSize": 8, "epochs": 3}
    wanted = 50 * 8 * 200 / 10_000 / 3600
    assert hours(monkeypatch, RUN, training=steps) == pytest.approx(wanted)


def test_packed_rows_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"maxSteps": 50, "batchSize": 8, "packing": True, "maxLength": 4096}
    packed = RUN | {"packed": True}
    found = hours(monkeypatch, packed, training=steps, plan={"max_length": 4096})
    assert found == pytest.approx(50 * 8 * 4096 / 10_000 / 3600)


def test_padding_takes_as_long_as_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = Counter([100, 300])
    data = {"padded_tokens": padded_tokens(lengths)}
    assert hours(monkeypatch, RUN, data=data, plan={"micro_batch_size": 1}) == pytest.approx(
        16 / 3600
    )
    # Of two rows one in four times both are short.
    for size in (2, 3):
        padded = hours(monkeypatch, RUN, data=data, plan={"micro_batch_size": size})
        assert padded == pytest.approx(16 / 3600 * 250 / 200, rel=0.01)
    many = hours(monkeypatch, RUN, data=data, plan={"micro_batch_size": 48})
    assert many == pytest.approx(16 / 3600 * 300 / 200, rel=0.02)
    packed = {"packing": True, "maxSteps": 10, "maxLength": 4096, "compile": "never"}
    row = RUN | {"packed": True}
    found = [hours(monkeypatch, row, data=each, training=packed) for each in ({}, data)]
    assert found[0] == found[1]


def test_several_gpus_take_as_many_gpu_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hours(monkeypatch, RUN, plan={"gpus": 4}) == pytest.approx(16 / 3600)


def test_a_pair_is_two_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = RUN | {"method": "dpo"}
    assert hours(monkeypatch, pairs, method="dpo") == pytest.approx(32 / 3600)


def test_a_larger_model_takes_longer_and_the_nearest_run_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smaller = RUN | {"model": "meta-llama/Llama-3.2-3B", "tokensPerSecond": 20_000}
    # 7.5 billion weights against 3.2 billion.
    assert hours(monkeypatch, smaller) == pytest.approx(2.3 * 8 / 3600, rel=0.05)
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
        {"precision": "float8"},
        {"packed": True},
    ],
)
def test_a_run_that_is_unlike_the_job_tells_nothing(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = expect(monkeypatch, RUN | change)
    assert found is not None
    assert found.basis == "Arithmetic"


def test_a_dense_run_tells_nothing_of_a_mixture_of_experts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = RUN | {"model": "meta-llama/Llama-3.2-3B"}
    mixture = RUN | {"model": "Qwen/Qwen3-30B-A3B"}
    assert hours(monkeypatch, dense, mixture) == hours(monkeypatch, dense)


def test_what_was_cut_from_rows_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hours(monkeypatch, RUN, plan={"max_length": 100}) < 0.51 * 16 / 3600


def by_arithmetic(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> float:
    """Return the GPU-hours without a run that was measured."""
    found = expect(monkeypatch, **parts)
    assert found is not None
    assert found.basis == "Arithmetic"
    return found.gpu_hours


def test_without_a_like_run_the_arithmetic_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 FLOPs for each of 7.5 billion weights that a token is multiplied by, and attention.
    flops = 16 * 10_000 * (4 * 7.505e9 + 6 * 32 * 4096 * 200)
    found = by_arithmetic(monkeypatch)
    assert found == pytest.approx(flops / (0.4 * 989e12) / 3600, rel=1e-3)
    slower = by_arithmetic(monkeypatch, plan={"gpu_product": "NVIDIA-L4"})
    assert slower == pytest.approx(found * 989 / 121)


def test_checkpointing_that_keeps_attention_takes_less_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = ("none", "selective", "full")
    none, selective, full = (
        by_arithmetic(monkeypatch, plan={"gradient_checkpointing": way}) for way in ways
    )
    assert none < selective < full


def test_a_reward_model_has_no_output_head(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = 2 * by_arithmetic(monkeypatch)
    assert by_arithmetic(monkeypatch, method="reward") == pytest.approx(0.93 * pairs, rel=0.01)


def test_further_forward_passes_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    once = by_arithmetic(monkeypatch)
    assert by_arithmetic(monkeypatch, method="dpo") == pytest.approx(2 * 1.5 * once, rel=0.01)
    assert by_arithmetic(monkeypatch, method="kto") == pytest.approx(2.5 * once, rel=0.01)
    again = {"gradient_checkpointing": "full"}
    assert by_arithmetic(monkeypatch, plan=again) == pytest.approx(1.5 * once, rel=0.01)


def test_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: value for name, value in RUN.items() if name != "tokensPerSecond"}
    found = expect(monkeypatch, without)
    assert found is not None
    assert found.basis == "Arithmetic"
    assert expect(monkeypatch, RUN, plan={"gpu_product": None}) is None
    assert expect(monkeypatch, RUN, plan={"gpu_product": "NVIDIA-Next"}) is None
    assert expect(monkeypatch, RUN, plan={"gpus": 0}) is None
    assert expect(monkeypatch, RUN, plan={"precision": "float32"}) is None
    assert expect(monkeypatch, RUN, plan={"gpu_product": "Tesla-T4"}) is None
    rewards = [{"name": "short", "builtin": "length"}]
    assert expect(monkeypatch, RUN, method="grpo", rewards=rewards) is None


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
    found = flops.multiplied_weights(model) + looked_up
    assert found == pytest.approx(billions * 1e9, rel=0.02)
