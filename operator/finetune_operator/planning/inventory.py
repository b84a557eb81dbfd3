"""What GPUs there are."""

from dataclasses import dataclass
from typing import Final

from finetune_api.spec import FineTuneJobSpec
from finetune_operator.planning.nodes import Node
from finetune_operator.planning.products import PRODUCTS, is_slice
from finetune_operator.planning.quantity import to_gib

USABLE: Final = 0.92
"""Share of a GPU's memory that a plan may fill."""


class PlanInfeasibleError(Exception):
    """No plan satisfies the spec; the message names the field, what was found and the fix."""


@dataclass(frozen=True)
class Inventory:
    """What the cluster offers, where spec.resources.gpu does not say it."""

    gpu_memory_gib: float = 80.0
    """Memory of one GPU."""
    gpus_per_node: int = 8
    """GPUs of one node."""
    most_nodes: int | None = None
    """Nodes with so many GPUs; None: as many as it takes, an autoscaler may add them."""
    nodes: tuple[Node, ...] | None = None
    """The nodes that offer GPUs now; None: not known."""


def gpu_memory(spec: FineTuneJobSpec, inventory: Inventory) -> float:
    """Return the memory of one GPU in GiB: as given, that of the product, or the inventory's."""
    gpu = spec.resources.gpu
    if gpu.memory != "auto":
        return to_gib(gpu.memory)
    product = PRODUCTS.get(gpu.product)
    return product.memory_gib if product else inventory.gpu_memory_gib


def check_product(spec: FineTuneJobSpec, inventory: Inventory) -> None:
    """Raise PlanInfeasibleError for a product on which the trainer cannot run, or for a part of a
    product's name. One that is not known is taken as it is: there are new GPUs.
    """
    name = spec.resources.gpu.product
    full_names = _full_names(name)
    if full_names and not any(node.product == name for node in inventory.nodes or ()):
        raise PlanInfeasibleError(
            f"resources.gpu.product is {name}, but nodes call a GPU by its full name: did you mean"
            f" {' or '.join(full_names)}?"
        )
    check_fit(spec)


def check_fit(spec: FineTuneJobSpec) -> None:
    """Raise PlanInfeasibleError for a product that cannot train a job, whatever nodes there are and
    whatever model and data. Without GPUs none matters.
    """
    gpu = spec.resources.gpu
    why_not = unfit(gpu.product, spec) if gpu.count != 0 else None
    if why_not is not None:
        raise PlanInfeasibleError(f"resources.gpu.product is {gpu.product}, {why_not}.")


def unfit(name: str, spec: FineTuneJobSpec) -> str | None:
    """Return why a product cannot train a job, and the fix; None when it can."""
    if is_slice(name):
        return (
            "a slice of a GPU (MIG, or shared by pods), which this version does not plan for: name"
            " a whole GPU"
        )
    product = PRODUCTS.get(name)
    if product and not product.bf16 and spec.training.precision != "float32":
        return (
            "which cannot compute in bf16: choose a newer GPU (Ampere or later), or set"
            " training.precision to float32"
        )
    if product and not product.float8 and spec.training.precision == "float8":
        return (
            "which cannot multiply in float8: choose a GPU of the Ada, Hopper or Blackwell"
            " generation, or set training.precision to bf16"
        )
    return None


def _full_names(name: str) -> list[str]:
    """Return the known products that have all words of a name; none when it is such a product."""
    if name in PRODUCTS:
        return []
    words = set(name.upper().split("-"))
    return [label for label in PRODUCTS if words <= set(label.upper().split("-"))]
