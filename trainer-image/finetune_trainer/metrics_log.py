"""metrics.jsonl: every logged step once, however often training was stopped and resumed."""

import json
import math
import os
from pathlib import Path
from typing import Any

from finetune_api.metrics import SECONDS
from finetune_trainer.durable import sync

BEFORE = "_before"
"""How results end the names of what was measured on held-out rows before training."""


_NOT_FINITE = "notFinite"
"""Key of a line's values that JSON has no numbers for, as words: nan, inf or -inf."""


class MetricsLog:
    """One JSON object per line: step, and metrics by their TRL names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = _read(path)

    def rewind(self, step: int) -> None:
        """Forget what was logged after a step: training goes on from there."""
        self.entries = [entry for entry in self.entries if entry["step"] <= step]
        staging = self.path.with_suffix(".partial")
        staging.write_text("".join(_line(entry) for entry in self.entries))
        sync(staging)
        staging.replace(self.path)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Add one line."""
        entry = {"step": step, **values}
        self.entries.append(entry)
        with self.path.open("a") as stream:
            stream.write(_line(entry))

    def sync(self) -> None:
        """Flush to disk: a checkpoint that refers to these lines is about to be published."""
        if self.path.exists():
            descriptor = os.open(self.path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def find(self, step: int, name: str) -> float | None:
        """Return a metric of one step; None when it was not logged."""
        for entry in self.entries:
            if entry["step"] == step and name in entry:
                return float(entry[name])
        return None

    def summary(self) -> dict[str, float]:
        """Return the newest value of every metric, and of held-out ones that before training too.

        Those end in BEFORE. Values have six digits: a result must be short. A metric whose newest
        value is no finite number is left out, and so is where the time of the steps went.
        """
        newest: dict[str, float] = {}
        before: dict[str, float] = {}
        for entry in self.entries:
            values = {
                key: _short(value)
                for key, value in entry.items()
                if key != "step" and not key.startswith(SECONDS)
            }
            newest |= values
            if entry["step"] == 0:
                before |= {
                    f"{key}{BEFORE}": values[key] for key in values if key.startswith("eval_")
                }
        return {name: value for name, value in (newest | before).items() if math.isfinite(value)}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            # The last line of a process that was killed while it wrote.
            break
        words = entry.pop(_NOT_FINITE, {})
        entries.append(entry | {name: float(word) for name, word in words.items()})
    return entries


def _line(entry: dict[str, Any]) -> str:
    words = {name: str(value) for name, value in entry.items() if not math.isfinite(value)}
    finite = {name: value for name, value in entry.items() if name not in words}
    marked = {_NOT_FINITE: words} if words else {}
    return json.dumps(finite | marked, allow_nan=False) + "\n"
