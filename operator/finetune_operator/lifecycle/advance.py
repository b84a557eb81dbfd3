"""The next step of a job that has not finished."""

from datetime import timedelta
from typing import Final

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import Attempt, Checkpoint, ConditionType, Phase
from finetune_operator.lifecycle.chains import sources_ready
from finetune_operator.lifecycle.draft import Draft
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.lifecycle.problems import GRACE, STUCK, Problem, first_problem
from finetune_operator.lifecycle.retry import next_start
from finetune_operator.lifecycle.settle import SPEC_CHANGED, fail
from finetune_operator.lifecycle.stability import show_stability
from finetune_operator.planning import PlanInfeasibleError, check_fit
from finetune_operator.planning.quantity import GIB, from_gib, to_gib
from finetune_operator.workloads import Launch

_PREPARE_MEMORY: Final = "4Gi"
_MERGE_FACTOR: Final = 1.2


def advance(draft: Draft) -> None:
    """Decide what happens next."""
    if draft.job.spec.run_policy.suspend:
        _suspend(draft)
        return
    draft.conditions.clear(ConditionType.SUSPENDED, "Resumed")
    if draft.active is not None and draft.outdated(draft.pods_of(draft.active)):
        draft.close(draft.active, state="Stopped", message=SPEC_CHANGED)
    if draft.active is None and not (_fits(draft) and sources_ready(draft)):
        return
    if draft.status.start_time is None:
        draft.update(start_time=draft.stamp)
    if _deadline_passed(draft):
        limit = draft.job.spec.run_policy.active_deadline_seconds
        fail(draft, Reason.DEADLINE_EXCEEDED, f"The job was active for {limit} seconds.")
    elif draft.active is not None:
        _observe(draft, draft.active)
    else:
        _start(draft)


def _fits(draft: Draft) -> bool:
    """Fail a job whose spec alone tells that its GPU cannot train it; else return True."""
    if draft.status.plan is not None:
        return True
    try:
        check_fit(draft.job.spec)
    except PlanInfeasibleError as error:
        fail(draft, Reason.PLAN_INFEASIBLE, str(error), advised=True)
        return False
    return True


def _suspend(draft: Draft) -> None:
    draft.stopping = True
    running = [pod for pod in draft.pods if not pod.terminal]
    if running:
        message = f"Stopping: waiting for pod {_names(running)} to save its work."
        _await_end(draft, running, draft.status.phase, message)
        return
    if not draft.conditions.true(ConditionType.SUSPENDED):
        draft.event("Suspended", "Suspended: no pod is running.")
    checkpoint = draft.status.checkpoint
    where = f" at step {checkpoint.step}" if checkpoint else ""
    draft.say(Phase.SUSPENDED, f"Suspended{where}: set runPolicy.suspend to false to go on.")
    draft.update(start_time=None)
    draft.conditions.set(ConditionType.SUSPENDED, True, "Suspended", "runPolicy.suspend is true.")
    draft.conditions.clear(ConditionType.POD_PROBLEM, "Suspended")


def _deadline_passed(draft: Draft) -> bool:
    limit, started = draft.job.spec.run_policy.active_deadline_seconds, draft.status.start_time
    if limit is None or started is None:
        return False
    deadline = started + timedelta(seconds=limit)
    draft.wake_at(deadline)
    return draft.now >= deadline


def _start(draft: Draft) -> None:
    """Start the next attempt, unless something of an earlier one may still write."""
    running = [pod for pod in draft.pods if not pod.terminal]
    phase = Phase.RECOVERING if draft.attempts else Phase.PENDING
    if running:
        _await_end(draft, running, phase, f"Waiting for pod {_names(running)} to end.")
        return
    before = draft.condition(ConditionType.POD_PROBLEM)
    if before is not None and before.reason == STUCK:
        draft.conditions.clear(ConditionType.POD_PROBLEM, "Resolved")
    due = next_start(draft.attempts, draft.status.failures)
    if due is not None and draft.now < due:
        last = draft.attempts[-1]
        draft.say(phase, f"{last.reason}: {last.message} Trying again at {due:%H:%M:%S} UTC.")
        draft.wake_at(due)
        return
    plan = draft.status.plan
    launch = _launch(draft, trainer=plan is not None)
    if launch.number > 1 and not draft.confirmed:
        draft.confirm = True
        return
    draft.launch = launch
    draft.begin(launch.role, launch.number, draft.stamp, plan)
    if plan is not None:
        _starting(draft)
    else:
        draft.say(Phase.PREPARING, "Fetching and checking model and data.")


def _await_end(draft: Draft, pods: list[Pod], phase: Phase, message: str) -> None:
    """Wait for pods that may still write, and say so when one of them does not end."""
    problem = first_problem(pod for pod in pods if pod.deleting)
    _report(draft, problem)
    draft.say(phase, _told(draft, problem) or message)


def _names(pods: list[Pod]) -> str:
    return ", ".join(pod.name for pod in pods)


def _launch(draft: Draft, *, trainer: bool) -> Launch:
    role = names.TRAINER_ROLE if trainer else names.PREPARE_ROLE
    numbers = [one.number for one in draft.attempts if one.role == role]
    numbers += [pod.attempt for pod in draft.pods if pod.role == role]
    plan = draft.status.plan
    memory = plan.host_memory if plan is not None else _prepare_memory(draft)
    return Launch("trainer" if trainer else "prepare", max(numbers, default=0) + 1, memory)


def _prepare_memory(draft: Draft) -> str:
    """Return the memory of preparation, half as much again for each time that it ran out.

    What the spec asks for is for trainer pods: a CPU node need not have that much. A model that
    adapters are merged into is in memory whole.
    """
    too_small = sum(one.reason == Reason.HOST_OUT_OF_MEMORY for one in draft.attempts)
    sizes = [start.weights_bytes or 0 for start in draft.status.starts.values()]
    merging = _MERGE_FACTOR * max(sizes, default=0) / GIB
    return from_gib((to_gib(_PREPARE_MEMORY) + merging) * 1.5**too_small)


def _starting(draft: Draft) -> None:
    plan = draft.status.plan
    draft.say(Phase.STARTING, f"Starting: {plan.summary}." if plan else "Starting.")


def _observe(draft: Draft, attempt: Attempt) -> None:
    """Tell how the attempt under way is doing."""
    pods = draft.pods_of(attempt)
    problem = first_problem(pods)
    _report(draft, problem)
    if draft.finished:
        return
    leaving = [pod for pod in pods if pod.deleting and not pod.terminal]
    told = _told(draft, problem)
    if leaving:
        draft.say(Phase.RECOVERING, told or f"Pod {_names(leaving)} is being deleted.")
    elif attempt.role == names.PREPARE_ROLE:
        draft.say(Phase.PREPARING, told or "Fetching and checking model and data.")
    elif pods and all(pod.running or pod.termination for pod in pods):
        _running(draft, attempt, pods)
    elif any(pod.unscheduled and pod.unscheduled.reason == "SchedulingGated" for pod in pods):
        queue = draft.job.spec.run_policy.queue
        draft.say(Phase.QUEUED, f"Waiting for admission by queue {queue}.")
    elif told is not None:
        draft.say(Phase.STARTING, told)
    else:
        _starting(draft)


def _told(draft: Draft, problem: Problem | None) -> str | None:
    """Return what is said of a problem; None while it may still pass by itself."""
    known = draft.condition(ConditionType.POD_PROBLEM)
    if problem is None or known is None or (known.status, known.reason) != ("True", problem.reason):
        return None
    return problem.message


def _running(draft: Draft, attempt: Attempt, pods: list[Pod]) -> None:
    report = draft.report
    exporting = report is not None and report.progress.activity == "Exporting"
    if draft.status.phase not in {Phase.RUNNING, Phase.EXPORTING}:
        draft.event("Started", f"Training attempt {attempt.number} runs.")
    draft.follow = pods[0]
    if report is not None:
        step = report.progress.checkpoint_step
        show_stability(draft, report.stability)
        draft.update(
            progress=report.progress,
            checkpoint=draft.status.checkpoint if step is None else Checkpoint(step=step),
        )
    if exporting:
        draft.say(Phase.EXPORTING, "Writing the model.")
    else:
        draft.say(Phase.RUNNING, f"Training, attempt {attempt.number}.")


def _report(draft: Draft, problem: Problem | None) -> None:
    """Keep the PodProblem condition; fail the job when what is missing does not appear."""
    kind = ConditionType.POD_PROBLEM
    if problem is None:
        draft.conditions.clear(kind, "Resolved")
        return
    before = draft.condition(kind)
    if before is not None and before.reason != problem.reason:
        # One problem is over and another has begun: its time counts from now.
        draft.conditions.clear(kind, "Resolved")
    if problem.report_at is not None and draft.now < problem.report_at:
        draft.wake_at(problem.report_at)
        return
    draft.conditions.set(kind, True, problem.reason, problem.message)
    condition = draft.condition(kind)
    if problem.fatal and condition is not None:
        patience_ends = condition.last_transition_time + GRACE
        draft.wake_at(patience_ends)
        if draft.now >= patience_ends:
            fail(draft, Reason(problem.reason), problem.message)
