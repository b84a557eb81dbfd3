"""What GPUs compute at most, as planner and trainer count it."""

from typing import Final

_TERAFLOPS: Final[dict[str, float | None]] = {
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "A30": 165,
    "A40": 149.7,
    "A6000": 154.8,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "H20": 148,
    "B200": 2250,
    "RTX 3090": 71,
    "RTX 4090": 165,
    # Others by almost the same name, of which no number is known here.
    "RTX 3090 Ti": None,
    "RTX 4090 D": None,
    "RTX 4090 Laptop": None,
}
"""Dense bf16 TFLOP/s by the words of a product's name, from NVIDIA's data sheets."""


def teraflops(product: str) -> float | None:
    """Return a GPU's dense bf16 TFLOP/s by its name, as CUDA or a node label gives it.

    None when that is not known, as of a slice of a GPU, or when it does not compute in bf16.
    """
    words = f" {product} ".replace("-", " ")
    if " MIG " in words:
        return None
    known = [name for name in _TERAFLOPS if f" {name} " in words]
    return _TERAFLOPS[max(known, key=len)] if known else None
