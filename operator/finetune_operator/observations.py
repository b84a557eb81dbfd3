"""What a status that has been written adds to the operator's metrics."""

from finetune_api.status import FineTuneJobStatus, Plan
from finetune_operator.lifecycle import Job
from finetune_operator.metrics import GPU_HOURS, PHASES, PLAN_MEMORY_ERROR
from finetune_operator.planning.products import PRODUCTS


def observe(job: Job, written: FineTuneJobStatus) -> None:
    """Count what is new in a status, against the job as it was before the write.

    So each attempt counts once, however often its job is reconciled and tried to be written.
    """
    if written.phase is not job.status.phase:
        PHASES.labels(written.phase.value).inc()
    product = _product(written.plan)
    before = job.status.usage.gpu_hours if job.status.usage else 0.0
    if written.usage is not None and written.usage.gpu_hours > before:
        added = written.usage.gpu_hours - before
        GPU_HOURS.labels(job.spec.method.value, product).inc(added)
    measured = written.measured
    if measured is None or measured.memory_error is None or measured == job.status.measured:
        return
    labels = job.spec.method.value, job.spec.adapter.type, product
    PLAN_MEMORY_ERROR.labels(*labels).observe(measured.memory_error)


def _product(plan: Plan | None) -> str:
    """Return a label of few values: jobs may name any product."""
    if plan is None or plan.gpu_product is None:
        return "any" if plan is not None and plan.gpus else "cpu"
    return plan.gpu_product if plan.gpu_product in PRODUCTS else "other"
