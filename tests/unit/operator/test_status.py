"""Conditions and patches."""

from typing import Any

import pytest

from finetune_api.status import ConditionType, Progress
from finetune_operator.status import Conditions, final_progress, merge_patch
from unit.operator.builders import NOW, at, trained


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {}, {"a": None}),
        ({}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
        ({"a": {"b": 1}}, {"a": [1]}, {"a": [1]}),
    ],
)
def test_merge_patch(before: dict[str, Any], after: dict[str, Any], patch: dict[str, Any]) -> None:
    assert merge_patch(before, after) == patch


def test_transition_time_moves_only_when_the_status_changes() -> None:
    first = Conditions([], generation=1, now=NOW)
    first.set(ConditionType.READY, False, "Running", "step 1")
    second = Conditions(first.to_list(), generation=2, now=at(60))
    second.set(ConditionType.READY, False, "Running", "step 2")
    assert second.to_list()[0].last_transition_time == NOW
    assert second.to_list()[0].observed_generation == 2
    second.set(ConditionType.READY, True, "Succeeded")
    assert second.to_list()[0].last_transition_time == at(60)


def test_what_was_never_true_is_not_mentioned() -> None:
    conditions = Conditions([], generation=1, now=NOW)
    conditions.clear(ConditionType.POD_PROBLEM, "Resolved")
    assert conditions.to_list() == []


def test_a_short_job_has_its_last_numbers_from_the_result() -> None:
    progress = final_progress(None, trained())
    assert (progress.activity, progress.steps, progress.loss) == ("Done", "63/63", 1.5)
    assert (progress.eval_loss, progress.eval_loss_before) == (1.25, 3.5)


def test_numbers_that_the_result_does_not_repeat_are_kept() -> None:
    before = Progress(activity="Exporting", step=62, learning_rate=0.001, tokens_per_second=10.0)
    progress = final_progress(before, trained())
    assert (progress.step, progress.learning_rate, progress.tokens_per_second) == (63, 0.001, 10.0)
