"""GPU products by the short names that people use."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.plugin.errors import PluginError


@dataclass(frozen=True)
class Product:
    """One GPU model."""

    label: str
    """As in the node label nvidia.com/gpu.product."""
    mebibytes: int
    """Memory that the driver reports, as in the node label nvidia.com/gpu.memory."""

    @property
    def memory(self) -> str:
        """The memory as a quantity."""
        return f"{self.mebibytes}Mi"


PRODUCTS: Final[dict[str, Product]] = {
    "T4": Product("Tesla-T4", 15360),
    "L4": Product("NVIDIA-L4", 23034),
    "A10": Product("NVIDIA-A10", 23028),
    "A10G": Product("NVIDIA-A10G", 23028),
    "RTX-3090": Product("NVIDIA-GeForce-RTX-3090", 24576),
    "RTX-4090": Product("NVIDIA-GeForce-RTX-4090", 24564),
    "A100-40GB": Product("NVIDIA-A100-SXM4-40GB", 40960),
    "A40": Product("NVIDIA-A40", 46068),
    "L40S": Product("NVIDIA-L40S", 46068),
    "A6000": Product("NVIDIA-RTX-A6000", 49140),
    "A100-80GB": Product("NVIDIA-A100-SXM4-80GB", 81920),
    "H100": Product("NVIDIA-H100-80GB-HBM3", 81559),
    "H200": Product("NVIDIA-H200", 143771),
    "B200": Product("NVIDIA-B200", 183359),
}


def product_of(name: str) -> Product:
    """Return a product by its short name or its label; PluginError when it is not known."""
    wanted = name.upper()
    for short, product in PRODUCTS.items():
        if wanted in {short, product.label.upper()}:
            return product
    raise PluginError(
        f"GPU {name} is not known, expected one of {', '.join(PRODUCTS)}: or give memory=24Gi."
    )
