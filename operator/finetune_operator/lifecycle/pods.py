"""A pod as the state machine sees it."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from finetune_api import names
from finetune_api.trainer import TrainerConfig
from finetune_operator.lifecycle.job import parse_time


@dataclass(frozen=True)
class Notice:
    """A reason and a message as Kubernetes gives them."""

    reason: str
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True)
class Termination:
    """How the container of a pod ended."""

    exit_code: int
    reason: str
    message: str
    finished_at: datetime | None


@dataclass(frozen=True)
class Pod:
    """One pod of one attempt."""

    name: str
    namespace: str
    uid: str
    role: str
    attempt: int
    rank: int
    created: datetime
    deleted_by: datetime | None
    """When the pod is to be gone; None when it is not being deleted."""
    node: str | None
    placed: datetime | None
    """When it was bound to a node; None when it was not, or nothing says when."""
    phase: str
    ip: str | None
    running: bool
    status: Notice
    """Reason and message of the pod itself, such as Evicted."""
    termination: Termination | None
    waiting: Notice | None
    """Why the container waits, such as ImagePullBackOff."""
    unscheduled: Notice | None
    """Why no node was chosen, such as Unschedulable or SchedulingGated."""
    disruption: Notice | None
    """Why the cluster ended the pod."""
    config_json: str

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Self:
        """Return the pod of an API object."""
        metadata, status = body["metadata"], body.get("status") or {}
        labels = metadata["labels"]
        state = _container_state(status)
        deletion = metadata.get("deletionTimestamp")
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            role=labels[names.ROLE_LABEL],
            attempt=int(labels[names.ATTEMPT_LABEL]),
            rank=int(labels[names.RANK_LABEL]),
            created=parse_time(metadata["creationTimestamp"]),
            deleted_by=parse_time(deletion) if deletion else None,
            node=body.get("spec", {}).get("nodeName"),
            placed=_placed(status),
            phase=status.get("phase", "Pending"),
            ip=status.get("podIP"),
            running="running" in state,
            status=Notice(status.get("reason", ""), status.get("message", "")),
            termination=_termination(state.get("terminated")),
            waiting=_notice(state.get("waiting")),
            unscheduled=_condition(status, "PodScheduled", "False"),
            disruption=_condition(status, "DisruptionTarget", "True"),
            config_json=metadata.get("annotations", {}).get(names.CONFIG_ANNOTATION, ""),
        )

    @property
    def missing_claim(self) -> str | None:
        """The claim that the scheduler did not find when it last tried to place the pod."""
        found = re.search(
            r'persistentvolumeclaim "([^"]+)" not found',
            self.unscheduled.message if self.unscheduled else "",
        )
        return found[1] if found else None

    @property
    def terminal(self) -> bool:
        """Whether the pod has ended: it writes nothing any more."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def deleting(self) -> bool:
        """Whether the pod is being deleted."""
        return self.deleted_by is not None

    @property
    def config(self) -> TrainerConfig:
        """The job.json that the pod was given; ValidationError when it is none."""
        return TrainerConfig.read_json(self.config_json)


def _container_state(status: dict[str, Any]) -> dict[str, Any]:
    for container in status.get("containerStatuses", []):
        if container["name"] == names.CONTAINER:
            state: dict[str, Any] = container.get("state", {})
            return state
    return {}


def _termination(state: dict[str, Any] | None) -> Termination | None:
    if state is None:
        return None
    finished = state.get("finishedAt")
    return Termination(
        exit_code=state["exitCode"],
        reason=state.get("reason", ""),
        message=state.get("message", ""),
        finished_at=parse_time(finished) if finished else None,
    )


def _notice(state: dict[str, Any] | None) -> Notice | None:
    return Notice(state.get("reason", ""), state.get("message", "")) if state else None


def _placed(status: dict[str, Any]) -> datetime | None:
    scheduled = _condition(status, "PodScheduled", "True")
    if scheduled is not None and scheduled.since is not None:
        return scheduled.since
    # The kubelet's word comes moments later.
    seen = status.get("startTime")
    return parse_time(seen) if seen else None


def _condition(status: dict[str, Any], kind: str, value: str) -> Notice | None:
    for condition in status.get("conditions", []):
        if condition["type"] == kind and condition["status"] == value:
            since = condition.get("lastTransitionTime")
            return Notice(
                condition.get("reason", ""),
                condition.get("message", ""),
                parse_time(since) if since else None,
            )
    return None
