"""Attempts that have ended, and what follows from their ends."""

from datetime import timedelta
from typing import Final, Literal

from pydantic import ValidationError

from finetune_api import names
from finetune_api.failures import FAILURES, Reason, RetryClass
from finetune_api.status import Attempt, Checkpoint, ConditionType, Phase
from finetune_api.trainer import Result, TrainerConfig
from finetune_operator.lifecycle.draft import Draft
from finetune_operator.lifecycle.outcome import Outcome, outcome_of
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.lifecycle.retry import MOST_FRUITLESS, fruitless
from finetune_operator.lifecycle.stability import roll_back, show_last_words
from finetune_operator.planning import PlanInfeasibleError, make_plan, smaller_plan
from finetune_operator.status import final_progress, stopped_progress

SPEC_CHANGED: Final = "The spec was changed before there was a plan."
_IN_VAIN: Final = (
    f"Gave up after {MOST_FRUITLESS} attempts in a row that got no further than the one before:"
    " find out what ends the pods, then delete the job and apply it again."
)
_PEERS: Final = timedelta(seconds=5)
"""How long a pod that may only have lost its peer waits for the peer's own words."""
_ROLES: Final[tuple[Literal["prepare", "trainer"], ...]] = ("prepare", "trainer")


def adopt(draft: Draft) -> None:
    """Record attempts whose pods were made but whose record was not written."""
    for role in _ROLES:
        known = max((one.number for one in draft.attempts if one.role == role), default=0)
        # One that is being deleted was not wanted, such as half of a set whose rest was refused.
        pods = [
            pod for pod in draft.pods if pod.role == role and (pod.terminal or not pod.deleting)
        ]
        newest = max((pod.attempt for pod in pods), default=0)
        if newest > known:
            _adopt(draft, role, newest)


def _adopt(draft: Draft, role: Literal["prepare", "trainer"], number: int) -> None:
    pods = [pod for pod in draft.pods if (pod.role, pod.attempt) == (role, number)]
    started = min(pod.created for pod in pods)
    config = _config(pods[0])
    if draft.status.plan is None and config is not None and not draft.outdated(pods):
        draft.update(starts=config.starts)
        if role == names.TRAINER_ROLE:
            draft.update(plan=config.plan, preparation=config.preparation)
    # Not the status's: that may lack what the attempt before has taught.
    draft.begin(role, number, started, config.plan if config is not None else None)


def _config(pod: Pod) -> TrainerConfig | None:
    try:
        return pod.config
    except ValidationError:
        # Made by a version of the operator that this one does not understand.
        return None


def settle(draft: Draft) -> None:
    """Close the attempts that have ended; draft.confirm is set when that rests on absent pods."""
    for attempt in [one for one in draft.attempts if one.state == "Active"]:
        outcome = _outcome(draft, attempt)
        if outcome is not None:
            _close(draft, attempt, outcome)


def fail(draft: Draft, reason: Reason, message: str, *, advised: bool = False) -> None:
    """End the job as failed; advised says that the message tells what to do already."""
    text = message if advised else f"{message} {FAILURES[reason].advice}"
    draft.say(Phase.FAILED, text)
    draft.update(finish_time=draft.stamp)
    draft.conditions.set(ConditionType.FAILED, True, reason.value, text)
    draft.conditions.clear(ConditionType.POD_PROBLEM, reason.value)
    if draft.active is not None:
        draft.close(draft.active, state="Failed", reason=reason.value, message=message)
    draft.event(reason.value, text, warning=True)


def _outcome(draft: Draft, attempt: Attempt) -> Outcome | None:
    """Return how an attempt ended: as its first pod when all succeeded, else as one that failed."""
    pods = draft.pods_of(attempt)
    ends = [(pod, outcome_of(pod)) for pod in pods]
    failures = [
        _Failure(draft, pod, outcome)
        for pod, outcome in ends
        if outcome is not None and outcome.reason is not None
    ]
    if failures:
        first = min(failures, key=lambda failure: failure.order)
        if first.vague and any(outcome is None for _, outcome in ends):
            draft.wake_at(first.ended + _PEERS)
            return first.outcome if draft.now >= first.ended + _PEERS else None
        return first.outcome
    if len(pods) < _expected(draft, attempt):
        draft.confirm = not draft.confirmed
        missing = Outcome(Reason.POD_DELETED, f"A pod of {_title(attempt)} is gone.")
        return None if draft.confirm else missing
    outcomes = [outcome for _, outcome in ends]
    return outcomes[0] if all(outcome is not None for outcome in outcomes) else None


class _Failure:
    """The failure of one pod of an attempt, to be held against those of the others."""

    def __init__(self, draft: Draft, pod: Pod, outcome: Outcome) -> None:
        self.outcome = outcome
        finished = pod.termination.finished_at if pod.termination else None
        self.ended = finished or draft.now
        self.vague = outcome.reason is Reason.INTERNAL_ERROR and finished is not None
        """Whether it may be no more than that a peer was lost."""
        # The first to fail knows why, and times are in whole seconds.
        self.order = (self.vague, self.ended, pod.rank)


def _expected(draft: Draft, attempt: Attempt) -> int:
    plan = draft.status.plan
    return plan.nodes if plan is not None and attempt.role == names.TRAINER_ROLE else 1


def _title(attempt: Attempt) -> str:
    kind = "preparation" if attempt.role == names.PREPARE_ROLE else "attempt"
    return f"{kind} {attempt.number}"


def _close(draft: Draft, attempt: Attempt, outcome: Outcome) -> None:
    if draft.outdated(draft.pods_of(attempt)):
        draft.close(attempt, state="Stopped", message=SPEC_CHANGED)
    elif outcome.reason is None and outcome.result is not None:
        _succeeded(draft, attempt, outcome.result)
    elif attempt.role == names.PREPARE_ROLE and draft.status.plan is not None:
        # Its pod is gone, but its facts and the plan are at hand.
        draft.close(attempt, state="Succeeded")
    elif draft.job.spec.run_policy.suspend and outcome.may_just_stop:
        _record(draft, attempt, outcome, state="Stopped")
    else:
        _record(draft, attempt, outcome, state="Failed")
        _failed(draft, attempt, outcome)


def _record(
    draft: Draft, attempt: Attempt, outcome: Outcome, *, state: Literal["Failed", "Stopped"]
) -> None:
    result = outcome.result
    show_last_words(draft, result.stability if result is not None else None)
    progress = draft.status.progress
    step = result.step if result is not None else None
    if step is None and progress is not None and attempt.role == names.TRAINER_ROLE:
        step = progress.step
    checkpoint = result.checkpoint_step if result is not None else None
    if result is not None and checkpoint is not None:
        draft.update(checkpoint=Checkpoint(step=checkpoint))
        # Also when it is not the outcome: the cluster's word may outrank the trainer's.
        if result.reason == Reason.PREEMPTED:
            draft.update(progress=stopped_progress(progress, checkpoint))
    draft.close(
        attempt,
        state=state,
        reason=outcome.reason.value if outcome.reason else None,
        message=outcome.message or None,
        exit_code=outcome.exit_code,
        step=step,
    )


def _succeeded(draft: Draft, attempt: Attempt, result: Result) -> None:
    if attempt.role == names.TRAINER_ROLE:
        draft.close(attempt, state="Succeeded", reason="Succeeded", exit_code=0, step=result.step)
        _complete(draft, result)
    elif result.preparation is None:
        message = "Preparation ended without the facts that a plan needs."
        outcome = Outcome(Reason.INTERNAL_ERROR, message, 0, result)
        _record(draft, attempt, outcome, state="Failed")
        _failed(draft, attempt, outcome)
    else:
        draft.close(attempt, state="Succeeded", reason="Succeeded", exit_code=0)
        _plan(draft, result)


def _plan(draft: Draft, result: Result) -> None:
    if draft.status.plan is not None or result.preparation is None:
        return
    draft.update(preparation=result.preparation)
    try:
        plan = make_plan(draft.job.spec, result.preparation, draft.inventory)
    except PlanInfeasibleError as error:
        fail(draft, Reason.PLAN_INFEASIBLE, str(error), advised=True)
        return
    draft.update(plan=plan)
    rows = result.preparation.dataset.rows
    model = result.preparation.model.architecture
    draft.event("Planned", f"Prepared {model} and {rows} rows. Plan: {plan.summary}.")


def _complete(draft: Draft, result: Result) -> None:
    show_last_words(draft, result.stability)
    artifact = result.artifact
    where = f"The {artifact.kind} is at {artifact.uri}." if artifact else "The model is written."
    if result.message:
        where += f" {result.message[0].upper()}{result.message[1:]}."
    draft.say(Phase.SUCCEEDED, where)
    draft.update(
        finish_time=draft.stamp,
        artifact=artifact,
        progress=final_progress(draft.status.progress, result),
        checkpoint=_checkpoint(result) or draft.status.checkpoint,
    )
    draft.conditions.clear(ConditionType.POD_PROBLEM, "Succeeded")
    draft.event("Succeeded", where)


def _checkpoint(result: Result) -> Checkpoint | None:
    return None if result.step is None else Checkpoint(step=result.step)


def _failed(draft: Draft, attempt: Attempt, outcome: Outcome) -> None:
    """Decide whether another attempt follows."""
    reason = outcome.reason or Reason.INTERNAL_ERROR
    if outcome.retry is RetryClass.USER:
        # What the trainer says of the user's input names the fix; exit codes alone do not.
        fail(draft, reason, outcome.message, advised=outcome.result is not None)
        return
    if outcome.retry is RetryClass.ROLLBACK:
        why_not = roll_back(draft, outcome)
        if why_not is not None:
            fail(draft, Reason.TRAINING_UNSTABLE, why_not)
        return
    if outcome.retry is RetryClass.PREEMPTED:
        if fruitless(draft.attempts) >= MOST_FRUITLESS:
            fail(draft, reason, f"{outcome.message} {_IN_VAIN}", advised=True)
            return
    elif _given_up(draft, reason, outcome.message):
        return
    if outcome.retry is RetryClass.ADAPT and not _adapt(draft, attempt, reason):
        fail(draft, reason, outcome.message)
        return
    message = f"{_title(attempt).capitalize()} ended: {reason.value}. {outcome.message}"
    draft.event("Recovering", message, warning=True)


def _given_up(draft: Draft, reason: Reason, message: str) -> bool:
    """Count a failure; fail the job when there were too many."""
    failures = draft.status.failures + 1
    draft.update(failures=failures)
    if failures <= draft.job.spec.run_policy.backoff_limit:
        return False
    tries = "1 attempt" if failures == 1 else f"{failures} attempts"
    fail(draft, reason, f"{message} Gave up after {tries} (runPolicy.backoffLimit).")
    return True


def _adapt(draft: Draft, attempt: Attempt, reason: Reason) -> bool:
    """Make the next attempt smaller; return whether the spec leaves room for that."""
    if attempt.role == names.PREPARE_ROLE:
        return True
    plan, preparation = draft.status.plan, draft.status.preparation
    if plan is None or preparation is None:
        return False
    smaller = smaller_plan(draft.job.spec, preparation, plan, reason, draft.inventory)
    # A checkpoint goes on only as it was spread.
    if smaller is None or (draft.status.checkpoint is not None and smaller.gpus != plan.gpus):
        return False
    draft.update(plan=smaller)
    return True
