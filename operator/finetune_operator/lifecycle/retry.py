"""When the next attempt starts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from finetune_api.failures import FAILURES, Reason, RetryClass
from finetune_api.status import Attempt

MOST_FRUITLESS: Final = 10
"""Preempted attempts in a row without progress after which the job fails."""

_LONGEST: Final = timedelta(seconds=300)


def next_start(attempts: Sequence[Attempt], failures: int) -> datetime | None:
    """Return when the attempt after the last one may start; None is at once."""
    last = attempts[-1] if attempts else None
    if last is None or last.state != "Failed" or _retry(last) is RetryClass.ROLLBACK:
        return None
    if last.finish_time is None:
        raise ValueError(f"attempt {last.number} has failed but has no finishTime")
    tries = fruitless(attempts) if _preempted(last) else failures
    return last.finish_time + min(_delay(tries), _LONGEST)


def fruitless(attempts: Sequence[Attempt]) -> int:
    """Return how many of the last attempts were preempted before they got further."""
    count = 0
    while count < len(attempts):
        last = len(attempts) - 1 - count
        if not _preempted(attempts[last]) or _got_further(attempts[last], attempts[:last]):
            break
        count += 1
    return count


def _delay(tries: int) -> timedelta:
    """Return 1, 10, 20, 40... seconds: a first failure is often a hiccup."""
    return timedelta(seconds=1 if tries <= 1 else 10 * 2 ** min(tries - 2, 10))


def _preempted(attempt: Attempt) -> bool:
    return attempt.state == "Failed" and _retry(attempt) is RetryClass.PREEMPTED


def _retry(attempt: Attempt) -> RetryClass | None:
    return None if attempt.reason is None else FAILURES[Reason(attempt.reason)].retry


def _got_further(attempt: Attempt, earlier: Sequence[Attempt]) -> bool:
    steps = [one.step or 0 for one in earlier if one.role == attempt.role]
    return (attempt.step or 0) > (steps[-1] if steps else 0)
