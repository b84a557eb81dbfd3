"""What GPUs there are."""

from dataclasses import dataclass
from typing import Final

from finetune_api.spec import FineTuneJobSpec
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


def gpu_memory(spec: FineTuneJobSpec, inventory: Inventory) -> float:
    """Return the memory of one GPU in GiB: as given, that of the product, or the inventory's."""
    gpu = spec.resources.gpu
    if gpu.memory != "auto":
        return to_gib(gpu.memory)
    product = PRODUCTS.get(gpu.product)
    return product.memory_gib if product else inventory.gpu_memory_gib


def check_product(spec: FineTuneJobSpec) -> None:
    """Raise PlanInfeasibleError for a product on which the trainer cannot run."""
    name = spec.resources.gpu.product
    if is_slice(name):
        raise PlanInfeasibleError(
            f"resources.gpu.product is {name}, a slice of a GPU (MIG), which this version does not"
            " plan for: name a whole GPU."
        )
    product = PRODUCTS.get(name)
    if product and not product.bf16 and spec.training.precision != "float32":
        raise PlanInfeasibleError(
            f"resources.gpu.product is {name}, which cannot compute in bf16: choose a newer GPU"
            " (Ampere or later), or set training.precision to float32."
        )
