"""GPU products by the short names that people use."""

from finetune_operator.planning.products import PRODUCTS
from finetune_operator.plugin.errors import PluginError


def label_of(name: str) -> str:
    """Return the node label nvidia.com/gpu.product of a GPU such as L4, H200 or H100-PCIe.

    PluginError unless exactly one label has all words of the name.
    """
    words = set(name.upper().split("-"))
    found = [label for label in PRODUCTS if words <= set(label.upper().split("-"))]
    if len(found) > 1:
        raise PluginError(f"GPU {name} may be {' or '.join(found)}: name one of them.")
    if not found:
        raise PluginError(
            f"GPU {name} is not known, expected one of {', '.join(PRODUCTS)}, or a part of such a"
            " name: or give memory=24Gi."
        )
    return found[0]
