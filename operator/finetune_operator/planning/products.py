"""What the planner knows of GPU products."""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Product:
    """One GPU model."""

    mebibytes: int
    """Memory that the driver reports, as in the node label nvidia.com/gpu.memory."""
    teraflops: float | None
    """Dense bf16 TFLOP/s, from NVIDIA's data sheets; None: it does not compute in bf16."""
    float8: bool = False
    """Whether it multiplies in float8 (compute capability 8.9 and later)."""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16, which the trainer does on GPUs."""
        return self.teraflops is not None

    @property
    def memory_gib(self) -> float:
        """The memory in GiB."""
        return self.mebibytes / 1024


PRODUCTS: Final[dict[str, Product]] = {
    "Tesla-T4": Product(15360, None),
    "Tesla-V100-SXM2-16GB": Product(16384, None),
    "Tesla-V100-SXM2-32GB": Product(32768, None),
    "NVIDIA-A10": Product(23028, 125),
    "NVIDIA-A10G": Product(23028, 70),
    "NVIDIA-L4": Product(23034, 121, float8=True),
    "NVIDIA-GeForce-RTX-3090": Product(24576, 71),
    "NVIDIA-GeForce-RTX-4090": Product(24564, 165, float8=True),
    "NVIDIA-A100-SXM4-40GB": Product(40960, 312),
    "NVIDIA-A100-PCIE-40GB": Product(40960, 312),
    "NVIDIA-A40": Product(46068, 149.7),
    "NVIDIA-L40S": Product(46068, 362, float8=True),
    "NVIDIA-RTX-A6000": Product(49140, 154.8),
    "NVIDIA-A100-SXM4-80GB": Product(81920, 312),
    "NVIDIA-A100-80GB-PCIe": Product(81920, 312),
    "NVIDIA-H100-80GB-HBM3": Product(81559, 989, float8=True),
    "NVIDIA-H100-PCIe": Product(81559, 756, float8=True),
    "NVIDIA-H200": Product(143771, 989, float8=True),
    "NVIDIA-B200": Product(183359, 2250, float8=True),
}
"""By their names in the node label nvidia.com/gpu.product, smallest first."""

_SLICE: Final = re.compile(r"-MIG-\d+g\.\d+gb|-SHARED$")


def is_slice(product: str) -> bool:
    """Tell whether a product is a part of a GPU, by MIG or by sharing it between pods."""
    return _SLICE.search(product) is not None
