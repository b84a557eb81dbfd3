"""What GPUs compute at most, by their names."""

import pytest

from finetune_api.gpus import teraflops


@pytest.mark.parametrize(
    ("product", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA-H100-80GB-HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA-GeForce-RTX-4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", None),
        ("Tesla-T4", None),
        ("cpu", None),
    ],
)
def test_the_peak_goes_by_the_name_of_the_product(product: str, peak: float | None) -> None:
    assert teraflops(product) == peak
