"""A pod as the state machine sees it."""

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
    deleting: bool
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
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            role=labels[names.ROLE_LABEL],
            attempt=int(labels[names.ATTEMPT_LABEL]),
            rank=int(labels[names.RANK_LABEL]),
            created=parse_time(metadata["creationTimestamp"]),
            deleting="deletionTimestamp" in metadata,
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
    def terminal(self) -> bool:
        """Whether the pod has ended: it writes nothing any more."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def config(self) -> TrainerConfig:
        """The job.json that the pod was given."""
        return TrainerConfig.model_validate_json(self.config_json)


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
