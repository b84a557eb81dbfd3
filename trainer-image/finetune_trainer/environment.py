"""Process environment that has to be right before torch and its friends are imported."""

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

LISTENER = "MASTER_LISTENER"
"""File descriptor of a socket that the first process has from its launcher: where all meet."""

_SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Reserved memory then stays within 2 % of what is allocated.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}


def set_up(requested_cpu: str | None, processes: int = 1) -> None:
    """Set what the user has not set: no telemetry, no progress bars, threads that fit the pod.

    Threads beyond the CPU quota make small models up to ten times slower.
    """
    threads = max(1, available_cpus(requested_cpu) // processes)
    defaults = _SETTINGS | {"OMP_NUM_THREADS": str(threads)}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def available_cpus(requested_cpu: str | None) -> int:
    """Return whole CPUs: the cgroup's limit, else the pod's request, else what the node has."""
    cpus = float(len(os.sched_getaffinity(0)))
    limit = _cgroup_limit()
    if limit is not None:
        cpus = min(cpus, limit)
    elif requested_cpu is not None:
        cpus = min(cpus, _quantity(requested_cpu))
    return max(1, math.ceil(cpus))


def _cgroup_limit() -> float | None:
    if not CPU_MAX.exists():
        return None
    quota, period = CPU_MAX.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quantity(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def go_offline() -> None:
    """Keep the hub's client from the network: training reads what preparation has fetched."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def is_launched() -> bool:
    """Tell whether a launcher has started this process as one of several."""
    return "RANK" in os.environ


def is_first_of_pod() -> bool:
    """Tell whether this process speaks for its pod in the termination message."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_first_process() -> bool:
    """Tell whether this is the process of rank 0, which serves and writes for all."""
    return os.environ.get("RANK", "0") == "0"
