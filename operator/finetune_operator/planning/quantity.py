"""Kubernetes quantities of memory."""

import math
import re
from typing import Final

GIB: Final = 2**30

_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "m": 1e-3,
}


def to_gib(quantity: str) -> float:
    """Return a quantity such as 80Gi or 512M in GiB; ValueError when it is none."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is not a quantity of memory such as 80Gi")
    return float(match[1]) * _UNITS[match[2]] / GIB


def from_gib(gib: float) -> str:
    """Return whole GiB, rounded up, as a quantity."""
    return f"{math.ceil(gib)}Gi"
