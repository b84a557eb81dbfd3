"""The memory model against what was measured, and its constants."""

from pathlib import Path

import pytest

from bench.calibrate import Summary
from bench.measured_runs import Run, estimate_of, title
from finetune_operator.planning.calibration import calibration_of, parse

H100 = "NVIDIA-H100-80GB-HBM3"
PRODUCTS = (H100, "NVIDIA-H200")
RUNS = [(product, run) for product in PRODUCTS for run in calibration_of(product).runs]
UNDER, MEDIAN, WORST = 0.02, 0.02, 0.05
ROUNDED = 0.01
"""GiB to which estimates are rounded."""


def estimated(product: str, run: Run) -> float:
    """Return the estimate for a run on the GPU, without the context."""
    memory = estimate_of(run, product)
    return memory.total - memory.context


@pytest.mark.parametrize(
    ("product", "run"), RUNS, ids=[f"{product} {title(run)}" for product, run in RUNS]
)
def test_no_run_needs_more_than_its_estimate(product: str, run: Run) -> None:
    assert run["reserved"] <= (1 + UNDER) * (estimated(product, run) + ROUNDED)


@pytest.mark.parametrize("product", PRODUCTS)
def test_estimates_are_near_what_they_were_not_fitted_to(product: str) -> None:
    held_out = [run for run in calibration_of(product).runs if run.get("heldOut")]
    found = Summary.of([estimated(product, run) / run["reserved"] - 1 for run in held_out])
    assert found.median <= MEDIAN
    assert abs(found.worst) <= WORST


def test_speeds_that_plans_go_by_are_those_of_the_docs() -> None:
    docs = (Path(__file__).parents[3] / "docs/performance.md").read_text()
    speeds = [run["tokensPerSecond"] for _, run in RUNS if "tokensPerSecond" in run]
    assert [speed for speed in speeds if f"| {speed:,} |" not in docs] == []


@pytest.mark.parametrize("run", calibration_of("cpu").runs, ids=title)
def test_the_estimate_is_near_what_was_resident_without_a_gpu(run: Run) -> None:
    assert -0.02 <= estimate_of(run, "cpu").total / run["resident"] - 1 <= 0.12


def test_a_gpu_that_was_not_measured_has_the_constants_of_one_that_was() -> None:
    assert calibration_of("NVIDIA-L4") == calibration_of(H100)
    assert calibration_of("cpu") != calibration_of("NVIDIA-L4")


def test_a_calibration_that_is_incomplete_is_refused() -> None:
    with pytest.raises(ValueError, match="found \\['constants'\\]"):
        parse({"constants": {}})
