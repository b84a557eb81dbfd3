"""Evaluates the stability table on logged metrics, one step after the other."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.detection import History, NotFinite
from finetune_api.spec import Method
from finetune_api.stability import QUIET, StabilityRule, rules_of
from finetune_api.status import Finding


@dataclass(frozen=True)
class Detection:
    """One rule that fired."""

    rule: StabilityRule
    metric: str
    value: float
    step: int
    since: int
    """First step whose data or weights may be the cause."""

    def finding(self) -> Finding:
        """Return what is reported."""
        return Finding(
            rule=self.rule.name,
            severity=self.rule.severity,
            step=self.step,
            message=f"{self.metric} is {self.value:.4g} at step {self.step}, "
            f"{self.rule.abnormal()}. {self.rule.meaning}",
            advice=self.rule.advice,
        )


class Evaluator:
    """Holds every rule's window. The same values give the same findings, however often resumed."""

    def __init__(self, method: Method) -> None:
        self._rules = rules_of(method)
        self._watches: dict[str, list[_Watch]] = {}

    def observe(self, step: int, values: Mapping[str, Any]) -> list[Detection]:
        """Take what was logged at a step, by TRL names, and return what fires there.

        Values that are no numbers, such as None, are left out.
        """
        found = []
        for metric, value in values.items():
            if isinstance(value, int | float):
                found += self._observe(step, metric, float(value))
        return found

    def _observe(self, step: int, metric: str, value: float) -> list[Detection]:
        watches = self._watching(metric)
        seen = [watch.observe(step, value) for watch in watches]
        found = [detection for detection in seen if detection is not None]
        covered = {name for detection in found for name in detection.rule.covers}
        for watch in watches:
            if watch.rule.name in covered:
                watch.silence(step)
        # A Critical one that is left out may know of an earlier step.
        grave = [one.since for one in found if one.rule.severity == "Critical"]
        return [
            replace(one, since=min(grave)) if one.rule.severity == "Critical" else one
            for one in found
            if one.rule.name not in covered
        ]

    def replay(self, entries: Iterable[Mapping[str, Any]], until: int) -> list[Detection]:
        """Take the lines of metrics.jsonl up to a step, as if they had been observed."""
        found = []
        for entry in entries:
            if entry["step"] <= until:
                values = {name: value for name, value in entry.items() if name != "step"}
                found += self.observe(entry["step"], values)
        return found

    def last_good_step(self) -> int:
        """Return the newest step that no Critical rule can yet look back beyond.

        A metric that is logged rarely, such as the held-out loss, speaks of all steps since its
        last value: until the next one these are not known to be good. 0 while nothing was seen.
        """
        steps = [
            watch.last_good_step
            for watches in self._watches.values()
            for watch in watches
            if watch.rule.severity == "Critical"
        ]
        return min(steps, default=0)

    def _watching(self, metric: str) -> list["_Watch"]:
        if metric not in self._watches:
            self._watches[metric] = [
                _Watch(rule, metric) for rule in self._rules if rule.watches(metric)
            ]
        return self._watches[metric]


class _Watch:
    """One rule on one metric."""

    def __init__(self, rule: StabilityRule, metric: str) -> None:
        self.rule = rule
        self.metric = metric
        self.history = History(rule.condition.window)
        self.abnormal: deque[int | None] = deque(maxlen=rule.within)
        """For each newest value the first step that it speaks of, or None when it is normal."""
        self._last_step = 0
        self._quiet_until = 0

    @property
    def last_good_step(self) -> int:
        """Newest step that a later finding cannot be about."""
        suspected = [first - 1 for first in self.abnormal if first is not None]
        return min(suspected, default=self._last_step)

    def silence(self, step: int) -> None:
        """Say nothing for a while from a step on."""
        self._quiet_until = step + QUIET

    def observe(self, step: int, value: float) -> Detection | None:
        # What is measured at step 0 is about the model as it came; all else is about training.
        since, self._last_step = min(step, self._last_step + 1), step
        condition = self.rule.condition
        if not math.isfinite(value) and not isinstance(condition, NotFinite):
            return None
        is_abnormal = self.history.count >= self.rule.warm_up and condition.holds(
            self.history, value
        )
        self.abnormal.append(since if is_abnormal else None)
        if not (is_abnormal and condition.keeps_out):
            self.history.add(value)
        return self._detection(step, value) if is_abnormal else None

    def _detection(self, step: int, value: float) -> Detection | None:
        abnormal = [first for first in self.abnormal if first is not None]
        if step < self._quiet_until or len(abnormal) < self.rule.times:
            return None
        self.silence(step)
        self.abnormal.clear()
        # What it has risen or fallen to is the new normal: the next finding is about a next change.
        self.history.recent.clear()
        return Detection(self.rule, self.metric, value, step, since=min(abnormal))
