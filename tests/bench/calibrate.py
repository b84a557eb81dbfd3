"""Fits the planner's constants of a GPU to half of the measured runs, and tells how near the
estimates are to the other half.

It takes what `python -m bench.gpu --suite calibration --ours --output FILE.json` wrote, on any
machine. Without files it fits anew to the runs that the calibration files hold. It writes
planning/calibration and docs/memory.md.

Usage: PYTHONPATH=tests python -m bench.calibrate [FILE.json ...]
"""

import argparse
import hashlib
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bench.measured_runs import (
    Constants,
    Run,
    error,
    estimated,
    settings,
    slack_of,
    tensors,
    title,
)
from finetune_api.status import ModelFacts, Preparation
from finetune_operator.planning import calibration
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.calibration import parse
from finetune_operator.planning.candidates import longest_sequence
from unit.operator.builders import make_spec

UNDER = 0.01
"""No fitted run needs more than its estimate and this share of it."""

SLACKS = ("slack", "slackInPieces")
"""The constants that are fitted, each to its own runs."""

STEADY = 10
"""A run of fewer steps says nothing of speed."""

FOLDER = Path(calibration.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "docs/memory.md"
BEGIN, END = (f"<!-- {word} of what make calibrate writes -->" for word in ("Begin", "End"))

_SHAPE = sorted(
    ModelFacts.model_fields.keys()
    - {"architecture", "max_positions", "weights_bytes", "dtype"}
)  # fmt: skip
"""What memory depends on."""

_SETTINGS = ("model", "job", "length x micro-batch", "checkpointing", "layers")


@dataclass(frozen=True)
class Summary:
    """How near the estimates of some runs are."""

    median: float
    worst: float
    under: float
    """Share of the runs that needed more than their estimate."""

    @classmethod
    def of(cls, errors: Sequence[float]) -> "Summary":
        """Return the summary of relative errors; ValueError without any."""
        if not errors:
            raise ValueError("runs: found none, expected at least one.")
        return cls(
            median=median(abs(found) for found in errors),
            worst=max(errors, key=abs),
            under=sum(found < 0 for found in errors) / len(errors),
        )


def is_held_out(run: Run) -> bool:
    """Tell whether constants must not be fitted to a run: about half of them, by their settings."""
    return hashlib.sha256(title(run).encode()).digest()[0] % 2 == 1


def run_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one result of bench.gpu; ValueError says what cannot be calibrated."""
    case, ours = entry["settings"], entry["ours"]
    if case["compile"] not in {"always", "never"}:
        raise ValueError(
            f"{entry['case']}: compile is {case['compile']}: expected always or never."
        )
    preparation = Preparation.model_validate(ours["preparation"])
    _check_shape(case["model"], preparation.model)
    run = {
        "model": case["model"],
        "method": case["method"],
        "adapter": case["adapter"],
        "rank": 0 if case["adapter"] == "full" else case["rank"],
        "length": _length(case, preparation),
        "microBatch": case["micro_batch"],
        "checkpointing": case["checkpointing"],
        "compiled": case["compile"] == "always",
        **_unusual(case),
        "reserved": round(ours["reserved"], 3),
        "allocated": round(ours["allocated"], 3),
    }
    if len(ours["steps"]) >= STEADY:
        run["tokensPerSecond"] = round(ours["tokens_per_second"])
    return run | ({"heldOut": True} if is_held_out(run) else {})


def _unusual(case: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value, usual in (
            ("completion", case["completion"], case["method"] != "grpo"),
            ("accumulation", case["accumulation"], case["accumulation"] == 1),
            ("packed", True, not case["packed"]),
            ("precision", case["precision"], case["precision"] in {"auto", "bf16"}),
        )
        if not usual
    }


def _length(case: dict[str, Any], preparation: Preparation) -> int:
    written = case["completion"] if case["method"] == "grpo" else 0
    training = {"maxLength": case["length"] + written, "packing": case["packed"]}
    return longest_sequence(make_spec(training=training), preparation)


def _check_shape(name: str, measured: ModelFacts) -> None:
    named = facts_of_name(f"hf://{name}")
    if named is None:
        raise ValueError(f"model is {name}: expected one of catalogue.json.")
    for field in _SHAPE:
        found, known = getattr(measured, field), getattr(named[1], field)
        if found != known:
            raise ValueError(f"{name}: {field} of the run is {found}: expected {known}.")


def fitted(runs: Iterable[Run], constants: Constants) -> dict[str, float]:
    """Return each slack with which half of its runs need no more than their estimate, and none more
    than 1 % beyond it. One without runs stays as it is.
    """
    ratios: dict[str, list[float]] = {}
    for run in runs:
        ratios.setdefault(slack_of(run), []).append(run["reserved"] / tensors(run, constants))
    if not ratios:
        raise ValueError("runs to fit to: found none, expected at least one that is not held out.")
    return {name: _slack(found) for name, found in ratios.items()}


def _slack(ratios: Sequence[float]) -> float:
    needed = max(median(ratios), max(ratios) / (1 + UNDER)) - 1
    return max(0.0, math.ceil(round(needed * 1000, 6)) / 1000)


def calibrate(results: Iterable[Path], folder: Path, document: Path) -> None:
    """Write the folder's files anew, and what the document tells of them.

    The runs of a GPU replace those that its file holds.
    """
    contents = {
        path: yaml.safe_load(path.read_text())
        for path in sorted(folder.glob("*.yaml"))
        if path.stem != "cpu"
    }
    entries = [entry for path in results for entry in _results(path)]
    for product in sorted({_product(entry) for entry in entries}):
        measured = [entry for entry in entries if _product(entry) == product]
        known = [path for path, content in contents.items() if product in content["products"]]
        path = known[0] if known else folder / f"{product.lower()}.yaml"
        usual = {"products": [product], "constants": contents[folder / "h100.yaml"]["constants"]}
        contents[path] = contents.get(path, usual) | _replaced(measured)
    for path, content in contents.items():
        _, seen = _split(content["runs"])
        content["constants"] = content["constants"] | fitted(seen, content["constants"])
        parse(content)
        path.write_text(_file(content))
    tables = "\n\n".join(told(content) for content in contents.values())
    _write_between(document, tables)
    print(tables)
    for content in contents.values():
        _, seen = _split(content["runs"])
        constants = content["constants"]
        print(f"\nFitted to:\n\n{_each(seen, constants)}")
        print(f"\nBy cause:\n\n{_by_cause(content['runs'], constants)}")


def told(content: dict[str, Any]) -> str:
    """Return what a calibration file says of the estimates, in Markdown."""
    constants = content["constants"]
    slack, in_pieces = (_percent(constants[name], "") for name in SLACKS)
    held_out, seen = _split(content["runs"])
    header = ("runs", "number", "median error", "worst error", "needed more than the estimate")
    groups = (("held out", held_out), ("fitted to", seen))
    summaries = [_summary(name, runs, constants) for name, runs in groups]
    parts = [
        f"{content['products'][0]} ({content['image']}), slack {slack}, in pieces {in_pieces}:",
        _table(header, summaries),
        "Each run that was held out, in GiB:",
        _each(held_out, constants),
    ]
    return "\n\n".join(parts)


def _results(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file of bench.gpu; ValueError says what is amiss."""
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as failure:
        raise ValueError(f"{path} is no file of bench.gpu: {failure}.") from failure
    for entry in entries:
        absent = sorted({"case", "settings", "device", "image", "ours"} - entry.keys())
        if absent:
            raise ValueError(f"{path}: a result has no {absent[0]}: run bench.gpu again.")
        if entry["device"] == "cpu":
            raise ValueError(f"{path}: device of {entry['case']} is cpu: expected a GPU.")
    return entries


def _split(runs: Iterable[Run]) -> tuple[list[Run], list[Run]]:
    """Return the runs that are held out, and the others."""
    held_out = [run for run in runs if run.get("heldOut")]
    return held_out, [run for run in runs if not run.get("heldOut")]


def _product(entry: Run) -> str:
    """Return the GPU as the node label nvidia.com/gpu.product has it."""
    return str(entry["device"]).replace(" ", "-")


def _replaced(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return image and runs of a calibration file. What failed measured nothing."""
    for entry in entries:
        if "error" in entry["ours"]:
            print(f"left out: {entry['case']}: {entry['ours']['error']}", file=sys.stderr)
    images = sorted({entry["image"] for entry in entries})
    if len(images) > 1:
        raise ValueError(f"image of the runs is {' and '.join(images)}: expected the same of all.")
    runs = [run_of(entry) for entry in entries if "error" not in entry["ours"]]
    latest = {title(run): run for run in runs}
    return {"image": images[0], "runs": list(latest.values())}


def _file(content: dict[str, Any]) -> str:
    constants = content["constants"]
    rows = [textwrap.indent(f"- {_flow(run)}", "  ") for run in content["runs"]]
    lines = [
        f"# What no formula tells of {content['products'][0]}, in GiB. `make calibrate` writes it.",
        f"products: {_flow(content['products'])}",
        f"image: {content['image']}",
        "constants:",
        "  # What the driver reports beyond what PyTorch has reserved: the same in every run.",
        f"  contextGib: {constants['contextGib']}",
        "  # Not measured: the usual allowance for one communicator.",
        f"  collectivesGib: {constants['collectivesGib']}",
        "  # cuBLAS: 32 MiB for each of the two threads that compute, forward and backward.",
        f"  workspaceGib: {constants['workspaceGib']}",
        "  # Half of the fitted runs need no more than their estimate, and none 1 % more.",
        *(f"  {name}: {constants[name]}" for name in SLACKS),
        "# Peaks, with rows of one length: what PyTorch had reserved, and allocated of it.",
        "# Nothing was fitted to the runs that are heldOut.",
        "runs:",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=110)
    return text.strip()


def _summary(name: str, runs: list[Run], constants: Constants) -> tuple[str, ...]:
    found = Summary.of([error(run, constants) for run in runs])
    shown = (_percent(found.median, ""), _percent(found.worst), f"{100 * found.under:.0f} %")
    return (name, str(len(runs)), *shown)


def _each(runs: list[Run], constants: Constants) -> str:
    return _table(
        (*_SETTINGS, "measured", "estimate", "error"),
        [
            (
                *settings(run),
                f"{run['reserved']:.2f}",
                f"{estimated(run, constants):.2f}",
                _percent(error(run, constants)),
            )
            for run in sorted(runs, key=title)
        ],
    )


def _by_cause(runs: list[Run], constants: Constants) -> str:
    """Return what formulas and allocator have to do with the error."""
    return _table(
        (*_SETTINGS, "formulas / allocated", "reserved / allocated"),
        [
            (
                *settings(run),
                _percent(tensors(run, constants) / run["allocated"] - 1),
                _percent(run["reserved"] / run["allocated"] - 1),
            )
            for run in sorted(runs, key=title)
            if "allocated" in run
        ],
    )


def _percent(share: float, sign: str = "+") -> str:
    # Adding 0 makes -0.0 a 0.0.
    return f"{100 * round(share, 3) + 0.0:{sign}.1f} %"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _write_between(document: Path, text: str) -> None:
    before, _, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{document} has no lines {BEGIN} and {END}: expected both, in order.")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> int:
    """Calibrate, or say in a sentence why not."""
    parser = argparse.ArgumentParser(prog="bench.calibrate", description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help="what bench.gpu wrote")
    try:
        calibrate(parser.parse_args().results, FOLDER, DOCUMENT)
    except ValueError as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
