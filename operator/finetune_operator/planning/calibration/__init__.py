"""What no formula tells, as measured on GPUs: a file of this package for each of them."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import yaml

_FALLBACK: Final = "h100"
"""The file for GPUs that were not measured."""


@dataclass(frozen=True)
class Calibration:
    """Constants of one kind of device."""

    products: tuple[str, ...]
    """Names of the device, as in the node label nvidia.com/gpu.product."""
    context: float
    """GiB that are taken before the first tensor."""
    collectives: float
    """GiB for the buffers of communication with other GPUs."""
    workspace: float
    """GiB for cuBLAS, which takes them of the allocator beside all tensors."""
    slack: float
    """Share of what tensors fill that the allocator holds beyond it."""
    slack_in_pieces: float
    """The same where much of what is freed is too small for what comes next."""
    runs: tuple[dict[str, Any], ...]
    """What was measured, and how."""


def calibration_of(product: str) -> Calibration:
    """Return the constants of a product; those of an H100 for one that was not measured."""
    files = _files()
    named = (found for found in files.values() if product in found.products)
    return next(named, files[_FALLBACK])


@cache
def _files() -> dict[str, Calibration]:
    folder = resources.files(__name__)
    return {
        file.name.removesuffix(".yaml"): parse(yaml.load(file.read_text(), yaml.CSafeLoader))
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }


def parse(content: dict[str, Any]) -> Calibration:
    """Return the constants of a calibration file's content; ValueError names what is amiss."""
    expected = {"products", "constants", "image", "runs"}
    if set(content) != expected:
        raise ValueError(f"a calibration has {sorted(expected)}, found {sorted(content)}")
    constants = content["constants"]
    return Calibration(
        products=tuple(content["products"]),
        context=float(constants["contextGib"]),
        collectives=float(constants["collectivesGib"]),
        workspace=float(constants["workspaceGib"]),
        slack=float(constants["slack"]),
        slack_in_pieces=float(constants["slackInPieces"]),
        runs=tuple(content["runs"]),
    )
