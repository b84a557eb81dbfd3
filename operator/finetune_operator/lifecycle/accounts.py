"""What training takes of GPUs and what it measures, told when a status is written anyway.

Nothing here is a reason to write: GPU-hours grow all the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import Attempt, FineTuneJobStatus, Measured, Plan, Usage
from finetune_api.trainer import Result
from finetune_operator.lifecycle.job import Job
from finetune_operator.lifecycle.outcome import outcome_of
from finetune_operator.lifecycle.pods import Pod
from finetune_operator.planning import expected_time

_DIGITS: Final = 6
"""Of GPU-hours: a few milliseconds, so that the sum of many writes is right."""


@dataclass(frozen=True)
class Prices:
    """What GPUs cost, as the person who installed the operator says."""

    currency: str = ""
    per_gpu_hour: Mapping[str, float] = field(default_factory=dict)
    """By product, as in the node label nvidia.com/gpu.product."""


def accounted(
    job: Job, status: FineTuneJobStatus, pods: Sequence[Pod], *, now: datetime, prices: Prices
) -> FineTuneJobStatus:
    """Return the status that is to be written for a job, with its GPU-hours, cost and measurements.

    GPUs count from when the first pod of an attempt was bound to a node: pods that wait for a node
    or for admission hold none. They count until the last pod ended, as far as that is seen.
    """
    before = {(one.role, one.number): one for one in job.status.attempts}
    attempts: list[Attempt] = []
    changed: dict[str, Any] = {}
    for attempt in status.attempts:
        known = before.get((attempt.role, attempt.number))
        if attempt.role != names.TRAINER_ROLE or (known and known.state != "Active"):
            attempts.append(attempt)
            continue
        ours = _pods_of(attempt, pods)
        attempts.append(_with_hours(attempt, ours, now))
        changed |= _measured(attempt, ours)
    changed |= _usage(job, status, _added(before, attempts), prices)
    return status.model_copy(update={"attempts": attempts, **changed})


def _pods_of(attempt: Attempt, pods: Sequence[Pod]) -> list[Pod]:
    ours = [pod for pod in pods if (pod.role, pod.attempt) == (attempt.role, attempt.number)]
    return sorted(ours, key=lambda pod: pod.rank)


def _with_hours(attempt: Attempt, pods: Sequence[Pod], now: datetime) -> Attempt:
    placed = attempt.placed_time or min((pod.placed for pod in pods if pod.placed), default=None)
    if not attempt.gpus:
        return attempt
    hours = 0.0
    if placed is not None:
        held = (_end(attempt, pods, now) - placed).total_seconds()
        hours = round(attempt.gpus * max(held, 0.0) / 3600, _DIGITS)
    # A pod may turn out to have ended before it was last counted.
    hours = max(hours, attempt.gpu_hours or 0.0)
    return attempt.model_copy(update={"placed_time": placed, "gpu_hours": hours})


def _end(attempt: Attempt, pods: Sequence[Pod], now: datetime) -> datetime:
    """Return until when GPUs were held: an operator that was away sees the end of pods late."""
    ends = [pod.termination.finished_at if pod.termination else None for pod in pods]
    known = [end for end in ends if end is not None]
    noticed = attempt.finish_time or now
    return min(noticed, max(known)) if known and len(known) == len(ends) else noticed


def _added(before: Mapping[Any, Attempt], attempts: Sequence[Attempt]) -> float:
    """Return the GPU-hours since the last write; attempts that are no longer listed are in it."""
    added = 0.0
    for attempt in attempts:
        known = before.get((attempt.role, attempt.number))
        added += (attempt.gpu_hours or 0.0) - ((known.gpu_hours if known else None) or 0.0)
    return added


def _usage(job: Job, status: FineTuneJobStatus, added: float, prices: Prices) -> dict[str, Usage]:
    before, plan = job.status.usage, status.plan
    hours = round((before.gpu_hours if before else 0.0) + added, _DIGITS)
    if plan is None or not plan.gpus or status.preparation is None:
        # What was held counts, also while the job is prepared anew.
        return {"usage": before.model_copy(update={"gpu_hours": hours})} if before else {}
    price = prices.per_gpu_hour.get(plan.gpu_product or "")
    if before is not None and plan == job.status.plan:
        awaited, basis = before.expected_gpu_hours, before.expected_basis
    else:
        found = expected_time(job.spec, status.preparation, plan)
        awaited, basis = (found.gpu_hours, found.basis) if found else (None, None)
    usage = Usage(
        gpu_hours=hours,
        expected_gpu_hours=awaited,
        expected_basis=basis,
        cost=None if price is None else round(hours * price, 4),
        currency=None if price is None else prices.currency,
    )
    return {"usage": usage}


def _measured(attempt: Attempt, pods: Sequence[Pod]) -> dict[str, Measured]:
    """Return what an attempt measured that has just ended; nothing when it did not get to train."""
    if attempt.state == "Active":
        return {}
    results = [end.result for end in map(outcome_of, pods) if end is not None and end.result]
    gpu, host = _most("gpu_memory_gib", results), _most("host_memory_gib", results)
    speed = _most("tokens_per_second", results)
    if speed is None and (gpu is None or attempt.reason != Reason.GPU_OUT_OF_MEMORY):
        return {}
    estimate, peak = _comparable(_plan_of(pods), gpu, host)
    measured = Measured(
        attempt=attempt.number,
        gpu_memory_gib=gpu,
        host_memory_gib=host,
        tokens_per_second=speed,
        estimated_memory_gib=estimate,
        memory_error=estimate / peak - 1 if estimate and peak else None,
    )
    return {"measured": measured}


def _most(name: str, results: Sequence[Result]) -> float | None:
    return max((one.measured[name] for one in results if name in one.measured), default=None)


def _plan_of(pods: Sequence[Pod]) -> Plan | None:
    """Return what the pods ran with: the status's plan may be that of the next attempt."""
    try:
        return pods[0].config.plan
    except ValidationError:
        # Made by a version of the operator that this one does not understand.
        return None


def _comparable(
    plan: Plan | None, gpu: float | None, host: float | None
) -> tuple[float | None, float | None]:
    """Return the estimate and the peak that it is an estimate of."""
    if plan is None:
        return None, None
    if plan.gpus == 0:
        return plan.memory.total, host
    # What PyTorch reserves is without the CUDA context.
    return (None, None) if gpu is None else (plan.memory.total - plan.memory.context, gpu)
