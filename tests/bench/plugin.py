"""Measures how soon the plugin answers: `python -m bench.plugin`."""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RUNS: Final = 15
_UNCOMPILED: Final = "PYTHONDONTWRITEBYTECODE"
COMPILED: Final = {name: value for name, value in os.environ.items() if name != _UNCOMPILED}
"""As after an installation, which compiles what it installs: here the first process does."""
SCRIPT: Final = Path(sys.executable).parent / "kubectl-finetune"
COMMANDS: Final = (
    ["plan", "-f", "docs/examples/sft.yaml"],
    ["plan", "-f", "docs/examples/sft.yaml", "--what-if", "gpu=L4"],
    ["validate", "-f", "docs/examples/sft.yaml"],
    ["recommend", "--have", "examples", "--model", "hf://Qwen/Qwen3-8B"],
)


def seconds(command: list[str]) -> tuple[float, float]:
    """Return the wall time and the CPU time of one new process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([SCRIPT, *command], cwd=ROOT, env=COMPILED, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the fastest and the median of several runs of each command."""
    for command in COMMANDS:
        seconds(command)
        walls, cpus = zip(*(seconds(command) for _ in range(RUNS)), strict=True)
        times = f"fastest {min(walls):.2f} s, median {statistics.median(walls):.2f} s"
        print(f"{times}, CPU {statistics.median(cpus):.2f} s: {' '.join(command)}")


if __name__ == "__main__":
    main()
