"""The next smaller plan after an attempt that ran out of memory."""

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan, Preparation
from finetune_operator.planning.memory import Candidate, estimate
from finetune_operator.planning.quantity import from_gib, to_gib


def smaller_plan(
    spec: FineTuneJobSpec, preparation: Preparation, plan: Plan, reason: Reason
) -> Plan | None:
    """Return a plan that needs less of what ran out; None when the spec leaves no room."""
    if reason is Reason.HOST_OUT_OF_MEMORY:
        return None if spec.resources.memory else _with_more_host_memory(plan)
    if plan.micro_batch_size % 2 == 0 and spec.training.micro_batch_size == "auto":
        halved = plan.model_copy(
            update={
                "micro_batch_size": plan.micro_batch_size // 2,
                "gradient_accumulation_steps": plan.gradient_accumulation_steps * 2,
            }
        )
        return _explained(spec, preparation, halved, "Micro-batch halved: out of GPU memory.")
    if plan.gradient_checkpointing != "full" and spec.training.gradient_checkpointing == "auto":
        checkpointed = plan.model_copy(update={"gradient_checkpointing": "full"})
        return _explained(spec, preparation, checkpointed, "Checkpointing on: out of GPU memory.")
    return None


def _with_more_host_memory(plan: Plan) -> Plan:
    memory = from_gib(1.5 * to_gib(plan.host_memory))
    reasons = [*plan.reasons, f"Host memory raised to {memory}: out of memory."]
    return plan.model_copy(update={"host_memory": memory, "reasons": reasons})


def _explained(spec: FineTuneJobSpec, preparation: Preparation, plan: Plan, why: str) -> Plan:
    candidate = Candidate(
        gpus=plan.gpus,
        strategy=plan.strategy,
        micro_batch_size=plan.micro_batch_size,
        max_length=plan.max_length,
        checkpointing=plan.gradient_checkpointing,
        precision=plan.precision,
    )
    head, _, _ = plan.summary.rpartition(", micro-batch ")
    return plan.model_copy(
        update={
            "memory": estimate(spec, preparation.model, candidate),
            "summary": f"{head}, micro-batch {plan.micro_batch_size}"
            f" x {plan.gradient_accumulation_steps}",
            "reasons": [*plan.reasons, why],
        }
    )
