"""Reward functions whose every error is a sentence that names the reward."""

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure

Function = Callable[..., Any]
"""Takes prompts, completions, completion_ids and each further column of the rows by name, one
entry per completion; returns a number per completion, or None where the reward does not apply."""


class RewardError(Exception):
    """What is wrong with a reward: the end of a sentence that begins with its name."""


class CheckedReward:
    """One reward as TRL calls it; its __name__ is its name in metrics.

    What the function raises ends the attempt for the reason `raised`.
    """

    def __init__(
        self, name: str, function: Function, raised: Reason = Reason.CONFIG_INVALID
    ) -> None:
        self.__name__ = name
        self._function = function
        self._raised = raised

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one finite number, or None, per completion. Raises JobFailure."""
        with named(self.__name__):
            try:
                values = self._function(completions=completions, **columns)
            except RewardError:
                raise
            # The user's code may raise anything.
            except Exception as error:
                message = f"rewards[{self.__name__}] raised {describe(error)}."
                raise JobFailure(self._raised, message) from error
            return _numbers(values, len(completions))


@contextmanager
def named(name: str) -> Iterator[None]:
    """Turn what is wrong with a reward into the job's failure, which says the reward's name."""
    try:
        yield
    except RewardError as error:
        raise JobFailure(Reason.CONFIG_INVALID, f"rewards[{name}] {error}.") from error


def describe(error: Exception) -> str:
    """Return an error of the user's code on one line, with the place that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return text[:500].rstrip(".") + place


def _numbers(values: Any, count: int) -> list[float | None]:
    # A tensor or an array of the right length is as good as a list.
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"returned {type(values).__name__}, expected a list with one number per completion"
        )
    if len(values) != count:
        raise RewardError(
            f"returned {len(values)} values for {count} completions, expected one number each"
        )
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise RewardError(
            f"returned {value!r}, expected a finite number, or None where it does not apply"
        )
    return number
