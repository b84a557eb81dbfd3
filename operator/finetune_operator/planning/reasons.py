"""A plan in words: its summary, why it is so, and why there is none."""

from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import Memory, Plan, Preparation
from finetune_operator.planning.candidates import (
    CPU_MODEST_GIB,
    CPU_MODEST_SHARE,
    LARGEST_MICRO_BATCH,
)
from finetune_operator.planning.host import POD_GIB, PROCESS_GIB, HostMemory
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
    checkpointing = asked
    if training.gradient_checkpointing == "auto":
        recomputed = candidate.compile and candidate.checkpointing != "none"
        checkpointing = f"the cheapest that fits{' with compiled layers' if recomputed else ''}"
    fill = f"{memory.total:.1f} of {limit:.0f} GiB on each, and {USABLE:.0%} may be filled"
    return [
        *_assumed(spec, limit),
        f"GPUs {candidate.gpus}: {count}; the estimate is {fill}.",
        *_strategy(spec, candidate),
        f"Micro-batch {candidate.micro_batch_size}: {micro_batch}.",
        f"Gradient checkpointing {candidate.checkpointing}: {checkpointing}.",
        *_float8(spec),
        *_packed(spec, candidate),
    ]


def _float8(spec: FineTuneJobSpec) -> list[str]:
    if spec.training.precision != "float8":
        return []
    known = spec.resources.gpu.product in PRODUCTS
    where = "" if known else ", which only GPUs of the Ada, Hopper and Blackwell generations have"
    name = "" if known else ": name one in resources.gpu.product"
    return [f"Precision float8: as asked for{where}{name}."]


def _packed(spec: FineTuneJobSpec, candidate: Candidate) -> list[str]:
    if not spec.training.packing:
        return []
    return [
        f"Packing on: as asked for; a row has up to {candidate.max_length} tokens of documents."
    ]


def _assumed(spec: FineTuneJobSpec, limit: float) -> list[str]:
    gpu = spec.resources.gpu
    if gpu.memory != "auto" or gpu.product in PRODUCTS:
        return []
    if gpu.product == "auto":
        words = f"{limit:.0f} GiB assumed: set resources.gpu.product, or resources.gpu.memory"
        return [f"GPU memory: {words}."]
    words = (
        f"not known here, {limit:.0f} GiB assumed: correct the name, or set resources.gpu.memory"
    )
    return [f"GPU {gpu.product}: {words}."]


def why_not_packed(
    spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate
) -> list[str]:
    """Return that a micro-batch is mostly padding, if that is so."""
    data = preparation.dataset
    mean, longest = data.mean_tokens, min(data.max_tokens, candidate.max_length)
    unlike = candidate.micro_batch_size > 1 and mean < longest / 2
    if not unlike or spec.method is not Method.SFT or spec.training.packing:
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
        return "each GPU holds a copy of the model"
    if candidate.strategy == "hsdp":
        return (
            "the model does not fit one GPU, but those of one node, so weights stay within the node"
            " and only gradients pass between nodes"
        )
    where = "the GPUs of one node" if 1 < candidate.nodes < candidate.gpus else "one GPU"
    return f"the model does not fit {where}, so weights are spread over all GPUs"


def why_not(
    spec: FineTuneJobSpec,
    smallest: float,
    limit: float,
    gpus: int,
    ways: Sequence[str],
    *,
    limited: bool,
) -> str:
    """Return the sentence that nothing fits on so many GPUs with limit GiB each, and what would.

    limited: training.batchSize cannot be split over more GPUs.
    """
    usable = limit * USABLE
    each = f"each of {gpus} GPUs" if gpus > 1 else "one GPU"
    if limited:
        each += f" (training.batchSize {spec.training.batch_size} cannot be split over more)"
    excess = f"{smallest - usable:.1f} more than the {usable:.1f} of {limit:.0f} GiB"
    instead = f"it would fit with {' or '.join(ways)}" if ways else "no single change would help"
    return (
        f"{spec.method.value} with adapter type {spec.adapter.type} needs about"
        f" {smallest:.1f} GiB on {each} at the smallest micro-batch allowed, {excess} that may be"
        f" filled: {instead}."
    )


def why_host_memory(spec: FineTuneJobSpec, host: HostMemory) -> str:
    """Return what decided for the memory of a pod that trains on GPUs."""
    if spec.resources.memory is not None:
        return f"Host memory {_asked_memory(spec.resources.memory, host.total)}"
    processes = f"{host.processes} x {PROCESS_GIB} GiB for a process"
    copies = f"{host.copies} x " if host.copies > 1 else ""
    weights = f"{copies}{host.weights:.1f} GiB for the weights"
    return f"Host memory: {processes}, {weights} and {POD_GIB} GiB beside."


def why_cpu_micro_batch(spec: FineTuneJobSpec, chosen: int, smallest: int) -> str:
    """Return what decided for the micro-batch on the CPU."""
    if spec.training.micro_batch_size != "auto":
        return f"Micro-batch {chosen}: as asked for."
    modest = f"{CPU_MODEST_GIB} GiB, or {CPU_MODEST_SHARE:.0%} of what micro-batch {smallest} takes"
    return (
        f"Micro-batch {chosen}: the largest power of two up to {LARGEST_MICRO_BATCH} that divides"
        f" the batch and takes at most {modest}."
    )


def why_cpu_memory(spec: FineTuneJobSpec, memory: Memory) -> str:
    """Return what decided for the memory of a pod that trains on the CPU."""
    asked = spec.resources.memory
    if asked is None:
        return f"Memory: the estimate of {memory.total:.1f} GiB, a tenth more, and 1 GiB."
    return f"Memory {_asked_memory(asked, memory.total)}"


def _asked_memory(asked: str, estimated: float) -> str:
    below = ", which is below the estimate of" if to_gib(asked) < estimated else "; estimated"
    return f"{asked}: as asked for{below} {estimated:.1f} GiB."
