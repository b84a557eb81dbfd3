"""What happens to a job that has finished, and the conditions that follow from a status."""

from datetime import timedelta
from typing import Final

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import ConditionType, Phase
from finetune_operator.lifecycle.chains import FAILED, unblocked, without_found
from finetune_operator.lifecycle.draft import Draft

_AWAITED: Final = timedelta(seconds=10)
"""How long a job that is to be deleted stays at least while another waits for its model."""


def reopened(draft: Draft) -> bool:
    """Return whether a job that failed before it had a plan was corrected since, and reset it.

    Until there is a plan the whole spec may be corrected. A change of the run policy corrects
    nothing; without the pod of the last preparation any change counts. A job that was refused for
    what it asks of other jobs is also corrected by a change of those.
    """
    failed = draft.condition(ConditionType.FAILED)
    if draft.status.plan is not None or failed is None or failed.status != "True":
        return False
    if draft.job.generation <= failed.observed_generation and not unblocked(draft):
        return False
    prepared = [pod for pod in draft.pods if pod.role == names.PREPARE_ROLE]
    newest = max(prepared, key=lambda pod: pod.attempt, default=None)
    # Nothing was prepared for a spec that no GPU fits: a pod there is of an earlier one.
    unprepared = failed.reason == Reason.PLAN_INFEASIBLE and draft.status.preparation is None
    if newest is not None and not unprepared and not draft.outdated([newest]):
        return False
    draft.conditions.set(ConditionType.FAILED, False, "SpecChanged")
    draft.update(
        finish_time=None,
        start_time=None,
        failures=0,
        preparation=None,
        starts=without_found(draft),
    )
    draft.attempts = [
        one.model_copy(update={"state": "Stopped"}) if one.state == "Failed" else one
        for one in draft.attempts
    ]
    return True


def expire(draft: Draft) -> None:
    """Delete the job when it has been finished for as long as its TTL.

    One whose model another waits for stays until that has looked it up.
    """
    ttl, finished = draft.job.spec.run_policy.ttl_seconds_after_finished, draft.status.finish_time
    if ttl is None or finished is None:
        return
    due = finished + timedelta(seconds=ttl)
    if draft.now >= due and draft.awaited and draft.status.phase is Phase.SUCCEEDED:
        draft.wake_at(draft.now + _AWAITED)
    elif draft.now >= due:
        draft.delete_job = True
    else:
        draft.wake_at(due)


def conclude(draft: Draft) -> None:
    """Derive the conditions that say nothing new: what has been reached, and the kstatus triple."""
    status, phase = draft.status, draft.status.phase
    succeeded, failed = phase is Phase.SUCCEEDED, phase is Phase.FAILED
    stalled = failed or (phase is Phase.PENDING and _blocked(draft))
    waiting = succeeded or stalled or phase is Phase.SUSPENDED
    put = draft.conditions.set
    put(
        ConditionType.PREPARED, status.preparation is not None, *_reached(status.preparation, phase)
    )
    put(ConditionType.PLANNED, status.plan is not None, *_reached(status.plan, phase))
    put(ConditionType.SUCCEEDED, succeeded, phase.value, status.message if succeeded else "")
    put(ConditionType.READY, succeeded, phase.value, status.message)
    put(ConditionType.RECONCILING, not waiting, phase.value, "" if waiting else status.message)
    put(ConditionType.STALLED, stalled, phase.value, status.message if stalled else "")


def _blocked(draft: Draft) -> bool:
    """Return whether a job waits for one that has failed: only a person gets it going again."""
    sources = draft.condition(ConditionType.SOURCES_READY)
    return sources is not None and (sources.status, sources.reason) == ("False", FAILED)


def _reached(fact: object, phase: Phase) -> tuple[str]:
    return (phase.value if fact is None else "Done",)
