"""The memory model against what was measured, and its constants."""

from pathlib import Path

import pytest

from bench.calibrate import Summary
from bench.measured_runs import Run, estimate_of, title
from finetune_operator.planning.calibration import calibration_of, parse

PRODUCT = "NVIDIA-H100-80GB-HBM3"
RUNS = calibration_of(PRODUCT).runs
UNDER, MEDIAN, WORST = 0.02, 0.02, 0.05
ROUNDED = 0.01
"""GiB to which estimates are rounded."""


def estimated(run: Run) -> float:
    """Return the estimate for a run on the GPU, without the context."""
    memory = estimate_of(run, PRODUCT)
    return memory.total - memory.context


@pytest.mark.parametrize("run", RUNS, ids=title)
def test_no_run_needs_more_than_its_estimate(run: Run) -> None:
    assert run["reserved"] <= (1 + UNDER) * (estimated(run) + ROUNDED)


def test_estimates_are_near_what_they_were_not_fitted_to() -> None:
    held_out = [run for run in RUNS if run.get("heldOut")]
    found = Summary.of([estimated(run) / run["reserved"] - 1 for run in held_out])
    assert found.median <= MEDIAN
    assert abs(found.worst) <= WORST


def test_speeds_that_plans_go_by_are_those_of_the_docs() -> None:
    docs = (Path(__file__).parents[3] / "docs/performance.md").read_text()
    speeds = [run["tokensPerSecond"] for run in RUNS if "tokensPerSecond" in run]
    assert [speed for speed in speeds if f"| {speed:,} |" not in docs] == []


@pytest.mark.parametrize("run", calibration_of("cpu").runs, ids=title)
def test_the_estimate_is_near_what_was_resident_without_a_gpu(run: Run) -> None:
    assert -0.02 <= estimate_of(run, "cpu").total / run["resident"] - 1 <= 0.12


def test_a_gpu_that_was_not_measured_has_the_constants_of_one_that_was() -> None:
    assert calibration_of("NVIDIA-L4") == calibration_of(PRODUCT)
    assert calibration_of("cpu") != calibration_of("NVIDIA-L4")


def test_a_calibration_that_is_incomplete_is_refused() -> None:
    with pytest.raises(ValueError, match="found \\['constants'\\]"):
        parse({"constants": {}})
