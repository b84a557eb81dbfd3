"""Measures how soon the plugin answers: `python -m bench.plugin`."""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RUNS: Final = 15
SCRIPT: Final = Path(sys.executable).parent / "kubectl-finetune"
COMMANDS: Final = (
    ["plan", "-f", "docs/examples/sft.yaml"],
    ["plan", "-f", "docs/examples/sft.yaml", "--what-if", "gpu=L4"],
    ["validate", "-f", "docs/examples/sft.yaml"],
    ["recommend", "--have", "examples", "--model", "hf://Qwen/Qwen3-8B"],
)


def seconds(command: list[str]) -> float:
    """Return the wall time of one new process."""
    start = time.perf_counter()
    subprocess.run([SCRIPT, *command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the median and the slowest of several runs of each command."""
    for command in COMMANDS:
        taken = [seconds(command) for _ in range(RUNS)]
        median, slowest = statistics.median(taken), max(taken)
        print(f"{median:.2f} s (slowest of {RUNS}: {slowest:.2f} s)  {' '.join(command)}")


if __name__ == "__main__":
    main()
