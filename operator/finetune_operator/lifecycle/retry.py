"""When the next attempt starts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from finetune_api.failures import FAILURES, Reason, RetryClass
from finetune_api.status import Attempt

_LONGEST: Final = timedelta(seconds=300)
_SHORT_LIVED: Final = timedelta(seconds=10)


def next_start(attempts: Sequence[Attempt], failures: int) -> datetime | None:
    """Return when the attempt after the last one may start; None is at once."""
    if not attempts or attempts[-1].state != "Failed":
        return None
    last = attempts[-1]
    if last.finish_time is None:
        raise ValueError(f"attempt {last.number} has failed but has no finishTime")
    delay = _after_preemptions(attempts) if _preempted(last) else _after_failures(failures)
    return last.finish_time + min(delay, _LONGEST)


def _after_failures(failures: int) -> timedelta:
    """Return 1, 10, 20, 40... seconds: a first failure is often a hiccup."""
    return timedelta(seconds=1 if failures <= 1 else 10 * 2 ** min(failures - 2, 10))


def _after_preemptions(attempts: Sequence[Attempt]) -> timedelta:
    """Return 1 second, doubled for each attempt in a row that hardly lived: no hot loop."""
    short = 0
    for attempt in reversed(attempts):
        if attempt.state != "Failed" or not _preempted(attempt) or not _short_lived(attempt):
            break
        short += 1
    return timedelta(seconds=2 ** min(max(short - 1, 0), 10))


def _preempted(attempt: Attempt) -> bool:
    return (
        attempt.reason is not None
        and FAILURES[Reason(attempt.reason)].retry is RetryClass.PREEMPTED
    )


def _short_lived(attempt: Attempt) -> bool:
    return (
        attempt.finish_time is not None and attempt.finish_time - attempt.start_time < _SHORT_LIVED
    )
