"""GPU products by the short names that people use."""

from finetune_operator.planning.products import PRODUCTS
from finetune_operator.plugin.errors import PluginError


def label_of(name: str) -> str:
    """Return the node label nvidia.com/gpu.product of a GPU such as L4, H100 or A100-80GB.

    Of several that have all words of the name the smallest; PluginError when there is none.
    """
    words = set(name.upper().split("-"))
    found = next((label for label in PRODUCTS if words <= set(label.upper().split("-"))), None)
    if found is None:
        raise PluginError(
            f"GPU {name} is not known, expected one of {', '.join(PRODUCTS)}, or a part of such a"
            " name: or give memory=24Gi."
        )
    return found
