"""The next smaller plan after an attempt that ran out of memory."""

from typing import Any, get_args

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan, Preparation
from finetune_operator.planning.candidates import checkpointings, smallest_micro_batch
from finetune_operator.planning.inventory import Inventory, PlanInfeasibleError, gpu_memory
from finetune_operator.planning.memory import Candidate, Checkpointing, estimate
from finetune_operator.planning.planner import first_that_fits
from finetune_operator.planning.pools import choose, pinned
from finetune_operator.planning.quantity import from_gib, to_gib
from finetune_operator.planning.reasons import gpu_name, summarized
from finetune_operator.planning.rollouts import plan_rollout


def smaller_plan(
    spec: FineTuneJobSpec,
    preparation: Preparation,
    plan: Plan,
    reason: Reason,
    inventory: Inventory,
) -> Plan | None:
    """Return a plan that needs less of what ran out; None when the spec leaves no room."""
    spec = pinned(spec, plan.gpu_product)
    if reason is Reason.HOST_OUT_OF_MEMORY:
        return None if spec.resources.memory else _with_more_host_memory(plan)
    half = plan.micro_batch_size // 2
    halves = plan.micro_batch_size % 2 == 0 and half >= smallest_micro_batch(spec)
    if halves and spec.training.micro_batch_size == "auto":
        accumulation = plan.gradient_accumulation_steps * 2
        change: dict[str, Any] = {
            "micro_batch_size": half,
            "gradient_accumulation_steps": accumulation,
        }
        words = f"Micro-batch {half} x {accumulation}: out of GPU memory with twice as large ones."
        return _changed(spec, preparation, plan, inventory, change, words)
    more = _more_checkpointing(spec, plan)
    if more is not None:
        words = (
            f"Gradient checkpointing {more}: out of GPU memory with {plan.gradient_checkpointing}."
        )
        change = {"gradient_checkpointing": more}
        return _changed(spec, preparation, plan, inventory, change, words)
    return _with_more_gpus(spec, preparation, plan, inventory)


def _more_checkpointing(spec: FineTuneJobSpec, plan: Plan) -> Checkpointing | None:
    every = get_args(Checkpointing)
    more = every[every.index(plan.gradient_checkpointing) + 1 :]
    ways = checkpointings(spec, compiled=plan.compile)
    return next((way for way in ways if way in more), None)


def _with_more_host_memory(plan: Plan) -> Plan:
    memory = from_gib(1.5 * to_gib(plan.host_memory))
    reasons = [*plan.reasons, f"Host memory raised to {memory}: out of memory."]
    return plan.model_copy(update={"host_memory": memory, "reasons": reasons})


def _with_more_gpus(
    spec: FineTuneJobSpec, preparation: Preparation, plan: Plan, inventory: Inventory
) -> Plan | None:
    """Return a plan on more GPUs whose estimate is smaller: the last estimate was too low."""
    if spec.resources.gpu.count != "auto":
        return None
    memory = f"{int(1024 * plan.memory.total)}Mi"
    gpu = spec.resources.gpu.model_copy(update={"memory": memory})
    tighter = spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpu": gpu})})
    try:
        offer = choose(tighter, preparation, inventory, beyond=plan.gpus)
        larger = first_that_fits(offer.spec, preparation, offer.inventory, beyond=plan.gpus)
        rollout = plan_rollout(spec, preparation, offer.inventory, larger)
    except PlanInfeasibleError:
        return None
    words = f"GPUs {larger.gpus}, {larger.strategy}: out of GPU memory on {plan.gpus}."
    # The plan may have been for GPUs to be added already.
    added = [offer.reason] if offer.reason and offer.reason not in plan.reasons else []
    reasons = [*plan.reasons, *added, words]
    larger = larger.model_copy(update={"rollout": rollout, "reasons": reasons})
    return summarized(larger, spec.adapter.type, gpu_name(spec, gpu_memory(spec, inventory)))


def _changed(
    spec: FineTuneJobSpec,
    preparation: Preparation,
    plan: Plan,
    inventory: Inventory,
    change: dict[str, Any],
    words: str,
) -> Plan:
    changed = plan.model_copy(update={**change, "reasons": [*plan.reasons, words]})
    memory = estimate(spec, preparation, Candidate.of(changed))
    rollout = plan_rollout(spec, preparation, inventory, changed)
    changed = changed.model_copy(update={"memory": memory, "rollout": rollout})
    return summarized(changed, spec.adapter.type, gpu_name(spec, gpu_memory(spec, inventory)))
