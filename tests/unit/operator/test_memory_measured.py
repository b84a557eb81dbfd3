"""The memory model against what was measured, and its constants."""

from typing import Any

import pytest

from finetune_api.status import Memory
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.calibration import calibration_of, parse
from finetune_operator.planning.memory import Candidate, activations, estimate, layers
from unit.operator.builders import make_preparation, make_spec

RUNS = calibration_of("NVIDIA-H100-80GB-HBM3").runs
HELD_OUT = [run for run in RUNS if run.get("heldOut")]
SEEN = [run for run in RUNS if not run.get("heldOut")]


def estimate_of(run: dict[str, Any], *, gpus: int = 1) -> Memory:
    """Return the estimate for a run."""
    named = facts_of_name(f"hf://{run['model']}")
    assert named is not None
    preparation = make_preparation()
    equal = preparation.dataset.model_copy(update={"mean_tokens": preparation.dataset.max_tokens})
    adapter: dict[str, Any] = {"type": run["adapter"]}
    if run["rank"]:
        adapter["lora"] = {"rank": run["rank"]}
    parts: dict[str, Any] = {}
    if run["method"] == "grpo":
        parts["rewards"] = [{"name": "length", "builtin": "length"}]
        parts["generation"] = {"groupSize": 4, "maxCompletionLength": run["completion"]}
    return estimate(
        make_spec(
            method=run["method"],
            adapter=adapter,
            training={"batchSize": run["microBatch"]},
            **parts,
        ),
        preparation.model_copy(update={"model": named[1], "dataset": equal}),
        Candidate(
            gpus,
            "single",
            run["microBatch"],
            run["length"],
            run["checkpointing"],
            "bf16" if gpus else "float32",
            run["compiled"],
        ),
    )


def error(run: dict[str, Any]) -> float:
    """Return by what share the estimate without the context misses what was reserved."""
    memory = estimate_of(run)
    return float((memory.total - memory.context) / run["reserved"] - 1)


def title(run: dict[str, Any]) -> str:
    casts = " with casts" if run["casts"] else ""
    size = f"{run['length']}x{run['microBatch']}"
    return f"{run['model']} {run['method']} {run['adapter']} {size}{casts}"


def as_measured(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PEFT cast the inputs of adapters where it did."""
    if run["casts"]:
        for module in (layers, activations):
            monkeypatch.setattr(module, "casts", lambda *_: True)


@pytest.mark.parametrize("run", [run for run in SEEN if run["compiled"]], ids=title)
def test_the_estimate_is_near_what_was_measured_in_the_trainers_settings(
    run: dict[str, Any],
) -> None:
    assert -0.015 <= error(run) <= 0.02


@pytest.mark.parametrize("run", [run for run in SEEN if not run["compiled"]], ids=title)
def test_the_estimate_is_near_what_was_measured_with_trls_own_settings(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_measured(run, monkeypatch)
    assert -0.035 <= error(run) <= 0.02


@pytest.mark.parametrize("run", HELD_OUT, ids=title)
def test_the_estimate_is_near_what_was_measured_after_it_was_fixed(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_measured(run, monkeypatch)
    assert abs(error(run)) <= 0.03


@pytest.mark.parametrize("run", calibration_of("cpu").runs, ids=title)
def test_the_estimate_is_near_what_was_resident_without_a_gpu(run: dict[str, Any]) -> None:
    assert -0.02 <= estimate_of(run, gpus=0).total / run["resident"] - 1 <= 0.12


def test_a_gpu_that_was_not_measured_has_the_constants_of_one_that_was() -> None:
    assert calibration_of("NVIDIA-L4") == calibration_of("NVIDIA-H100-80GB-HBM3")
    assert calibration_of("cpu") != calibration_of("NVIDIA-L4")


def test_a_calibration_that_is_incomplete_is_refused() -> None:
    with pytest.raises(ValueError, match="found \\['constants'\\]"):
        parse({"constants": {}})
