"""The state machine: from a job and its pods as they are to what is to be done; pure, no I/O."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api import names
from finetune_api.status import ConditionType, FineTuneJobStatus, Phase
from finetune_api.trainer import ProgressReport
from finetune_operator.lifecycle.advance import advance
from finetune_operator.lifecycle.draft import Decision, Draft, Event
from finetune_operator.lifecycle.finish import conclude, expire, reopened
from finetune_operator.lifecycle.job import Job
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.lifecycle.settle import adopt, settle

__all__ = ["Decision", "Event", "Job", "Pod", "decide", "rejected"]


def decide(
    job: Job,
    pods: Sequence[Pod],
    *,
    now: datetime,
    report: ProgressReport | None = None,
    confirmed: bool = False,
) -> Decision:
    """Return what is to be done about a job.

    Args:
        job: The job as it was last seen.
        pods: All its pods as they were last seen.
        now: The time, with time zone.
        report: What the trainer said last about its progress.
        confirmed: Whether pods was just listed from the API server, so that absence is a fact.
    """
    draft = Draft(job, pods, now=now, report=report, confirmed=confirmed)
    if job.deleting:
        return draft.unchanged()
    if not draft.finished or reopened(draft):
        adopt(draft)
        settle(draft)
        if not draft.finished and not draft.confirm:
            advance(draft)
        if draft.confirm:
            return draft.unsure()
    if draft.finished:
        expire(draft)
    conclude(draft)
    return draft.decision()


def rejected(job: Job, message: str, *, now: datetime) -> FineTuneJobStatus:
    """Return the status of a job whose objects the API server does not take, such as over quota."""
    draft = Draft(job, (), now=now)
    text = f"The API server refused an object of this job: {message}"
    draft.say(_without_pods(draft), text)
    draft.conditions.set(ConditionType.POD_PROBLEM, True, "Rejected", text)
    conclude(draft)
    return draft.decision().status


def _without_pods(draft: Draft) -> Phase:
    """Return the phase of a job that has no pods at work."""
    if any(attempt.role == names.TRAINER_ROLE for attempt in draft.attempts):
        return Phase.RECOVERING
    if draft.status.plan is not None:
        return Phase.PLANNED
    return Phase.RECOVERING if draft.attempts else Phase.PENDING
