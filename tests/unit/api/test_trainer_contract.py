"""What operator and trainer write for each other, they read again."""

import json
import math
import time
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifact, Finding, Stability
from finetune_api.trainer import ProgressReport, Result, TrainerConfig
from unit.api import samples

SPEC: dict[str, Any] = {
    "method": "sft",
    "model": {"source": "hf://acme/model"},
    "dataset": {"source": "hf://acme/data"},
    "output": {"claim": "models"},
}


def _config() -> TrainerConfig:
    return TrainerConfig(
        name="job",
        namespace="team",
        uid="0b8a",
        attempt=2,
        spec=FineTuneJobSpec.model_validate(SPEC),
        plan=samples.plan(),
        preparation=samples.preparation(),
    )


def _result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "message": "done",
        "step": 40,
        "metrics": {"train_loss": 1.5},
        "measured": {"gpu_memory_gib": 40.25},
        "preparation": samples.preparation(),
    }
    return Result.succeeded(**(fields | changes))


def test_config_round_trip() -> None:
    text = json.dumps(_config().to_json())
    assert TrainerConfig.model_validate_json(text) == _config()


def test_config_fits_an_annotation_and_is_read_fast() -> None:
    prompts = ["語" * 2048] * 16
    spec = SPEC | {
        "model": SPEC["model"] | {"chatTemplate": "x" * 32768},
        "evaluation": {"samplePrompts": prompts},
    }
    config = _config().model_copy(update={"spec": FineTuneJobSpec.model_validate(spec)})
    text = json.dumps(config.to_json())
    assert len(text.encode()) < 256 * 1024
    start = time.perf_counter()
    TrainerConfig.model_validate_json(text)
    assert time.perf_counter() - start < 0.1


def test_result_round_trip() -> None:
    assert Result.model_validate_json(_result().to_message()) == _result()


@pytest.mark.parametrize("character", ["x", "ä", "語", '"', "\\", "\n", "🦙"])
def test_long_message_is_cut_and_facts_stay(character: str) -> None:
    text = _result(message=character * 20_000).to_message()
    assert 3500 < len(text.encode()) <= 4096
    read = Result.model_validate_json(text)
    assert read.message.startswith(character)
    assert read.message.endswith("...")
    assert read.model_copy(update={"message": "done"}) == _result()


def test_numbers_go_before_the_message_becomes_unreadable() -> None:
    many = {f"a_metric_with_a_long_name_{i}": 1.5 for i in range(200)}
    read = Result.model_validate_json(_result(message="x" * 5000, metrics=many).to_message())
    assert read.metrics == {}
    assert read.measured == {"gpu_memory_gib": 40.25}
    assert len(read.message) > 256


def test_metrics_of_training_and_old_findings_go_before_metrics_of_evaluations() -> None:
    findings = [
        Finding(rule="spike", severity="Warning", step=n, message="m" * 200, advice="a" * 200)
        for n in range(16)
    ]
    many = {f"a_metric_with_a_long_name_{i}": 1.5 for i in range(200)}
    result = _result(
        stability=Stability(verdict="Warning", findings=findings),
        metrics={**many, "eval_loss": 0.5},
    )
    read = Result.model_validate_json(result.to_message())
    assert read.metrics == {"eval_loss": 0.5}
    assert read.stability is not None
    assert read.stability.findings[-1].step == 15
    assert 1 < len(read.stability.findings) < 16


def test_the_gravest_findings_stay_longest() -> None:
    severities: list[Any] = ["Critical", "Warning", "Info"] * 4
    findings = [
        Finding(rule="spike", severity=severity, step=n, message="m" * 200, advice="a" * 300)
        for n, severity in enumerate(severities)
    ]
    stability = Stability(verdict="Unstable", findings=findings)
    read = Result.model_validate_json(_result(stability=stability).to_message())
    assert read.stability is not None
    kept = [(finding.severity[0], finding.step) for finding in read.stability.findings]
    assert kept == [("C", 0), ("C", 3), ("C", 6), ("W", 7), ("C", 9), ("W", 10)]


def test_measurements_go_last() -> None:
    many = {f"a_metric_with_a_long_name_{i}": 1.5 for i in range(200)}
    read = Result.model_validate_json(_result(metrics=many, measured=many).to_message())
    assert (read.metrics, read.measured, read.message) == ({}, {}, "done")
    assert read.preparation == samples.preparation()


def test_failed_result_carries_its_reason() -> None:
    read = Result.model_validate_json(
        Result.failed(Reason.DATA_INVALID, "no rows", step=3).to_message()
    )
    assert (read.reason, read.message, read.step) == ("DataInvalid", "no rows", 3)


def test_numbers_that_json_lacks_are_left_out() -> None:
    result = _result(metrics={"loss": math.nan, "grad_norm": math.inf, "step": 1.0})
    assert result.metrics == {"step": 1.0}


def test_progress_is_rounded_and_finite() -> None:
    report = ProgressReport(progress=samples.progress(), stability=samples.stability())
    assert ProgressReport.model_validate(report.to_json()) == report
    assert report.to_json()["progress"]["loss"] == 1.2346
    assert report.to_json()["progress"]["learningRate"] == 1.2346e-05
    broken = samples.progress().model_validate({"activity": "Training", "loss": math.nan})
    assert "loss" not in broken.to_json()


def test_what_another_version_wrote_is_read() -> None:
    written = Result.succeeded(step=3, artifact=Artifact(uri="pvc://models/a", kind="adapter"))
    newer = written.to_json() | {"later": 1}
    newer["artifact"] |= {"later": 2}
    assert Result.read(newer) == written
    assert Result.read_json(json.dumps(newer)) == written
