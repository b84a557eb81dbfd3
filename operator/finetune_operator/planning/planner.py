"""The plan: the fewest GPUs that fit, the largest micro-batch that fits, and why."""

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Memory, Plan, Preparation
from finetune_operator.planning.alternatives import ways_out
from finetune_operator.planning.candidates import (
    CPU_MODEST_GIB,
    CPU_MODEST_SHARE,
    counts,
    indivisible,
    longest_sequence,
    micro_batches,
    precision,
)
from finetune_operator.planning.compilation import why_compiled
from finetune_operator.planning.host import HostMemory
from finetune_operator.planning.inventory import (
    Inventory,
    PlanInfeasibleError,
    check_product,
    gpu_memory,
)
from finetune_operator.planning.memory import Candidate, estimate
from finetune_operator.planning.pools import choose
from finetune_operator.planning.quantity import from_gib
from finetune_operator.planning.reasons import (
    gpu_name,
    summarized,
    why,
    why_cpu_memory,
    why_cpu_micro_batch,
    why_host_memory,
    why_not,
    why_not_packed,
)
from finetune_operator.planning.rollouts import check_rollout, plan_rollout
from finetune_operator.planning.search import search


def make_plan(spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory) -> Plan:
    """Return the plan for a prepared job; PlanInfeasibleError when there is none."""
    if spec.resources.gpu.count == 0:
        check_rollout(spec, preparation, inventory)
        return _cpu_plan(spec, preparation, longest_sequence(spec, preparation))
    check_product(spec, inventory)
    offer = choose(spec, preparation, inventory)
    plan = first_that_fits(offer.spec, preparation, offer.inventory, beyond=0)
    rollout = plan_rollout(offer.spec, preparation, offer.inventory, plan)
    reasons = plan.reasons if offer.reason is None else [offer.reason, *plan.reasons]
    return plan.model_copy(update={"rollout": rollout, "reasons": reasons})


def first_that_fits(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory, *, beyond: int
) -> Plan:
    """Return the cheapest plan on more than so many GPUs; PlanInfeasibleError if none fits."""
    limit = gpu_memory(spec, inventory)
    found = search(spec, preparation, inventory, beyond=beyond)
    if found.fit is not None:
        candidate, memory = found.fit
        return _gpu_plan(spec, preparation, candidate, memory, limit)
    if found.smallest is None:
        raise PlanInfeasibleError(f"resources.gpu.count allows no more than {beyond} GPUs.")
    gpus, total = found.smallest
    raise PlanInfeasibleError(
        why_not(
            spec,
            total,
            limit,
            gpus,
            ways_out(spec, preparation, inventory),
            limited=gpus == max(counts(spec, inventory))
            and max(indivisible(spec, inventory), default=0) > gpus,
        )
    )


def _gpu_plan(
    spec: FineTuneJobSpec,
    preparation: Preparation,
    candidate: Candidate,
    memory: Memory,
    limit: float,
) -> Plan:
    per_node = candidate.gpus // candidate.nodes
    host = HostMemory.of(spec, preparation, candidate)
    product = spec.resources.gpu.product
    plan = Plan(
        summary="",
        gpu_product=None if product == "auto" else product,
        gpus=candidate.gpus,
        nodes=candidate.nodes,
        gpus_per_node=per_node,
        strategy=candidate.strategy,
        micro_batch_size=candidate.micro_batch_size,
        gradient_accumulation_steps=spec.training.batch_size
        // (candidate.gpus * candidate.micro_batch_size),
        max_length=candidate.max_length,
        precision=candidate.precision,
        gradient_checkpointing=candidate.checkpointing,
        compile=candidate.compile,
        cpu=spec.resources.cpu or str(per_node),
        host_memory=spec.resources.memory or from_gib(host.total),
        memory=memory,
        reasons=[
            *why(spec, candidate, memory, limit),
            why_host_memory(spec, host),
            *why_not_packed(spec, preparation, candidate),
            why_compiled(spec, preparation, candidate),
        ],
    )
    return summarized(plan, spec.adapter.type, gpu_name(spec, limit))


def _cpu_plan(spec: FineTuneJobSpec, preparation: Preparation, length: int) -> Plan:
    number_format = precision(spec, "float32")
    if number_format == "float8":
        raise PlanInfeasibleError(
            "training.precision is float8, which needs a GPU, but resources.gpu.count is 0: set"
            " precision to auto, or ask for GPUs."
        )
    chosen = spec.training.gradient_checkpointing
    ways = [
        Candidate(
            gpus=0,
            strategy="single",
            micro_batch_size=size,
            max_length=length,
            checkpointing="none" if chosen == "auto" else chosen,
            precision=number_format,
        )
        for size in micro_batches(spec, 0)
    ]
    memories = [estimate(spec, preparation, way) for way in ways]
    modest = max(CPU_MODEST_GIB, CPU_MODEST_SHARE * memories[-1].total)
    candidate, memory = next(
        (way, memory) for way, memory in zip(ways, memories, strict=True) if memory.total <= modest
    )
    micro_batch = candidate.micro_batch_size
    plan = Plan(
        summary="",
        gpus=0,
        nodes=1,
        gpus_per_node=0,
        strategy="single",
        micro_batch_size=micro_batch,
        gradient_accumulation_steps=spec.training.batch_size // micro_batch,
        max_length=length,
        precision=number_format,
        gradient_checkpointing=candidate.checkpointing,
        compile=spec.training.compile == "always",
        cpu=spec.resources.cpu or "1",
        host_memory=spec.resources.memory or from_gib(1.1 * memory.total + 1),
        memory=memory,
        reasons=[
            "CPU: resources.gpu.count is 0.",
            why_cpu_micro_batch(spec, micro_batch, ways[-1].micro_batch_size),
            why_cpu_memory(spec, memory),
        ],
    )
    return summarized(plan, spec.adapter.type, "")
