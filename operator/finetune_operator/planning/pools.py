"""Which of the cluster's GPUs a job takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Preparation
from finetune_operator.planning.candidates import nodes_of
from finetune_operator.planning.inventory import (
    Inventory,
    PlanInfeasibleError,
    gpu_memory,
    unfit,
)
from finetune_operator.planning.nodes import Node
from finetune_operator.planning.products import PRODUCTS
from finetune_operator.planning.search import search


@dataclass(frozen=True)
class Pool:
    """Nodes with GPUs of one product."""

    product: str
    mebibytes: int | None
    """Memory of one GPU; None: nothing tells it."""
    gpus_per_node: int
    nodes: int
    """Nodes with so many GPUs or more."""


@dataclass(frozen=True)
class Offer:
    """One kind of GPU for a job: its spec with the product named, and how many there are."""

    spec: FineTuneJobSpec
    inventory: Inventory
    reason: str | None = None
    """Why this one."""


def pools(spec: FineTuneJobSpec, nodes: Iterable[Node]) -> list[Pool]:
    """Return the nodes that a job may run on, by product and GPUs of a node."""
    asked = spec.resources.gpu.product
    by_product: dict[str, list[Node]] = {}
    for node in nodes:
        if asked in {"auto", node.product} and node.takes(spec):
            by_product.setdefault(node.product, []).append(node)
    return [
        Pool(product, _mebibytes(product, alike), size, sum(node.gpus >= size for node in alike))
        for product, alike in sorted(by_product.items())
        for size in sorted({node.gpus for node in alike})
    ]


def choose(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory, *, beyond: int = 0
) -> Offer:
    """Return the offer with the cheapest plan on more than so many GPUs.

    That is on one GPU, else on one node, else on several; then the one with the least GPU memory
    in all. More nodes only add to the offers that are compared: they never make the plan worse.
    """
    gpu = spec.resources.gpu
    assumed = replace(inventory, nodes=None)
    if inventory.nodes is None or (gpu.product == "auto" and gpu.memory != "auto"):
        return Offer(spec, assumed)
    found = pools(spec, inventory.nodes)
    if not found:
        missing = "any now" if gpu.product == "auto" else f"{gpu.product} now"
        words = f"GPU: no node that the job may run on has {missing}, so they have to be added."
        return Offer(spec, assumed, words)
    fit = _fit_to_train(spec, found)
    present = [_offer(spec, pool, _present(pool, inventory)) for pool in fit]
    best = _cheapest(present, preparation, beyond)
    if best is not None:
        return replace(best, reason=_why(spec, best, fit))
    larger = [_offer(spec, pool, _grown(pool, inventory)) for pool in fit]
    best = _cheapest(larger, preparation, beyond)
    if best is not None:
        product = best.spec.resources.gpu.product
        return replace(
            best, reason=f"GPU {product}: the nodes have too few now, so more have to be added."
        )
    return max(larger, key=_capacity)


def pinned(spec: FineTuneJobSpec, product: str | None) -> FineTuneJobSpec:
    """Return a spec that names a product; None leaves it as it is."""
    return spec if product is None else _with_gpu(spec, product, spec.resources.gpu.memory)


def _mebibytes(product: str, nodes: Sequence[Node]) -> int | None:
    known = PRODUCTS.get(product)
    labelled = [node.mebibytes for node in nodes if node.mebibytes]
    return min(labelled, default=known.mebibytes if known else None)


def _fit_to_train(spec: FineTuneJobSpec, found: Sequence[Pool]) -> list[Pool]:
    fit = [pool for pool in found if unfit(pool.product, spec) is None]
    if not fit:
        each = {pool.product: unfit(pool.product, spec) for pool in found}
        words = "; ".join(f"{product}, {why_not}" for product, why_not in each.items())
        raise PlanInfeasibleError(
            f"resources.gpu.product is auto, but no GPU of the nodes can train this job: {words}."
        )
    return fit


def _offer(spec: FineTuneJobSpec, pool: Pool, inventory: Inventory) -> Offer:
    memory = spec.resources.gpu.memory
    if memory == "auto" and pool.mebibytes is not None:
        memory = f"{pool.mebibytes}Mi"
    return Offer(_with_gpu(spec, pool.product, memory), inventory)


def _with_gpu(spec: FineTuneJobSpec, product: str, memory: str) -> FineTuneJobSpec:
    gpu = spec.resources.gpu.model_copy(update={"product": product, "memory": memory})
    return spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpu": gpu})})


def _cheapest(offers: Sequence[Offer], preparation: Preparation, beyond: int) -> Offer | None:
    costs = [(_cost(offer, preparation, beyond), offer) for offer in offers]
    fitting = [(cost, offer) for cost, offer in costs if cost is not None]
    return min(fitting, key=lambda one: one[0])[1] if fitting else None


def _cost(
    offer: Offer, preparation: Preparation, beyond: int
) -> tuple[int, float, int, str] | None:
    """Return what a plan is compared by; None when there is none."""
    try:
        found = search(offer.spec, preparation, offer.inventory, beyond=beyond)
    except PlanInfeasibleError:
        return None
    if found.fit is None:
        return None
    gpus = found.fit[0].gpus
    spread = 0 if gpus == 1 else min(nodes_of(offer.spec, offer.inventory, gpus), 2)
    memory = gpus * gpu_memory(offer.spec, offer.inventory)
    return spread, memory, gpus, offer.spec.resources.gpu.product


def _present(pool: Pool, inventory: Inventory) -> Inventory:
    return Inventory(inventory.gpu_memory_gib, pool.gpus_per_node, pool.nodes)


def _grown(pool: Pool, inventory: Inventory) -> Inventory:
    """Return what a pool would be if an autoscaler added more nodes like those there."""
    return Inventory(inventory.gpu_memory_gib, pool.gpus_per_node)


def _capacity(offer: Offer) -> tuple[float, int]:
    return gpu_memory(offer.spec, offer.inventory), offer.inventory.gpus_per_node


def _why(spec: FineTuneJobSpec, best: Offer, fit: Sequence[Pool]) -> str | None:
    product = best.spec.resources.gpu.product
    if spec.resources.gpu.product != "auto":
        return None
    others = sorted({pool.product for pool in fit} - {product})
    if not others:
        return f"GPU {product}: the only kind on the nodes that the job may run on."
    return (
        f"GPU {product}: the cheapest on the nodes that fits; there are also {', '.join(others)}."
    )
