"""The plan: the fewest GPUs that fit, the largest micro-batch that fits, and why."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Memory, Plan, Preparation
from finetune_operator.planning.memory import Candidate, Precision, Strategy, estimate
from finetune_operator.planning.quantity import from_gib, to_gib

_USABLE: Final = 0.92
"""Share of a GPU's memory that a plan may fill."""

_LARGEST_MICRO_BATCH: Final = 8
_LONGEST_DEFAULT: Final = 4096
_COMPILE_FROM_STEPS: Final = 100
"""Compiling the layers costs 7 to 20 seconds once and gains about a tenth of each step."""


class PlanInfeasibleError(Exception):
    """No plan satisfies the spec; the message names the field, what was found and the fix."""


@dataclass(frozen=True)
class Inventory:
    """What the cluster offers, where spec.resources.gpu does not say it."""

    gpu_memory_gib: float = 80.0
    """Memory of one GPU."""
    gpus_per_node: int = 8
    """GPUs of one node."""


def make_plan(spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory) -> Plan:
    """Return the plan for a prepared job; PlanInfeasibleError when there is none."""
    _check_one_node(spec, inventory)
    length = _max_length(spec, preparation)
    if spec.resources.gpu.count == 0:
        return _cpu_plan(spec, preparation, length)
    limit = _gpu_memory(spec, inventory)
    estimates: list[Memory] = []
    for candidate in _candidates(spec, inventory, length):
        memory = estimate(spec, preparation.model, candidate)
        if memory.total <= limit * _USABLE:
            return _gpu_plan(spec, preparation, candidate, memory, limit)
        estimates.append(memory)
    smallest = min(estimates, key=lambda memory: memory.total)
    raise PlanInfeasibleError(_why_not(spec, inventory, smallest, limit))


def _check_one_node(spec: FineTuneJobSpec, inventory: Inventory) -> None:
    nodes, count = spec.resources.nodes, spec.resources.gpu.count
    if nodes not in {"auto", 1}:
        raise PlanInfeasibleError(
            f"resources.nodes is {nodes}, but this version trains on one node: leave nodes out."
        )
    if count != "auto" and count > inventory.gpus_per_node:
        raise PlanInfeasibleError(
            f"resources.gpu.count is {count}, but this version trains on one node, which has at"
            f" most {inventory.gpus_per_node} GPUs: ask for {inventory.gpus_per_node} or fewer."
        )


def _max_length(spec: FineTuneJobSpec, preparation: Preparation) -> int:
    if spec.training.max_length is not None:
        return spec.training.max_length
    longest = min(_LONGEST_DEFAULT, preparation.model.max_positions)
    return max(1, min(preparation.dataset.max_tokens, longest))


def _gpu_memory(spec: FineTuneJobSpec, inventory: Inventory) -> float:
    memory = spec.resources.gpu.memory
    return inventory.gpu_memory_gib if memory == "auto" else to_gib(memory)


def _precision(spec: FineTuneJobSpec, default: Precision) -> Precision:
    return default if spec.training.precision == "auto" else spec.training.precision


def _counts(spec: FineTuneJobSpec, inventory: Inventory) -> list[int]:
    """Return the numbers of GPUs to try, fewest first."""
    count = spec.resources.gpu.count
    if count != "auto":
        return [count]
    counts = [count for count in (1, 2, 4, 8) if count <= inventory.gpus_per_node]
    micro = spec.training.micro_batch_size
    unit = 1 if micro == "auto" else micro
    fitting = [count for count in counts if spec.training.batch_size % (count * unit) == 0]
    return fitting or [1]


def _strategies(spec: FineTuneJobSpec, gpus: int) -> list[Strategy]:
    if gpus == 1:
        return ["single"]
    # Sharding is never chosen: the trainer runs it only where it has been proven, which is not yet.
    return ["ddp"] if spec.resources.strategy == "auto" else [spec.resources.strategy]


def _micro_batches(spec: FineTuneJobSpec, gpus: int) -> list[int]:
    """Return the micro-batches to try, largest first."""
    gpus = max(1, gpus)
    if spec.training.batch_size % gpus:
        raise PlanInfeasibleError(
            f"training.batchSize is {spec.training.batch_size}, which cannot be split over {gpus}"
            f" GPUs: make it a multiple of {gpus}."
        )
    share = spec.training.batch_size // gpus
    micro = spec.training.micro_batch_size
    if micro == "auto":
        return [size for size in (8, 4, 2, 1) if size <= _LARGEST_MICRO_BATCH and share % size == 0]
    if share % micro:
        raise PlanInfeasibleError(
            f"training.microBatchSize is {micro}, which does not divide the {share} sequences of"
            f" each step that one GPU gets: choose a divisor of {share}."
        )
    return [micro]


def _candidates(spec: FineTuneJobSpec, inventory: Inventory, length: int) -> Iterator[Candidate]:
    chosen = spec.training.gradient_checkpointing
    for gpus in _counts(spec, inventory):
        for strategy in _strategies(spec, gpus):
            for checkpointing in ("none", "full") if chosen == "auto" else (chosen,):
                for micro_batch in _micro_batches(spec, gpus):
                    yield Candidate(
                        gpus=gpus,
                        strategy=strategy,
                        micro_batch_size=micro_batch,
                        max_length=length,
                        checkpointing=checkpointing,
                        precision=_precision(spec, "bf16"),
                    )


def _why_not(spec: FineTuneJobSpec, inventory: Inventory, smallest: Memory, limit: float) -> str:
    most = max(_counts(spec, inventory))
    return (
        f"{spec.method.value} with adapter type {spec.adapter.type} needs about"
        f" {smallest.total:.1f} GiB on each of {most} GPUs at the smallest micro-batch allowed, and"
        f" one GPU offers {limit * _USABLE:.1f} of its {limit:.0f} GiB: allow larger GPUs in"
        " resources.gpu.memory, use adapter type qlora, or lower training.maxLength."
    )


def _steps(spec: FineTuneJobSpec, preparation: Preparation) -> int:
    if spec.training.max_steps is not None:
        return spec.training.max_steps
    return math.ceil(spec.training.epochs * preparation.dataset.rows / spec.training.batch_size)


def _gpu_plan(
    spec: FineTuneJobSpec,
    preparation: Preparation,
    candidate: Candidate,
    memory: Memory,
    limit: float,
) -> Plan:
    gpus, micro_batch = candidate.gpus, candidate.micro_batch_size
    accumulation = spec.training.batch_size // (gpus * micro_batch)
    compiled, why_compiled = _compile(spec, preparation)
    product = None if spec.resources.gpu.product == "auto" else spec.resources.gpu.product
    return Plan(
        summary=f"{gpus} x {product or f'{limit:.0f} GiB GPU'}, {spec.adapter.type},"
        f" micro-batch {micro_batch} x {accumulation}",
        gpu_product=product,
        gpus=gpus,
        nodes=1,
        gpus_per_node=gpus,
        strategy=candidate.strategy,
        micro_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_length=candidate.max_length,
        precision=candidate.precision,
        gradient_checkpointing=candidate.checkpointing,
        compile=compiled,
        cpu=spec.resources.cpu or str(gpus),
        host_memory=spec.resources.memory or from_gib(_host_memory(preparation, gpus)),
        memory=memory,
        reasons=[*_reasons(spec, candidate, memory, limit), why_compiled],
    )


def _reasons(
    spec: FineTuneJobSpec, candidate: Candidate, memory: Memory, limit: float
) -> list[str]:
    training, asked = spec.training, "as asked for"
    count = "the fewest that fit" if spec.resources.gpu.count == "auto" else asked
    micro_batch = (
        f"the largest power of two up to {_LARGEST_MICRO_BATCH} that divides the batch and fits"
        if training.micro_batch_size == "auto"
        else asked
    )
    checkpointing = "the cheapest that fits" if training.gradient_checkpointing == "auto" else asked
    fill = f"{memory.total:.1f} of {limit:.0f} GiB on each, and {_USABLE:.0%} may be filled"
    assumed = (
        [f"GPU memory: {limit:.0f} GiB assumed: set resources.gpu.memory."]
        if spec.resources.gpu.memory == "auto"
        else []
    )
    return [
        *assumed,
        f"GPUs {candidate.gpus}: {count}; the estimate is {fill}.",
        f"Micro-batch {candidate.micro_batch_size}: {micro_batch}.",
        f"Gradient checkpointing {candidate.checkpointing}: {checkpointing}.",
    ]


def _compile(spec: FineTuneJobSpec, preparation: Preparation) -> tuple[bool, str]:
    if spec.training.compile != "auto":
        return spec.training.compile == "always", f"Compile {spec.training.compile}: as asked for."
    steps = _steps(spec, preparation)
    compiled = steps >= _COMPILE_FROM_STEPS
    pays = "pay" if compiled else "are too few to pay"
    return compiled, f"Compile {'on' if compiled else 'off'}: {steps} steps {pays} for compiling."


def _host_memory(preparation: Preparation, processes: int) -> float:
    """Each process loads the weights once and holds Python, CUDA and the data loader."""
    return processes * (4 + 1.2 * preparation.model.weights_bytes / 2**30) + 4


def _host_memory_reason(spec: FineTuneJobSpec, memory: Memory) -> str:
    asked = spec.resources.memory
    if asked is None:
        return f"Memory: the estimate of {memory.total:.1f} GiB, a quarter more, and 1 GiB."
    below = ", which is below the estimate of" if to_gib(asked) < memory.total else "; estimated"
    return f"Memory {asked}: as asked for{below} {memory.total:.1f} GiB."


def _cpu_plan(spec: FineTuneJobSpec, preparation: Preparation, length: int) -> Plan:
    precision = _precision(spec, "float32")
    if precision == "float8":
        raise PlanInfeasibleError(
            "training.precision is float8, which needs a GPU, but resources.gpu.count is 0: set"
            " precision to auto, or ask for GPUs."
        )
    micro_batch = _micro_batches(spec, 0)[0]
    chosen = spec.training.gradient_checkpointing
    candidate = Candidate(
        gpus=0,
        strategy="single",
        micro_batch_size=micro_batch,
        max_length=length,
        checkpointing="none" if chosen == "auto" else chosen,
        precision=precision,
    )
    memory = estimate(spec, preparation.model, candidate)
    accumulation = spec.training.batch_size // micro_batch
    return Plan(
        summary=f"CPU, {spec.adapter.type}, micro-batch {micro_batch} x {accumulation}",
        gpus=0,
        nodes=1,
        gpus_per_node=0,
        strategy="single",
        micro_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_length=length,
        precision=precision,
        gradient_checkpointing=candidate.checkpointing,
        compile=spec.training.compile == "always",
        cpu=spec.resources.cpu or "1",
        host_memory=spec.resources.memory or from_gib(1.25 * memory.total + 1),
        memory=memory,
        reasons=[
            "CPU: resources.gpu.count is 0.",
            _host_memory_reason(spec, memory),
        ],
    )
