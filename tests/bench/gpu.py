"""The trainer beside bare TRL on one GPU: speed, memory against the plan, and whether it is stable.

Each case runs ours and TRL's in turn, on random weights of a real shape: the same model, rows,
batch, checkpointing and optimizer. Ours is `finetune-trainer prepare` and `run` with the plan
that the operator would make.

Usage: PYTHONPATH=tests python -m bench.gpu [--suite fast] [--only TEXT] [--tiny] [--seconds 600]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import gpu_models
from bench.gpu_cases import Case, measured, run_bare, run_ours
from finetune_api import names

_8B, _7B, _3B, _1B = "Llama-3.1-8B", "Qwen2.5-7B", "Llama-3.2-3B", "Llama-3.2-1B"
_QWEN2, _QWEN3, _GEMMA3 = "Qwen2.5-1.5B", "Qwen3-1.7B", "gemma-3-1b"
_MOE, _CUT_MOE = "Qwen1.5-MoE-A2.7B", "Qwen3-30B-A3B-8-layers"


def _peak(model: str, job: str, length: int, micro_batch: int, **settings: Any) -> Case:
    """Return a short case whose memory is what is wanted."""
    method, adapter = job.split()
    defaults: dict[str, Any] = {"steps": 4, "compile": "never", "bare": None}
    return Case(model, method, adapter, length, micro_batch, **(defaults | settings))


_FULL: dict[str, Any] = {"checkpointing": "full"}
_MEMORY = [
    *(
        case
        for model in (_1B, _QWEN2, _QWEN3)
        for case in (
            _peak(model, "sft lora", 512, 8),
            _peak(model, "sft lora", 2048, 4),
            _peak(model, "sft lora", 8192, 1),
            _peak(model, "sft lora", 4096, 4, **_FULL),
            _peak(model, "sft qlora", 2048, 2),
            _peak(model, "sft full", 2048, 2),
            _peak(model, "sft full", 4096, 2, **_FULL),
            _peak(model, "dpo lora", 1024, 4),
            _peak(model, "dpo qlora", 1024, 2, **_FULL),
            _peak(model, "kto lora", 1024, 4),
            _peak(model, "orpo lora", 512, 2),
            _peak(model, "reward lora", 1024, 4),
            _peak(model, "grpo lora", 512, 8, completion=64),
        )
    ),
    _peak(_1B, "dpo full", 512, 2),
    _peak(_1B, "reward full", 1024, 2),
    _peak(_1B, "kto qlora", 512, 4),
    _peak(_1B, "sft lora", 2048, 4, accumulation=2, rank=64),
    _peak(_1B, "sft lora", 2048, 4, compile="always"),
    _peak(_1B, "sft full", 2048, 4, compile="always"),
    _peak(_1B, "dpo lora", 1024, 4, compile="always"),
    _peak(_QWEN2, "sft lora", 4096, 2, compile="always"),
    _peak(_QWEN3, "sft lora", 4096, 4, compile="always", **_FULL),
    _peak(_QWEN3, "sft qlora", 2048, 4, compile="always"),
    _peak(_GEMMA3, "sft lora", 2048, 4, compile="always"),
    _peak(_GEMMA3, "sft lora", 2048, 2),
    _peak(_GEMMA3, "sft full", 1024, 2, **_FULL),
    _peak(_8B, "sft lora", 2048, 4, **_FULL),
    _peak(_8B, "sft qlora", 8192, 1, **_FULL),
    _peak(_8B, "dpo lora", 2048, 1),
    _peak(_MOE, "sft lora", 2048, 2),
    _peak(_MOE, "sft lora", 4096, 2, **_FULL),
    _peak(_MOE, "sft qlora", 1024, 2),
    _peak(_CUT_MOE, "sft lora", 2048, 2, compile="always"),
    _peak(_CUT_MOE, "sft full", 2048, 4),
    _peak(_CUT_MOE, "sft full", 8192, 1, **_FULL),
]

SUITES = {
    # What the trainer adds to TRL costs nothing: the same settings, layers as they are.
    "same": [
        Case(_1B, method, adapter, length, 4, steps=8, compile="never", bare={})
        for adapter in ("lora", "full", "qlora")
        for method, length in (("sft", 2048), ("dpo", 1024), ("grpo", 1024))
    ],
    # Peaks of memory, for the planner's constants.
    "calibration": _MEMORY,
    # What is computed again for less memory.
    "checkpointing": [
        Case(_8B, "sft", "lora", 2048, 4, checkpointing=kind, compile=compiled, bare=None)
        for kind in ("none", "selective", "full")
        for compiled in ("always", "never")
    ],
    # A job of 20 steps does not pay for compiling that it cannot earn back.
    "short": [
        Case(_8B, "sft", "lora", 4096, 2, steps=20, compile=compiled, bare=None)
        for compiled in ("auto", "never", "always")
    ],
    # The trainer's own settings beside TRL's fastest.
    "fast": [
        Case(_8B, "sft", "lora", 4096, 2),
        Case(_8B, "sft", "lora", 4096, 2, precision="float8", bare=None),
        Case(_8B, "sft", "qlora", 4096, 2),
        Case(_8B, "dpo", "lora", 2048, 2),
        Case(_8B, "sft", "lora", 8192, 1, packed=True, bare=None),
        Case(_8B, "sft", "lora", 8192, 1, packed=True, precision="float8", bare=None),
        Case(_7B, "sft", "lora", 4096, 2),
        Case(_3B, "sft", "full", 2048, 4),
    ],
}

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


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
        rates = [found.get("tokens_per_second") for found in (ours, bare)]
        ratio = rates[0] / rates[1] if rates[0] and rates[1] else None
        return (
            self.case.name,
            *(_number(rate, 0) for rate in rates),
            _number(ratio, 3),
            _number(ours.get("planned"), 2),
            _number(ours.get("reserved"), 2),
            _number(bare.get("reserved"), 2),
            _number(ours["steps"][0] if "steps" in ours else None, 1),
            _number(sum(ours["steps"]) if "steps" in ours else None, 1),
            _number(ours.get("first_loss"), 4),
            _number(ours.get("last_loss"), 4),
            str(ours.get("verdict", ours.get("error", "")))[:60],
        )


HEADER = (
    "case", "tokens/s", "TRL", "ratio", "plan GiB", "reserved", "TRL", "first step s",
    "all steps s", "first loss", "last loss", "verdict",
)  # fmt: skip


def main() -> int:
    """Run what the time allows and print the table; 1 when a case of ours failed."""
    options = _parse()
    started = time.monotonic()
    if options.tiny:
        os.environ[names.DEVICE_ENV] = "cpu"
    elif not torch.cuda.is_available():
        sys.exit("bench.gpu: CUDA sees no GPU: run it where there is one, or try --tiny on a CPU.")
    rows = []
    with tempfile.TemporaryDirectory() as name, Workers.start() as workers:
        folder = Path(name)
        last = ""
        for case in _chosen(options):
            if time.monotonic() - started > options.seconds:
                print(f"no time left for {case.name}", flush=True)
                continue
            if last not in {"", case.model}:
                shutil.rmtree(folder / "sources/pvc/models" / last, ignore_errors=True)
            last = case.model
            rows.append(_best([workers.run(case, folder, options) for _ in range(options.repeat)]))
            bare = rows[-1].bare
            spent = f"{time.monotonic() - started:.0f} s"
            print(" | ".join([*rows[-1].cells, str(bare.get("error", "")), spent]), flush=True)
            _write(options.output, rows)
    table = [HEADER, ("---",) * len(HEADER), *[row.cells for row in rows]]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    return 1 if any("error" in row.ours for row in rows) else 0


@dataclass(frozen=True)
class Workers:
    """One process for ours and one for bare TRL: Liger replaces Transformers' own functions."""

    ours: Executor
    bare: Executor

    @classmethod
    @contextmanager
    def start(cls) -> Iterator["Workers"]:
        """Have both, until the context ends."""
        spawn = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(1, mp_context=spawn) as ours,
            ProcessPoolExecutor(1, mp_context=spawn) as bare,
        ):
            yield cls(ours, bare)

    def run(self, case: Case, folder: Path, options: argparse.Namespace) -> Row:
        """Run ours, then bare TRL."""
        flags = ["--profile"] if options.profile else []
        ours = self.ours.submit(measured, run_ours, case, folder, *flags).result()
        if case.bare is None or options.ours:
            return Row(case, ours, {})
        return Row(case, ours, self.bare.submit(measured, run_bare, case, folder).result())


def _best(rows: list[Row]) -> Row:
    """Return the faster ours and the faster bare TRL of several runs in turn."""

    def speed(found: dict[str, Any]) -> float:
        return float(found.get("tokens_per_second", 0))

    ours = max((row.ours for row in rows), key=speed)
    return Row(rows[0].case, ours, max((row.bare for row in rows), key=speed))


def _chosen(options: argparse.Namespace) -> list[Case]:
    cases = [case for case in SUITES[options.suite] if options.only in case.name]
    if options.skip:
        cases = [case for case in cases if options.skip not in case.name]
    if options.tiny:
        cases = [replace(case, model=_tiny(case), length=128, completion=8) for case in cases]
    return list({case.name: case for case in cases}.values())


def _tiny(case: Case) -> str:
    return "tiny-mixture" if gpu_models.SHAPES[case.model].experts else "tiny"


def _write(output: Path | None, rows: list[Row]) -> None:
    if output is not None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        found = [
            {
                "case": row.case.name,
                "settings": asdict(row.case),
                "device": device,
                "image": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
                "ours": row.ours,
                "bare": row.bare,
            }
            for row in rows
        ]
        output.write_text(json.dumps(found, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="fast", help="which cases")
    parser.add_argument("--only", default="", help="only cases whose name has this in it")
    parser.add_argument("--skip", default="", help="no cases whose name has this in it")
    parser.add_argument("--ours", action="store_true", help="without bare TRL")
    parser.add_argument("--repeat", type=int, default=1, help="the faster of so many runs counts")
    parser.add_argument("--profile", action="store_true", help="see where the time goes")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--seconds", type=float, default=3600, help="start no case after that")
    parser.add_argument("--output", type=Path, help="write all numbers there, as JSON")
    return parser.parse_args()


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
