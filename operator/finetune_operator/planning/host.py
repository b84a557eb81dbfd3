"""How much of its node's memory a pod takes that trains on GPUs."""

from dataclasses import dataclass
from typing import Final, Self

from finetune_api.spec import FSDP, FineTuneJobSpec
from finetune_api.status import Preparation
from finetune_operator.planning.memory import Candidate
from finetune_operator.planning.quantity import GIB

PROCESS_GIB: Final = 4
"""Python, CUDA and the data loader of a process."""

POD_GIB: Final = 4
"""What the pod holds beside its processes."""

_STORED: Final = {"bf16": "bfloat16", "float8": "bfloat16", "float32": "float32"}
"""The number format in which weights are loaded, by that of the plan."""


@dataclass(frozen=True)
class HostMemory:
    """What fills it, in GiB."""

    processes: int
    weights: float
    """Room for the weights once."""
    copies: int
    """How many times there is that room."""

    @classmethod
    def of(cls, spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> Self:
        """Return what each pod of a way to run holds."""
        processes, model = candidate.gpus // candidate.nodes, preparation.model
        size = float(model.weights_bytes)
        if candidate.strategy in FSDP and spec.adapter.type == "full":
            # Accelerate makes its float32 copies on the CPU.
            size = 4.0 * model.parameters
        copies = 1 if _shares(preparation, candidate) else processes
        return cls(processes, 1.2 * size / GIB, copies)

    @property
    def total(self) -> float:
        """All of it."""
        return self.processes * PROCESS_GIB + self.copies * self.weights + POD_GIB


def _shares(preparation: Preparation, candidate: Candidate) -> bool:
    """Tell whether processes share the weights on their way to the GPUs.

    Weight files are mapped into memory, so they do until they change what they read: its number
    format, or experts that are put together. Of spread weights each process but the first makes
    room on the CPU for all that it is going to be sent its part of.
    """
    return (
        not candidate.is_sharded
        and preparation.model.dtype == _STORED[candidate.precision]
        and preparation.model.experts is None
    )
