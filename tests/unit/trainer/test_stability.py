"""The evaluator on metrics as TRL logs them: what it finds, when, and that clean runs are clean."""

import math
from typing import Any

import pytest

from bench.series import FAULTS, PLACES, clean
from finetune_api.spec import Method
from finetune_trainer.stability.evaluator import Detection, Evaluator


def observe(method: Method, series: list[dict[str, float]]) -> list[Detection]:
    evaluator = Evaluator(method)
    return [
        detection
        for step, values in enumerate(series, 1)
        for detection in evaluator.observe(step, values)
    ]


@pytest.mark.parametrize("method", list(Method))
def test_clean_runs_raise_nothing(method: Method) -> None:
    found = [detection for seed in range(20) for detection in observe(method, clean(method, seed))]
    assert [detection.finding() for detection in found if detection.rule.severity != "Info"] == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_soon_and_not_before(name: str, place: int) -> None:
    fault = FAULTS[name]
    found = observe(fault.method, fault.inject(clean(fault.method, 1), place, seed=1))
    found = [detection for detection in found if detection.rule.severity != "Info"]
    assert found[0].rule.name in fault.rules
    # The values of index `place` are those of the step after it.
    assert place < found[0].step <= place + 40
    assert {detection.rule.name for detection in found} & fault.rules


def test_a_finding_tells_the_first_abnormal_step() -> None:
    fault = FAULTS["data that turns bad"]
    found = observe(Method.SFT, fault.inject(clean(Method.SFT, 1), 200, seed=1))
    diverged = next(detection for detection in found if detection.rule.name == "loss-diverged")
    assert (diverged.since, diverged.step) == (201, 210)
    text = diverged.finding().message
    assert text.startswith("loss is ")
    assert text.endswith(
        " at step 210, more than 2 times the mean of the last 128 values and above the mean of "
        "its first 10 values, 10 times in a row. The loss has more than doubled and stays there."
    )


def test_with_rare_logs_the_first_abnormal_step_follows_the_log_before() -> None:
    evaluator = Evaluator(Method.SFT)
    for step in range(5, 105, 5):
        assert evaluator.observe(step, {"loss": 1.0}) == []
    (jump,) = evaluator.observe(105, {"loss": math.inf})
    assert (jump.since, jump.step) == (101, 105)


def test_a_suspicion_begins_with_its_first_abnormal_step_and_ends() -> None:
    evaluator = Evaluator(Method.SFT)
    for step in range(1, 21):
        evaluator.observe(step, {"loss": 1.0})
    assert evaluator.last_good_step() == 20
    evaluator.observe(21, {"loss": 2.5})
    evaluator.observe(22, {"loss": 2.5})
    assert evaluator.last_good_step() == 20
    for step in range(23, 33):
        evaluator.observe(step, {"loss": 1.0})
    assert evaluator.last_good_step() == 32


def test_what_was_not_evaluated_yet_is_not_known_to_be_good() -> None:
    evaluator = Evaluator(Method.SFT)
    evaluator.observe(0, {"eval_loss": 2.0})
    for step in range(1, 196):
        evaluator.observe(step, {"loss": 1.0})
        if step == 100:
            evaluator.observe(step, {"eval_loss": 1.0})
    assert evaluator.last_good_step() == 100
    (found,) = evaluator.observe(200, {"eval_loss": math.nan})
    assert found.since == 101


def test_a_finding_before_the_first_step_is_about_no_step_of_training() -> None:
    (found,) = Evaluator(Method.SFT).observe(0, {"eval_loss": math.nan})
    assert found.since == 0
    (found,) = Evaluator(Method.SFT).observe(10, {"loss": math.nan})
    assert found.since == 1


def test_one_fault_is_told_once_by_each_severity() -> None:
    fault = FAULTS["data that turns bad"]
    found = observe(Method.SFT, fault.inject(clean(Method.SFT, 1), 200, seed=1))
    told = [(one.rule.name, one.step) for one in found if one.rule.severity != "Info"]
    assert told[:3] == [("loss-jump", 201), ("loss-jumps-repeated", 203), ("loss-diverged", 210)]


def test_a_critical_finding_begins_with_the_earliest_of_those_that_it_covers() -> None:
    evaluator = Evaluator(Method.SFT)
    losses = [1.0] * 70 + [2.0] + [1.0] * 20 + [4.0] * 3
    found = [
        one
        for step, loss in enumerate(losses, 1)
        for one in evaluator.observe(step, {"loss": loss})
    ]
    critical = [one for one in found if one.rule.severity == "Critical"]
    assert [(one.rule.name, one.step, one.since) for one in critical] == [
        ("loss-spikes-repeated", 93, 71),
        ("loss-jumps-repeated", 94, 92),
    ]


def test_a_rule_that_fired_is_quiet_for_a_while() -> None:
    evaluator = Evaluator(Method.SFT)
    steps = [
        detection.step
        for step in range(1, 251)
        for detection in evaluator.observe(step, {"grad_norm": 500.0})
    ]
    assert steps == [5, 105, 205]


@pytest.mark.parametrize("cut", [90, 205, 300])
@pytest.mark.parametrize("name", ["data that turns bad", "entropy collapse"])
def test_a_replayed_log_goes_on_like_one_that_was_never_stopped(name: str, cut: int) -> None:
    fault = FAULTS[name]
    series = fault.inject(clean(fault.method, 2), 200, seed=2)
    entries: list[dict[str, Any]] = [
        {"step": step, **values} for step, values in enumerate(series, 1)
    ]
    evaluator = Evaluator(fault.method)
    found = evaluator.replay(entries, until=cut)
    for step in range(cut + 1, len(series) + 1):
        found += evaluator.observe(step, series[step - 1])
    assert found == observe(fault.method, series)


def test_what_is_no_number_or_not_watched_is_left_out() -> None:
    evaluator = Evaluator(Method.GRPO)
    assert evaluator.observe(1, {"reward": None, "epoch": 0.1, "anything": "text"}) == []
