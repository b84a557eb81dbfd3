"""A plan in words: its summary, why it is so, and why there is none."""

from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import Memory, Plan, Preparation
from finetune_operator.planning.candidates import LARGEST_MICRO_BATCH
from finetune_operator.planning.inventory import USABLE
from finetune_operator.planning.memory import Candidate
from finetune_operator.planning.products import PRODUCTS
from finetune_operator.planning.quantity import to_gib


def summarized(plan: Plan, adapter: str, gpu: str) -> Plan:
    """Return a plan with its summary; gpu names one GPU."""
    parts = [_hardware(plan, gpu), adapter]
    if plan.gpus > 1:
        parts.append(plan.strategy)
    parts.append(f"micro-batch {plan.micro_batch_size} x {plan.gradient_accumulation_steps}")
    if plan.gradient_checkpointing != "none":
        parts.append(f"checkpointing {plan.gradient_checkpointing}")
    return plan.model_copy(update={"summary": ", ".join(parts)})


def gpu_name(spec: FineTuneJobSpec, limit: float) -> str:
    """Return the GPU's product, or its memory of limit GiB when any product will do."""
    product = spec.resources.gpu.product
    return f"{limit:.0f} GiB GPU" if product == "auto" else product


def _hardware(plan: Plan, gpu: str) -> str:
    if plan.gpus == 0:
        return "CPU"
    if plan.nodes == 1:
        return f"{plan.gpus} x {gpu}"
    return f"{plan.nodes} nodes x {plan.gpus_per_node} x {gpu}"


def why(spec: FineTuneJobSpec, candidate: Candidate, memory: Memory, limit: float) -> list[str]:
    """Return what decided for a way to run on GPUs."""
    training, asked = spec.training, "as asked for"
    count = "the fewest that fit" if spec.resources.gpu.count == "auto" else asked
    micro_batch = (
        f"the largest power of two up to {LARGEST_MICRO_BATCH} that divides the batch and fits"
        if training.micro_batch_size == "auto"
        else asked
    )
    checkpointing = "the cheapest that fits" if training.gradient_checkpointing == "auto" else asked
    fill = f"{memory.total:.1f} of {limit:.0f} GiB on each, and {USABLE:.0%} may be filled"
    gpu = spec.resources.gpu
    assumed = (
        [f"GPU memory: {limit:.0f} GiB assumed: set resources.gpu.memory."]
        if gpu.memory == "auto" and gpu.product not in PRODUCTS
        else []
    )
    return [
        *assumed,
        f"GPUs {candidate.gpus}: {count}; the estimate is {fill}.",
        *_strategy(spec, candidate),
        f"Micro-batch {candidate.micro_batch_size}: {micro_batch}.",
        f"Gradient checkpointing {candidate.checkpointing}: {checkpointing}.",
    ]


def why_not_packed(
    spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate
) -> list[str]:
    """Return that a micro-batch is mostly padding which packing would save, if that is so."""
    data = preparation.dataset
    mean, longest = data.mean_tokens, min(data.max_tokens, candidate.max_length)
    pads = candidate.micro_batch_size > 1 and mean < longest / 2
    if spec.method is not Method.SFT or spec.training.packing or not pads:
        return []
    reason = (
        f"Packing off: rows have {mean:.0f} tokens on average beside a longest of {longest}, and a"
        " micro-batch is padded to its longest; with training.packing rows are filled with several"
        " documents, and batchSize counts filled rows."
    )
    return [reason]


def _strategy(spec: FineTuneJobSpec, candidate: Candidate) -> list[str]:
    if candidate.gpus == 1:
        return []
    if spec.resources.strategy != "auto":
        return [f"Strategy {candidate.strategy}: as asked for."]
    return [f"Strategy {candidate.strategy}: {_fits(candidate)}."]


def _fits(candidate: Candidate) -> str:
    if candidate.strategy == "ddp":
        return "one copy of the model fits each GPU"
    if candidate.strategy == "hsdp":
        return (
            "no GPU holds a copy of its own, but those of one node do together, so weights stay"
            " within the node and only gradients pass between nodes"
        )
    who = "node" if 1 < candidate.nodes < candidate.gpus else "GPU"
    return f"no {who} holds a copy of its own, so weights are spread over all of them"


def why_not(
    spec: FineTuneJobSpec, smallest: float, limit: float, most: int, ways: Sequence[str]
) -> str:
    """Return the sentence that nothing fits on so many GPUs with limit GiB each, and what would."""
    usable = limit * USABLE
    each = f"each of {most} GPUs" if most > 1 else "one GPU"
    excess = f"{smallest - usable:.1f} more than the {usable:.1f} of {limit:.0f} GiB"
    instead = f"it would fit with {' or '.join(ways)}" if ways else "no single change would help"
    return (
        f"{spec.method.value} with adapter type {spec.adapter.type} needs about"
        f" {smallest:.1f} GiB on {each} at the smallest micro-batch allowed, {excess} that may be"
        f" filled: {instead}."
    )


def why_host_memory(spec: FineTuneJobSpec, memory: Memory) -> str:
    """Return what decided for the memory of a pod that trains on the CPU."""
    asked = spec.resources.memory
    if asked is None:
        return f"Memory: the estimate of {memory.total:.1f} GiB, a tenth more, and 1 GiB."
    below = ", which is below the estimate of" if to_gib(asked) < memory.total else "; estimated"
    return f"Memory {asked}: as asked for{below} {memory.total:.1f} GiB."
