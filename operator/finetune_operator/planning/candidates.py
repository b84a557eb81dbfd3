"""The ways in which a job could run, cheapest first."""

from collections.abc import Iterator
from typing import Final

from finetune_api.lengths import max_length
from finetune_api.spec import SHARDED, FineTuneJobSpec, Kto, Method
from finetune_api.status import Preparation
from finetune_operator.planning.compilation import compilation
from finetune_operator.planning.inventory import Inventory, PlanInfeasibleError
from finetune_operator.planning.memory import Candidate, Checkpointing, Precision, Strategy

LARGEST_MICRO_BATCH: Final = 8

CPU_MODEST_GIB: Final = 16
"""Memory that any micro-batch on the CPU may take."""

CPU_MODEST_SHARE: Final = 1.5
"""What a larger one may take of the memory of the smallest micro-batch."""

_PER_NODE: Final = (1, 2, 4, 8)
_MORE_NODES: Final = (2, 4)


def candidates(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory
) -> Iterator[Candidate]:
    """Yield the ways to run on GPUs; PlanInfeasibleError when what is asked for is at odds."""
    length, number = longest_sequence(spec, preparation), precision(spec, "bf16")
    for gpus in counts(spec, inventory):
        seconds = compilation(spec, preparation, gpus, length, number).seconds
        paces = sorted(_paces(spec), key=lambda pace: seconds(*pace))
        nodes = nodes_of(spec, inventory, gpus)
        for strategy in _strategies(spec, gpus, nodes):
            for checkpointing, compiled in paces:
                for micro_batch in micro_batches(spec, gpus):
                    yield Candidate(
                        gpus=gpus,
                        strategy=strategy,
                        micro_batch_size=micro_batch,
                        max_length=length,
                        checkpointing=checkpointing,
                        precision=number,
                        compile=compiled,
                        nodes=nodes,
                    )


def _paces(spec: FineTuneJobSpec) -> list[tuple[Checkpointing, bool]]:
    """Return the ways of checkpointing, with layers compiled or not."""
    asked = spec.training.compile
    both = (True, False) if asked == "auto" else (asked == "always",)
    return [
        (checkpointing, compiled)
        for compiled in both
        for checkpointing in checkpointings(spec, compiled=compiled)
    ]


def checkpointings(spec: FineTuneJobSpec, *, compiled: bool) -> tuple[Checkpointing, ...]:
    """Return the ways of checkpointing to try, fastest first.

    Selective is for layers that are not compiled: what it gains in compiled ones was not measured.
    With packing it keeps nothing, as it does not know that attention.
    """
    if spec.training.gradient_checkpointing != "auto":
        return (spec.training.gradient_checkpointing,)
    kept = not compiled and not spec.training.packing
    return ("none", "selective", "full") if kept else ("none", "full")


def counts(spec: FineTuneJobSpec, inventory: Inventory) -> list[int]:
    """Return the numbers of GPUs to try, fewest first."""
    found = _counts(spec, inventory)
    if spec.resources.gpu.count != "auto":
        return found
    return [count for count in found if _divides(spec, count)] or found[:1]


def indivisible(spec: FineTuneJobSpec, inventory: Inventory) -> list[int]:
    """Return the numbers of GPUs that are not tried as the batch cannot be split over them."""
    tried = counts(spec, inventory)
    return [count for count in _counts(spec, inventory) if count not in tried]


def _divides(spec: FineTuneJobSpec, gpus: int) -> bool:
    return spec.training.batch_size % (gpus * smallest_share(spec)) == 0


def _counts(spec: FineTuneJobSpec, inventory: Inventory) -> list[int]:
    found = _unsplit(spec, inventory)
    return _of_several_nodes(spec, inventory, found) if spec.resources.strategy == "hsdp" else found


def _unsplit(spec: FineTuneJobSpec, inventory: Inventory) -> list[int]:
    resources = spec.resources
    if resources.gpu.count != "auto":
        return [resources.gpu.count]
    nodes = 1 if resources.nodes == "auto" else resources.nodes
    found = [nodes * count for count in _PER_NODE if count <= inventory.gpus_per_node]
    if resources.nodes == "auto" and resources.workspace.access_mode == "ReadWriteMany":
        found += [more * inventory.gpus_per_node for more in _MORE_NODES]
    return found if resources.strategy == "auto" else [count for count in found if count > 1]


def _of_several_nodes(spec: FineTuneJobSpec, inventory: Inventory, found: list[int]) -> list[int]:
    hybrid = [count for count in found if _is_hybrid(count, nodes_of(spec, inventory, count))]
    if hybrid:
        return hybrid
    resources, most = spec.resources, inventory.gpus_per_node
    found_words = (
        f"resources.nodes is {resources.nodes}, resources.gpu.count {resources.gpu.count} and"
        f" resources.workspace.accessMode {resources.workspace.access_mode}"
    )
    remedy = "" if most == 1 else f"set {_hybrid_fix(spec)}, or "
    raise PlanInfeasibleError(
        "resources.strategy is hsdp, which needs several nodes with several GPUs each (a node has"
        f" at most {most}), but {found_words}: {remedy}use strategy fsdp."
    )


def _hybrid_fix(spec: FineTuneJobSpec) -> str:
    """Return the fields that give several nodes with several GPUs each."""
    resources, count = spec.resources, spec.resources.gpu.count
    nodes = 2 if resources.nodes == "auto" else max(2, resources.nodes)
    changes = [] if nodes == resources.nodes else [f"resources.nodes to {nodes}"]
    if resources.workspace.claim is None and resources.workspace.access_mode != "ReadWriteMany":
        changes.append("resources.workspace.accessMode to ReadWriteMany")
    if count != "auto" and (count < 2 * nodes or count % nodes):
        changes.append("resources.gpu.count to auto")
    return " and ".join(changes)


def nodes_of(spec: FineTuneJobSpec, inventory: Inventory, gpus: int) -> int:
    """Return over how many nodes so many GPUs are spread; PlanInfeasibleError if over none."""
    most, asked = inventory.gpus_per_node, spec.resources.nodes
    if asked != "auto":
        if gpus > asked * most:
            raise PlanInfeasibleError(
                f"resources.gpu.count is {gpus} on resources.nodes {asked}, but a node has at most"
                f" {most} GPUs: ask for more nodes or for {asked * most} GPUs or fewer."
            )
        return asked
    nodes = next(nodes for nodes in range(-(-gpus // most), gpus + 1) if gpus % nodes == 0)
    workspace = spec.resources.workspace
    if nodes > 1 and workspace.claim is None and workspace.access_mode != "ReadWriteMany":
        raise PlanInfeasibleError(
            f"resources.gpu.count is {gpus}, which takes {nodes} nodes of at most {most} GPUs, but"
            f" resources.workspace.accessMode is {workspace.access_mode}: set it to ReadWriteMany,"
            f" or ask for {most} GPUs or fewer."
        )
    return nodes


def micro_batches(spec: FineTuneJobSpec, gpus: int) -> list[int]:
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
        return _divisors(spec, share)
    if share % micro:
        raise PlanInfeasibleError(
            f"training.microBatchSize is {micro}, which does not divide the {share} sequences of"
            f" each step that one GPU gets: choose a divisor of {share}."
        )
    return [micro]


def smallest_micro_batch(spec: FineTuneJobSpec) -> int:
    """Return the fewest sequences that the method's loss takes: kto compares them in pairs."""
    paired = spec.method is Method.KTO and (spec.kto or Kto()).loss == "kto"
    return 2 if paired else 1


def unshardable(spec: FineTuneJobSpec, strategy: Strategy) -> str | None:
    """Return why a strategy cannot train this; None when it can."""
    if strategy not in SHARDED:
        return None
    if spec.method is Method.EBFT:
        return (
            f"resources.strategy is {strategy}, but method ebft reads hidden states of the whole"
            " model on each GPU: use ddp."
        )
    if spec.stability.policy == "Rollback":
        return (
            f"stability.policy is Rollback, which cannot change the spread checkpoints of"
            f" resources.strategy {strategy}: use Halt or Warn, or strategy ddp."
        )
    if spec.training.precision == "float8":
        return (
            f"resources.strategy is {strategy}, which cannot spread weights in float8: use ddp, or"
            " training.precision bf16."
        )
    if spec.adapter.type == "qlora" and strategy != "zero2":
        return (
            f"resources.strategy is {strategy}, which cannot spread the quantised weights of"
            " adapter type qlora: use ddp or zero2, or adapter type lora."
        )
    return None


def precision(spec: FineTuneJobSpec, default: Precision) -> Precision:
    """Return the number format of the base model."""
    return default if spec.training.precision == "auto" else spec.training.precision


def longest_sequence(spec: FineTuneJobSpec, preparation: Preparation) -> int:
    """Return the longest sequence in tokens: no row is padded beyond the longest of the data.

    Packed rows are filled to training.maxLength. Facts of prompts count the completion already.
    """
    asked, longest_row = spec.training.max_length, max(1, preparation.dataset.max_tokens)
    if asked is not None and spec.training.packing:
        return asked
    return min(longest_row, max_length(spec, preparation.model.max_positions))


def smallest_share(spec: FineTuneJobSpec) -> int:
    """Return the fewest sequences that one GPU must get of each step."""
    micro = spec.training.micro_batch_size
    return smallest_micro_batch(spec) if micro == "auto" else micro


def _divisors(spec: FineTuneJobSpec, share: int) -> list[int]:
    smallest = smallest_micro_batch(spec)
    sizes = [size for size in (8, 4, 2, 1) if share % size == 0 and size >= smallest]
    if not sizes:
        raise PlanInfeasibleError(
            f"training.batchSize is {spec.training.batch_size}, which gives one GPU {share}"
            f" sequences of each step, but the kto loss needs an even number of them: make it a"
            " multiple of 2 x the GPUs."
        )
    return sizes


def _is_hybrid(gpus: int, nodes: int) -> bool:
    """Tell whether there are several nodes with several GPUs each."""
    return 1 < nodes < gpus


def _strategies(spec: FineTuneJobSpec, gpus: int, nodes: int) -> list[Strategy]:
    asked = spec.resources.strategy
    if asked != "auto":
        why_not = unshardable(spec, asked)
        if why_not is not None:
            raise PlanInfeasibleError(why_not)
        return ["single"] if gpus == 1 else [asked]
    if gpus == 1:
        return ["single"]
    if unshardable(spec, "fsdp"):
        return ["ddp"]
    return ["ddp", "hsdp", "fsdp"] if _is_hybrid(gpus, nodes) else ["ddp", "fsdp"]
