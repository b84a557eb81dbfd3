"""The decision about one job while it is being made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import (
    Attempt,
    Condition,
    ConditionType,
    FineTuneJobStatus,
    Phase,
    Plan,
)
from finetune_api.trainer import ProgressReport
from finetune_operator.lifecycle.job import Job, same_training
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.planning import Inventory
from finetune_operator.status import Conditions
from finetune_operator.workloads import Launch


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the job."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class Decision:
    """What is to be done about a job now."""

    status: FineTuneJobStatus
    launch: Launch | None = None
    """Attempt whose objects are to be applied."""
    delete: tuple[Pod, ...] = ()
    """Pods to delete."""
    events: tuple[Event, ...] = ()
    """Events to emit once the status is written."""
    requeue_after: float | None = None
    """Seconds after which time alone changes the decision."""
    delete_job: bool = False
    """Whether the job itself has outlived its TTL."""
    confirm: bool = False
    """The decision rests on pods not being there: list them and decide again."""
    follow: Pod | None = None
    """Pod whose progress is to be read."""


class Draft:
    """What is known about a job and what has been decided so far."""

    def __init__(
        self,
        job: Job,
        pods: Sequence[Pod],
        *,
        now: datetime,
        report: ProgressReport | None = None,
        confirmed: bool = False,
        chain: Mapping[str, Job] | None = None,
        awaited: bool = False,
        inventory: Inventory | None = None,
    ) -> None:
        self.job = job
        self.pods = pods
        self.now = now
        self.report = report
        self.confirmed = confirmed
        self.chain = chain or {}
        self.awaited = awaited
        self.inventory = inventory or Inventory()
        self.status = job.status
        self.attempts = list(job.status.attempts)
        self.conditions = Conditions(
            job.status.conditions, generation=job.generation, now=self.stamp
        )
        self.launch: Launch | None = None
        self.confirm = False
        self.stopping = False
        """Whether the pods of the active attempt have to go."""
        self.follow: Pod | None = None
        self.delete_job = False
        self._events: list[Event] = []
        self._wake: datetime | None = None

    @property
    def stamp(self) -> datetime:
        """The time in whole seconds, as in statuses; rounded up, so that no wait is cut short."""
        return datetime.fromtimestamp(math.ceil(self.now.timestamp()), UTC)

    @property
    def finished(self) -> bool:
        """Whether the job has succeeded or failed."""
        return self.status.finish_time is not None

    @property
    def active(self) -> Attempt | None:
        """The attempt under way."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.state == "Active" else None

    def pods_of(self, attempt: Attempt) -> list[Pod]:
        """Return the pods of an attempt by rank."""
        found = [
            pod for pod in self.pods if (pod.role, pod.attempt) == (attempt.role, attempt.number)
        ]
        return sorted(found, key=lambda pod: pod.rank)

    def outdated(self, pods: Sequence[Pod]) -> bool:
        """Return whether pods were made for a training spec that was changed before the plan."""
        if self.status.plan is not None:
            return False
        return any(not _made_for(pod, self.job.spec) for pod in pods)

    def update(self, **fields: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def say(self, phase: Phase, message: str) -> None:
        """Set phase and message."""
        self.update(phase=phase, message=message)

    def close(self, attempt: Attempt, **fields: Any) -> None:
        """Record the end of an attempt."""
        index = self.attempts.index(attempt)
        self.attempts[index] = attempt.model_copy(update={"finish_time": self.stamp, **fields})

    def begin(
        self,
        role: Literal["prepare", "trainer"],
        number: int,
        started: datetime,
        plan: Plan | None,
    ) -> None:
        """Record the start of an attempt; plan is what a training run runs with."""
        self.attempts.append(
            Attempt(
                role=role,
                number=number,
                state="Active",
                start_time=started,
                plan=plan.summary if plan is not None else None,
                gpus=plan.gpus if plan is not None else None,
            )
        )

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Emit an Event once the status is written."""
        self._events.append(Event(reason, message, "Warning" if warning else "Normal"))

    def wake_at(self, time: datetime) -> None:
        """Decide again at a time, at the latest."""
        self._wake = time if self._wake is None else min(self._wake, time)

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return a condition of the status."""
        return self.conditions.get(kind)

    def doomed_pods(self) -> tuple[Pod, ...]:
        """Return the pods that have not ended, belong to no attempt under way, and are to go."""
        kept = self.active if not (self.stopping or self.finished) else None
        return tuple(
            pod
            for pod in self.pods
            if not pod.terminal
            and not pod.deleting
            and (kept is None or (pod.role, pod.attempt) != (kept.role, kept.number))
        )

    def unchanged(self) -> Decision:
        """Return the decision to do nothing."""
        return Decision(status=self.job.status)

    def unsure(self) -> Decision:
        """Return the decision to look again before anything is done."""
        return Decision(status=self.job.status, confirm=True)

    def decision(self) -> Decision:
        """Return the decision."""
        status = self.status.model_copy(
            update={
                "observed_generation": self.job.generation,
                "conditions": self.conditions.to_list(),
                "attempts": self.attempts[-64:],
            }
        )
        wait = None if self._wake is None else max((self._wake - self.now).total_seconds(), 0.0)
        return Decision(
            status=status,
            launch=self.launch,
            delete=self.doomed_pods(),
            events=tuple(self._events),
            requeue_after=wait,
            delete_job=self.delete_job,
            follow=self.follow,
        )


def _made_for(pod: Pod, spec: FineTuneJobSpec) -> bool:
    try:
        return same_training(pod.config.spec, spec)
    except ValidationError:
        # Made of a spec that this version of the operator does not understand.
        return False
