"""How a pod ended, in the closed taxonomy of failures."""

from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.failures import FAILURES, Reason, RetryClass, reason_of_exit_code
from finetune_api.trainer import Result
from finetune_operator.lifecycle.pods import Pod, Termination

_OWN = {RetryClass.USER, RetryClass.ROLLBACK}
"""What the trainer alone can say, and what happens to its pod meanwhile does not change."""
_NODE_LOST = {"NodeLost", "DeletionByPodGC", "DeletionByTaintManager"}


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    reason: Reason | None
    """None when it succeeded."""
    message: str = ""
    exit_code: int | None = None
    result: Result | None = None

    @property
    def retry(self) -> RetryClass | None:
        """What follows from a failure; None when there was none."""
        return None if self.reason is None else FAILURES[self.reason].retry

    @property
    def may_just_stop(self) -> bool:
        """Whether it is as good as a stop while the job is suspended: nothing follows from it."""
        return self.retry not in _OWN


def outcome_of(pod: Pod) -> Outcome | None:
    """Return how a pod ended; None while it has not."""
    if not pod.terminal:
        return None
    end = pod.termination
    result = _result(end)
    if end is not None and end.exit_code == 0 and pod.phase == "Succeeded":
        return _success(pod, result)
    exit_code = end.exit_code if end else None
    reason, message = _failure(pod, end, result)
    return Outcome(reason, message, exit_code, result)


def _success(pod: Pod, result: Result | None) -> Outcome:
    # What was made, the first of an attempt's pods says for all.
    if pod.rank == 0 and (result is None or result.reason != "Succeeded"):
        message = (
            "The container ended with exit code 0 but without a result in its termination message."
        )
        return Outcome(Reason.INTERNAL_ERROR, message, 0)
    return Outcome(None, exit_code=0, result=result)


def _failure(pod: Pod, end: Termination | None, result: Result | None) -> tuple[Reason, str]:
    said = _said(result)
    if said is not None and FAILURES[said[0]].retry in _OWN:
        return said
    return _disruption(pod, end) or said or _unsaid(pod, end)


def _unsaid(pod: Pod, end: Termination | None) -> tuple[Reason, str]:
    """Return what can be seen from outside of a container that left no result."""
    if end is None:
        return (
            Reason.INTERNAL_ERROR,
            f"Pod {pod.name} failed: {pod.status.message or pod.status.reason}",
        )
    if end.reason == "OOMKilled":
        return Reason.HOST_OUT_OF_MEMORY, f"Pod {pod.name} used more memory than its limit."
    if pod.deleting:
        return Reason.POD_DELETED, f"Pod {pod.name} was deleted."
    reason = reason_of_exit_code(end.exit_code)
    return reason, f"Pod {pod.name} ended with exit code {end.exit_code}{_last_words(end)}."


def _disruption(pod: Pod, end: Termination | None) -> tuple[Reason, str] | None:
    """Return what the cluster did to the pod."""
    for notice in (pod.disruption, pod.status):
        if notice is None or not notice.reason:
            continue
        if notice.reason in _NODE_LOST:
            return (
                Reason.NODE_LOST,
                f"The node of pod {pod.name} went away. {notice.message}".strip(),
            )
        if notice is pod.disruption or notice.reason in {"Evicted", "Preempting"} or end is None:
            # Also what the kubelet refuses to start, such as OutOfcpu: another node may take it.
            return Reason.PREEMPTED, f"Pod {pod.name}: {notice.reason}. {notice.message}".strip()
    return None


def _result(end: Termination | None) -> Result | None:
    if end is None or not end.message:
        return None
    try:
        return Result.read_json(end.message)
    except ValidationError:
        # The end of the log, in place of a termination message.
        return None


def _said(result: Result | None) -> tuple[Reason, str] | None:
    if result is None or result.reason not in set(Reason):
        return None
    # Another sentence may follow.
    end = "" if result.message.endswith((".", "!", "?")) else "."
    return Reason(result.reason), f"{result.message}{end}"


def _last_words(end: Termination) -> str:
    lines = [line.strip() for line in end.message.splitlines()]
    if lines and lines[0].endswith("}"):
        # The kubelet takes the end of the log: the first line may be the rest of one of JSON.
        del lines[0]
    # The trainer's own log lines are JSON and tell of progress; what ended it is plain text.
    lines = [line for line in lines if line and not line.startswith("{")]
    return f": {lines[-1][:300]}" if lines else ""
