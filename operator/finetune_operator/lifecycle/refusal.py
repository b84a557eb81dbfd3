"""What follows when the API server does not take the objects of an attempt."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.lifecycle.draft import Decision, Draft
from finetune_operator.lifecycle.finish import conclude, expire
from finetune_operator.lifecycle.job import Job
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.lifecycle.settle import fail


def rejected(
    job: Job, decision: Decision, made: Sequence[Pod], message: str, *, final: bool, now: datetime
) -> Decision:
    """Return the decision in place of one whose launch was refused; all else of it is kept.

    Args:
        job: The job as it was last seen.
        decision: What was to be done.
        made: Pods of the attempt that were made before one was refused; they have to go.
        message: What the API server said.
        final: Whether the same objects would be refused for ever: the job fails.
        now: The time, with time zone.
    """
    draft = Draft(replace(job, status=_without_launch(decision)), made, now=now)
    text = f"The API server refused an object of this job: {message}"
    if final:
        fail(draft, Reason.CONFIG_INVALID, text)
        expire(draft)
    else:
        draft.say(_without_pods(draft), text)
        draft.conditions.set(ConditionType.POD_PROBLEM, True, "Rejected", text)
    conclude(draft)
    refused = draft.decision()
    return replace(
        refused,
        delete=(*decision.delete, *refused.delete),
        events=(*decision.events, *refused.events),
    )


def _without_launch(decision: Decision) -> FineTuneJobStatus:
    launch = decision.launch
    kept = [
        attempt
        for attempt in decision.status.attempts
        if launch is None or (attempt.role, attempt.number) != (launch.role, launch.number)
    ]
    return decision.status.model_copy(update={"attempts": kept})


def _without_pods(draft: Draft) -> Phase:
    """Return the phase of a job that has no pods at work."""
    if any(attempt.role == names.TRAINER_ROLE for attempt in draft.attempts):
        return Phase.RECOVERING
    if draft.status.plan is not None:
        return Phase.PLANNED
    return Phase.RECOVERING if draft.attempts else Phase.PENDING
