"""Why a pod cannot start, or does not end, in words."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from finetune_api.failures import Reason
from finetune_api.trainer import TrainerConfig
from finetune_operator.lifecycle.pods import Pod

GRACE: Final = timedelta(seconds=20)
"""How long a missing claim or Secret may take to appear."""

SETTLING: Final = timedelta(seconds=10)
"""How long a pod may be unschedulable before it is worth a word."""

STUCK: Final = "PodStuck"
"""Reason of the problem that a deleted pod does not end."""

_OVERDUE: Final = timedelta(seconds=60)
"""How long a deleted pod may outlive its deadline before it is worth a word."""

_PREEMPTION: Final = re.compile(r"( no new claims to deallocate,)? preemption: .*")
"""What the scheduler adds about pods that it could have evicted: of no use to the job's user."""

_SLOW: Final = timedelta(seconds=60)
"""How long a container may be made before it is worth a word."""

_IMAGE: Final = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
_CONTAINER: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True)
class Problem:
    """What keeps a pod from starting, or from ending."""

    reason: str
    message: str
    fatal: bool = False
    """Whether the job fails when this lasts longer than GRACE."""
    report_at: datetime | None = None
    """When to report it; None is at once."""


def first_problem(pods: Iterable[Pod]) -> Problem | None:
    """Return the first problem of the pods, by rank."""
    for pod in sorted(pods, key=lambda pod: pod.rank):
        problem = _problem(pod)
        if problem is not None:
            return problem
    return None


def _problem(pod: Pod) -> Problem | None:
    if pod.terminal:
        return None
    if pod.deleted_by is not None:
        return _stuck(pod, pod.deleted_by)
    if pod.running:
        return None
    if pod.unscheduled is not None and pod.unscheduled.reason == "Unschedulable":
        return _unschedulable(pod, pod.unscheduled.message, pod.unscheduled.since or pod.created)
    return None if pod.waiting is None else _waiting(pod, pod.waiting.reason, pod.waiting.message)


def _stuck(pod: Pod, deadline: datetime) -> Problem:
    """A node that is off ends nothing, and only a person knows that the pod writes no more."""
    place = f" on node {pod.node}" if pod.node else ""
    message = (
        f"Pod {pod.name}{place} was to end by {deadline:%H:%M:%S} UTC and has not. Make sure that"
        f" the node is off, then: kubectl delete pod {pod.name} -n {pod.namespace} --force"
    )
    return Problem(STUCK, message, report_at=deadline + _OVERDUE)


def _waiting(pod: Pod, reason: str, message: str) -> Problem | None:
    if reason in _IMAGE:
        return Problem(reason, f"Pod {pod.name} cannot pull its image: {message or reason}.")
    if reason in _CONTAINER:
        secret = re.search(r'secret "([^"]+)" not found', message)
        if secret:
            return _missing(pod, Reason.SECRET_NOT_FOUND, "Secret", secret[1])
        return Problem(reason, f"Pod {pod.name} cannot start its container: {message or reason}.")
    if reason == "ContainerCreating":
        text = (
            f"Pod {pod.name} still pulls its image or waits for a volume:"
            f" kubectl describe pod {pod.name} -n {pod.namespace} tells more."
        )
        return Problem(reason, text, report_at=pod.created + _SLOW)
    return None


def _unschedulable(pod: Pod, message: str, since: datetime) -> Problem:
    if pod.missing_claim:
        return _missing(pod, Reason.CLAIM_NOT_FOUND, "PersistentVolumeClaim", pod.missing_claim)
    return Problem(
        "Unschedulable",
        f"No node takes pod {pod.name}: {_PREEMPTION.sub('', message)}",
        report_at=since + SETTLING,
    )


def _missing(pod: Pod, reason: Reason, kind: str, name: str) -> Problem:
    field = _field_that_names(pod.config, kind, name)
    message = f"{field} is {name}, but namespace {pod.namespace} has no {kind} of that name."
    return Problem(reason.value, message, fatal=True)


def _field_that_names(config: TrainerConfig, kind: str, name: str) -> str:
    spec = config.spec
    if kind == "Secret":
        fields = {"model.secret": spec.model.secret, "dataset.secret": spec.dataset.secret}
        fields |= {f"The secret of {one}": start.secret for one, start in config.starts.items()}
    else:
        fields = {
            "output.claim": spec.output.claim,
            "resources.workspace.claim": spec.resources.workspace.claim,
            "The claim of model.source": _claim_of(spec.model.source),
            "The claim of dataset.source": _claim_of(spec.dataset.source or ""),
        }
        fields |= {f"The claim of {part}": _claim_of(part) for part in _parts(config)}
    return next((field for field, named in fields.items() if named == name), f"A {kind}")


def _parts(config: TrainerConfig) -> Iterator[str]:
    """Yield where the models of other jobs lie that the job starts from."""
    for start in config.starts.values():
        yield from (start.base, *start.merge, start.adapter or "")


def _claim_of(source: str) -> str | None:
    scheme, _, rest = source.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None
