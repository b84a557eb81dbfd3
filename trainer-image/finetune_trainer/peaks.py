"""Memory of this process and its GPU, in bytes, for whoever asks while it trains."""

import resource
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class PeakMemory:
    """Bytes; those of the GPU are unset where none is used."""

    host: float
    """Largest resident size of the process."""
    allocated: float | None = None
    """Largest sum of tensors on the GPU."""
    reserved: float | None = None
    """Largest size of the allocator's pool on the GPU."""
    used: float | None = None
    """What is in use on the GPU now, by whatever process."""

    def measured(self) -> dict[str, float]:
        """Return what a result says, in GiB: host_memory_gib, and gpu_memory_gib (reserved)."""
        peaks = {"host_memory_gib": self.host, "gpu_memory_gib": self.reserved}
        return {name: peak / 2**30 for name, peak in peaks.items() if peak is not None}


def peak_memory() -> PeakMemory:
    """Return what is known now; never loads torch nor touches a GPU that is not in use yet."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    torch = sys.modules.get("torch")
    # While another thread imports torch, it has no cuda yet.
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return PeakMemory(host)
    free, total = cuda.mem_get_info()
    return PeakMemory(
        host,
        allocated=float(cuda.max_memory_allocated()),
        reserved=float(cuda.max_memory_reserved()),
        used=float(total - free),
    )
