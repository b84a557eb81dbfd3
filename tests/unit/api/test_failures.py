"""The table of failures is closed."""

import pytest

from finetune_api.failures import FAILURES, Reason, RetryClass, reason_of_exit_code
from finetune_api.trainer import JobFailure


def test_every_reason_is_in_the_table() -> None:
    assert set(FAILURES) == set(Reason)


def test_exit_codes_are_unique_and_free_of_other_meanings() -> None:
    codes = [failure.exit_code for failure in FAILURES.values() if failure.exit_code is not None]
    assert len(codes) == len(set(codes))
    # Below are shells and Python, above 125 are shells and signals.
    assert all(64 <= code < 126 for code in codes)


@pytest.mark.parametrize("reason", [r for r in Reason if FAILURES[r].exit_code is not None])
def test_exit_code_leads_back_to_its_reason(reason: Reason) -> None:
    code = FAILURES[reason].exit_code
    assert code is not None
    assert reason_of_exit_code(code) is reason
    assert JobFailure(reason, "text").exit_code == code


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1, Reason.INTERNAL_ERROR),
        (137, Reason.KILLED),
        (139, Reason.INTERNAL_ERROR),
        (143, Reason.PREEMPTED),
    ],
)
def test_codes_of_python_and_signals(code: int, reason: Reason) -> None:
    assert reason_of_exit_code(code) is reason


def test_failure_that_only_the_operator_sees_exits_as_internal_error() -> None:
    assert JobFailure(Reason.NODE_LOST, "text").exit_code == 70


@pytest.mark.parametrize("reason", list(Reason))
def test_advice_is_a_sentence(reason: Reason) -> None:
    advice = FAILURES[reason].advice
    assert advice.endswith(".")
    assert advice[0].isupper()


def test_every_retry_class_is_used() -> None:
    assert {failure.retry for failure in FAILURES.values()} == set(RetryClass)
