"""The memory model against what was measured on GPUs, and its constants."""

from typing import Any

import pytest

from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.calibration import calibration_of, parse
from finetune_operator.planning.memory import Candidate, activations, estimate, layers
from unit.operator.builders import make_preparation, make_spec

RUNS = calibration_of("NVIDIA-H100-80GB-HBM3").runs


def error(run: dict[str, Any]) -> float:
    """Return by what share the estimate without the context misses what was reserved."""
    named = facts_of_name(f"hf://{run['model']}")
    assert named is not None
    preparation = make_preparation()
    equal = preparation.dataset.model_copy(update={"mean_tokens": preparation.dataset.max_tokens})
    adapter: dict[str, Any] = {"type": run["adapter"]}
    if run["rank"]:
        adapter["lora"] = {"rank": run["rank"]}
    memory = estimate(
        make_spec(method=run["method"], adapter=adapter, training={"batchSize": run["microBatch"]}),
        preparation.model_copy(update={"model": named[1], "dataset": equal}),
        Candidate(
            1,
            "single",
            run["microBatch"],
            run["length"],
            run["checkpointing"],
            "bf16",
            run["compiled"],
        ),
    )
    return float((memory.total - memory.context) / run["reserved"] - 1)


def title(run: dict[str, Any]) -> str:
    return f"{run['model']} {run['method']} {run['adapter']} {run['length']}x{run['microBatch']}"


@pytest.mark.parametrize("run", [run for run in RUNS if run["compiled"]], ids=title)
def test_the_estimate_is_near_what_was_measured_in_the_trainers_settings(
    run: dict[str, Any],
) -> None:
    assert -0.015 <= error(run) <= 0.02


@pytest.mark.parametrize("run", [run for run in RUNS if not run["compiled"]], ids=title)
def test_the_estimate_is_near_what_was_measured_with_trls_own_settings(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if run["casts"]:
        for module in (layers, activations):
            monkeypatch.setattr(module, "casts", lambda *_: True)
    assert -0.035 <= error(run) <= 0.02


def test_a_gpu_that_was_not_measured_has_the_constants_of_one_that_was() -> None:
    assert calibration_of("NVIDIA-L4") == calibration_of("NVIDIA-H100-80GB-HBM3")
    assert calibration_of("cpu") != calibration_of("NVIDIA-L4")


def test_a_calibration_that_is_incomplete_is_refused() -> None:
    with pytest.raises(ValueError, match="found \\['constants'\\]"):
        parse({"constants": {}})
