"""The closed set of conditions that stability rules are made of. Pure: values in, a verdict out."""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

START = 10
"""First values of a metric whose mean is the level that training started at."""


@dataclass
class History:
    """What a condition knows of a metric's earlier values; bounded by its window."""

    window: int
    recent: deque[float] = field(init=False)
    count: int = 0
    best: float = math.inf
    """The smallest value so far."""
    _first: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=self.window)

    def add(self, value: float) -> None:
        """Note one more value."""
        self.recent.append(value)
        self.count += 1
        self.best = min(self.best, value)
        if len(self._first) < START:
            self._first.append(value)

    @property
    def start(self) -> float:
        """Mean of the first values; 0 while there are none."""
        return mean(self._first) if self._first else 0.0


def mean(values: Collection[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def variance(values: Collection[float]) -> float:
    """Return the population variance of at least one value."""
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / len(values)


class Condition(Protocol):
    """Tells whether a value is abnormal, given the values before it."""

    @property
    def window(self) -> int:
        """Earlier values that it looks at."""
        ...

    @property
    def keeps_out(self) -> bool:
        """Whether abnormal values stay out of the history, so that they do not become normal."""
        ...

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the value is abnormal."""
        ...

    def words(self) -> str:
        """Return the condition as the end of a sentence that begins with the metric's value."""
        ...


@dataclass(frozen=True)
class NotFinite:
    """NaN or infinite; no other condition looks at such values."""

    window: ClassVar[int] = 1
    keeps_out: ClassVar[bool] = True

    def holds(self, _history: History, value: float) -> bool:
        """Tell whether the value is no number."""
        return not math.isfinite(value)

    def words(self) -> str:
        """Return the condition in words."""
        return "not a finite number"


@dataclass(frozen=True)
class Above:
    """The mean of the newest values is above a limit."""

    limit: float
    window: int = 1
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the mean, this value included, is above the limit."""
        return _newest_mean(history, value, self.window) > self.limit

    def words(self) -> str:
        """Return the condition in words."""
        return f"above {self.limit:g}{_averaged(self.window)}"


@dataclass(frozen=True)
class Below:
    """The mean of the newest values is below a limit."""

    limit: float
    window: int = 1
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the mean, this value included, is below the limit."""
        return _newest_mean(history, value, self.window) < self.limit

    def words(self) -> str:
        """Return the condition in words."""
        return f"below {self.limit:g}{_averaged(self.window)}"


def _newest_mean(history: History, value: float, window: int) -> float:
    if window == 1:
        return value
    return mean([*list(history.recent)[1 - window :], value])


def _averaged(window: int) -> str:
    return "" if window == 1 else f" as the mean of {window} values"


@dataclass(frozen=True)
class Constant:
    """Every value of a window is the same."""

    window: int
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether nothing has changed over a whole window."""
        # Sums over processes differ in the last bits.
        return len(history.recent) == self.window and all(
            math.isclose(value, earlier, rel_tol=1e-9, abs_tol=1e-12) for earlier in history.recent
        )

    def words(self) -> str:
        """Return the condition in words."""
        return f"the same over {self.window} values"


@dataclass(frozen=True)
class Spike:
    """Far above the running mean: by a factor, by standard deviations, and above the start.

    The last keeps losses that have become tiny, where one hard example is many times the mean,
    from looking like an instability.
    """

    factor: float
    window: int
    sigma: float = 0.0
    over_start: float = 1.0
    """Factor on the level that training started at."""
    keeps_out: ClassVar[bool] = True

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the value stands out of the values before it."""
        if len(history.recent) < min(self.window, START):
            return False
        level = mean(history.recent)
        limit = max(
            self.factor * level,
            level + self.sigma * math.sqrt(variance(history.recent)),
            self.over_start * history.start,
        )
        return level > 0 and value > limit

    def words(self) -> str:
        """Return the condition in words."""
        parts = [f"more than {self.factor:g} times the mean of the last {self.window} values"]
        if self.sigma:
            parts.append(f"{self.sigma:g} standard deviations above it")
        times = "" if self.over_start == 1 else f"{self.over_start:g} times "
        parts.append(f"above {times}the mean of its first {START} values")
        return " and ".join(parts)


@dataclass(frozen=True)
class AboveStart:
    """The mean of a window is not below a multiple of the level that training started at."""

    factor: float
    window: int = 1
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the newest values are that high."""
        limit = self.factor * history.start
        return limit > 0 and _newest_mean(history, value, self.window) >= limit

    def words(self) -> str:
        """Return the condition in words."""
        return (
            f"at least {self.factor:g} times the mean of its first {START} values"
            f"{_averaged(self.window)}"
        )


@dataclass(frozen=True)
class AboveBest:
    """Above a multiple of the lowest value so far."""

    factor: float
    window: ClassVar[int] = 1
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the metric has risen from its best."""
        return 0 < history.best * self.factor < value

    def words(self) -> str:
        """Return the condition in words."""
        return f"more than {self.factor:g} times its lowest value"


@dataclass(frozen=True)
class Collapsed:
    """Below a limit, and below a share of the level that training started at."""

    limit: float
    share: float
    window: ClassVar[int] = 1
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the metric has fallen that low; where it began so, nothing collapsed."""
        return value < min(self.limit, self.share * history.start)

    def words(self) -> str:
        """Return the condition in words."""
        return (
            f"below {self.limit:g} and below {self.share:g} times the mean of its first "
            f"{START} values"
        )


@dataclass(frozen=True)
class Trend:
    """The second half of a window lies clearly above (rising) or below its first half.

    Clearly: by more than `errors` standard errors of the difference of the two means (Welch's t).
    """

    rising: bool
    window: int
    errors: float = 6.0
    keeps_out: ClassVar[bool] = False

    def holds(self, history: History, value: float) -> bool:
        """Tell whether the newest window has the trend."""
        values = [*history.recent, value][-self.window :]
        if len(values) < self.window:
            return False
        half = self.window // 2
        early, late = values[:half], values[half:]
        difference = mean(late) - mean(early)
        error = math.sqrt(variance(early) / len(early) + variance(late) / len(late))
        change = difference if self.rising else -difference
        return change > max(self.errors * error, 1e-12)

    def words(self) -> str:
        """Return the condition in words."""
        return f"{'rising' if self.rising else 'falling'} over {self.window} values"
