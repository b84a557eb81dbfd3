"""Conditions, by the Kubernetes API conventions."""

from collections.abc import Iterable
from datetime import datetime

from finetune_api.status import Condition, ConditionType

_LONGEST_MESSAGE = 2048


class Conditions:
    """A set of conditions; lastTransitionTime moves only when a status changes."""

    def __init__(self, conditions: Iterable[Condition], *, generation: int, now: datetime) -> None:
        self._conditions = {condition.type: condition for condition in conditions}
        self._generation = generation
        self._now = now

    def set(self, kind: ConditionType, holds: bool, reason: str, message: str = "") -> None:
        """Record an observation."""
        status = "True" if holds else "False"
        before = self._conditions.get(kind)
        kept = before is not None and before.status == status
        self._conditions[kind] = Condition(
            type=kind,
            status="True" if holds else "False",
            reason=reason,
            message=message[:_LONGEST_MESSAGE],
            observed_generation=self._generation,
            last_transition_time=before.last_transition_time if before and kept else self._now,
        )

    def clear(self, kind: ConditionType, reason: str, message: str = "") -> None:
        """Record that something no longer holds; what was never true is not mentioned."""
        if kind in self._conditions:
            self.set(kind, False, reason, message)

    def get(self, kind: ConditionType) -> Condition | None:
        """Return the condition of a type."""
        return self._conditions.get(kind)

    def true(self, kind: ConditionType) -> bool:
        """Return whether a condition holds."""
        condition = self._conditions.get(kind)
        return condition is not None and condition.status == "True"

    def to_list(self) -> list[Condition]:
        """Return all conditions in the order in which ConditionType names them."""
        return [self._conditions[kind] for kind in ConditionType if kind in self._conditions]
