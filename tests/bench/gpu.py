"""The trainer beside bare TRL on one GPU: speed, memory against the plan, and whether it is stable.

Each case runs ours and TRL's in turn, on random weights of a real shape: the same model, rows,
batch, checkpointing and optimizer. Ours is `finetune-trainer prepare` and `run` with the plan
that the operator would make.

Usage: PYTHONPATH=tests python -m bench.gpu [--tiny] [--seconds 600]
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu_cases import CASES, Case, Shape, run_bare, run_ours, save_shape
from finetune_api import names

_LLAMA_1B = Shape(2048, 8192, 16, 32, 8, 128256, 2048)
_TINY = Shape(64, 128, 2, 4, 2, 260, 256)
"""For trying the benchmark itself on a CPU."""


@dataclass(frozen=True)
class Row:
    """What one case came to; the numbers are None when it failed."""

    case: Case
    ours: dict[str, Any]
    bare: dict[str, Any]

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        ours, bare = self.ours, self.bare
        ratio = bare["seconds"] / ours["seconds"] if "seconds" in ours and "seconds" in bare else 0
        return (
            f"{self.case.method} {self.case.adapter}",
            _number(ours.get("seconds"), 3),
            _number(bare.get("seconds"), 3),
            _number(ratio or None, 3),
            _number(ours.get("planned"), 2),
            _number(ours.get("reserved"), 2),
            _number(bare.get("reserved"), 2),
            _number(ours.get("first_loss"), 4),
            _number(ours.get("last_loss"), 4),
            str(ours.get("verdict", ours.get("error", "")))[:60],
        )


HEADER = (
    "case", "s/step", "TRL s/step", "speed-up", "plan GiB", "GiB", "TRL GiB", "first loss",
    "last loss", "verdict",
)  # fmt: skip


def main() -> int:
    """Run what the time allows and print the table; 1 when a case of ours failed."""
    options = _parse()
    started = time.monotonic()
    shape = _TINY if options.tiny else _LLAMA_1B
    if options.tiny:
        os.environ[names.DEVICE_ENV] = "cpu"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_shape(shape, folder)
        for case in [case for case in CASES if options.only in case.name]:
            if time.monotonic() - started > options.seconds:
                print(f"no time left for {case.name}", flush=True)
                continue
            ours = _measured(run_ours, case, shape, folder)
            bare = _measured(run_bare, case, shape, folder)
            rows.append(Row(case, ours, bare))
            print(" | ".join(rows[-1].cells), flush=True)
            _write(options.output, rows)
    table = [HEADER, *[row.cells for row in rows]]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    return 1 if any("error" in row.ours for row in rows) else 0


def _write(output: Path | None, rows: list[Row]) -> None:
    if output is not None:
        found = [{"case": row.case.name, "ours": row.ours, "bare": row.bare} for row in rows]
        output.write_text(json.dumps(found, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--seconds", type=float, default=3600, help="start no case after that")
    parser.add_argument("--only", default="", help="only cases whose name has this in it")
    parser.add_argument("--output", type=Path, help="write all numbers there, as JSON")
    return parser.parse_args()


def _measured(function: Any, *arguments: Any) -> dict[str, Any]:
    """Call with an empty GPU. Not in a process of its own: what is imported may hold the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found: dict[str, Any] = function(*arguments)
    except Exception as error:  # noqa: BLE001 - a case that fails is a row of the table
        return {"error": f"{type(error).__name__}: {error}"}
    return found


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
