"""How fast the operator is, and what it costs: many FineTuneJobs at once on a control plane.

Usage: PYTHONPATH=tests python -m bench.operator
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.load import OPERATOR_STEPS, STEPS
from bench.measure import (
    CLAIM,
    MOST_MEMORY,
    MOST_REQUESTS,
    SAFETY_NET,
    Measurement,
    running_bench,
)

Row = tuple[str, str, str]


def main() -> int:
    """Measure, print the table and return 1 when a requirement is broken."""
    options = _parse()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_bench(
            "bench", Path(folder), nodes=options.nodes, pod_seconds=options.pod_seconds
        ) as bench,
    ):
        workspace = CLAIM if options.workspace == "shared" else None
        measured = bench.measure(options.jobs, workspace=workspace)
    print(
        f"\n{options.jobs} jobs of one GPU at once, {options.workspace} workspace; {options.nodes} "
        f"nodes of 8 GPUs, pods of {options.pod_seconds:g} s; {os.cpu_count()} cores, of "
        f"which anything else took {measured.noise:.0%}\n"
    )
    print("\n".join(_table([("", "measured", "required"), *_rows(measured)])))
    for sentence in measured.broken():
        print(f"BROKEN: {sentence}", file=sys.stderr)
    return 1 if measured.broken() else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.operator", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="FineTuneJobs to apply at once")
    parser.add_argument("--nodes", type=int, default=32, help="nodes of 8 GPUs that KWOK plays")
    parser.add_argument(
        "--pod-seconds", type=float, default=2, help="how long each of a job's two pods runs"
    )
    parser.add_argument(
        "--workspace", choices=["own", "shared"], default="own",
        help="own: a claim for each job, as by default; shared: one claim for all jobs",
    )  # fmt: skip
    return parser.parse_args()


def _rows(measured: Measurement) -> Iterator[Row]:
    timeline, jobs = measured.timeline, measured.jobs
    yield "jobs succeeded", f"{measured.finished} of {jobs}", "all"
    yield "jobs per second", f"{measured.jobs_per_second:.1f}", ""
    yield "accepted -> first pod created, p50 / p99", _percentiles(timeline.seconds(STEPS[0])), ""
    yield "accepted -> Succeeded, p50 / p99", _percentiles(timeline.seconds(*STEPS)), ""
    yield "- of it the operator's", _percentiles(timeline.seconds(*OPERATOR_STEPS)), ""
    for step in STEPS[1:]:
        yield f"- {' -> '.join(step)}", _percentiles(timeline.seconds(step)), ""
    yield "API requests per job", f"{measured.requests_per_job:.1f}", f"at most {MOST_REQUESTS}"
    for name, count in measured.requests.items():
        if name in SAFETY_NET:
            yield f"- {name} (safety net, not counted)", f"{count} in all", ""
        else:
            yield f"- {name}", f"{count / jobs:.2f}", ""
    yield "peak memory of the operator", f"{measured.memory:.0f} MiB", f"under {MOST_MEMORY:.0f}"
    yield "CPU per job, all processes", _milliseconds(sum(measured.cpu.values()), jobs), ""
    for name, used in sorted(measured.cpu.items(), key=lambda one: -one[1]):
        yield f"- {name}", _milliseconds(used, jobs), ""


def _percentiles(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "none"
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{percentiles[49]:.2f} / {percentiles[98]:.2f} s"


def _milliseconds(seconds: float, jobs: int) -> str:
    return f"{1000 * seconds / jobs:.0f} ms"


def _table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
             for row in rows]  # fmt: skip
    yield f"| {lines[0]} |"
    yield f"| {' | '.join('-' * width for width in widths)} |"
    yield from (f"| {line} |" for line in lines[1:])


if __name__ == "__main__":
    sys.exit(main())
