"""What the planner knows of GPU products."""

import re
from dataclasses import dataclass
from typing import Final

from finetune_api.gpus import teraflops


@dataclass(frozen=True)
class Product:
    """One GPU model."""

    mebibytes: int
    """Memory that the driver reports, as in the node label nvidia.com/gpu.memory."""
    teraflops: float | None
    """Dense bf16 TFLOP/s; None: it does not compute in bf16."""
    bandwidth: int
    """Memory bandwidth in GB/s, from NVIDIA's data sheets."""
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


PRODUCTS: Final = {
    name: Product(mebibytes, teraflops(name), bandwidth, float8=float8)
    for name, mebibytes, bandwidth, float8 in (
        ("Tesla-T4", 15360, 320, False),
        ("Tesla-V100-SXM2-16GB", 16384, 900, False),
        ("Tesla-V100-SXM2-32GB", 32768, 900, False),
        ("NVIDIA-A10", 23028, 600, False),
        ("NVIDIA-A10G", 23028, 600, False),
        ("NVIDIA-L4", 23034, 300, True),
        ("NVIDIA-GeForce-RTX-3090", 24576, 936, False),
        ("NVIDIA-GeForce-RTX-4090", 24564, 1008, True),
        ("NVIDIA-A100-SXM4-40GB", 40960, 1555, False),
        ("NVIDIA-A100-PCIE-40GB", 40960, 1555, False),
        ("NVIDIA-A40", 46068, 696, False),
        ("NVIDIA-L40S", 46068, 864, True),
        ("NVIDIA-RTX-A6000", 49140, 768, False),
        ("NVIDIA-A100-SXM4-80GB", 81920, 2039, False),
        ("NVIDIA-A100-80GB-PCIe", 81920, 1935, False),
        ("NVIDIA-H100-80GB-HBM3", 81559, 3350, True),
        ("NVIDIA-H100-PCIe", 81559, 2000, True),
        ("NVIDIA-H200", 143771, 4800, True),
        ("NVIDIA-B200", 183359, 8000, True),
    )
}
"""By their names in the node label nvidia.com/gpu.product, smallest first."""

UNKNOWN: Final = "NVIDIA-H100-80GB-HBM3"
"""Whose speed is taken for a GPU that is not known: few are faster."""

_SLICE: Final = re.compile(r"-MIG-\d+g\.\d+gb|-SHARED$")


def is_slice(product: str) -> bool:
    """Tell whether a product is a part of a GPU, by MIG or by sharing it between pods."""
    return _SLICE.search(product) is not None
