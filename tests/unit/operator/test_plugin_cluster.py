"""kubectl finetune status, logs and report, with a kubectl that says what a cluster would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.plugin.status_view import duration
from unit.operator.builders import make_job_body, make_plan_of, stamp
from unit.operator.plugin_process import Plugin

KUBECTL = """\
#!/bin/sh
echo "$@" >> {folder}/calls
cat {folder}/output
cat {folder}/errors >&2
exit $(cat {folder}/code)
"""

Arrange = Callable[..., Path]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrange:
    """Puts a kubectl on PATH that prints what it is told to; returns the file with its calls."""

    def arrange(*documents: dict[str, Any], errors: str = "", code: int = 0) -> Path:
        script = tmp_path / "kubectl"
        script.write_text(KUBECTL.format(folder=tmp_path))
        script.chmod(0o755)
        # As kubectl prints them: over several lines, one after another.
        output = "".join(json.dumps(document, indent=4) + "\n" for document in documents)
        (tmp_path / "output").write_text(output)
        (tmp_path / "errors").write_text(errors)
        (tmp_path / "code").write_text(str(code))
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return tmp_path / "calls"

    return arrange


def _job(phase: str, **status: Any) -> dict[str, Any]:
    trainer = {"role": "trainer", "number": 2, "state": "Active", "startTime": stamp(90)}
    killed = trainer | {
        "number": 1,
        "state": "Failed",
        "reason": "Killed",
        "step": 12,
        "finishTime": stamp(150),
    }
    body = {
        "phase": phase,
        "message": f"It is {phase}.",
        "plan": make_plan_of().to_json(),
        "progress": {
            "activity": "Training",
            "steps": "10/40",
            "step": 10,
            "totalSteps": 40,
            "loss": 1.25,
            "tokensPerSecond": 12345.6,
            "etaSeconds": 130,
        },
        "stability": {
            "verdict": "Warning",
            "findings": [
                {
                    "rule": "loss-spike",
                    "severity": "Warning",
                    "step": 9,
                    "message": "loss 9.1 is 7 sigma above its mean.",
                    "advice": "Lower training.learningRate.",
                }
            ],
        },
        "attempts": [killed, trainer],
    }
    return make_job_body(status=body | status)


def test_status_tells_progress_stability_and_attempts(plugin: Plugin, kubectl: Arrange) -> None:
    calls = kubectl(_job("Running"))
    run = plugin("status", "job", "-n", "team", "--context", "here")
    assert run.code == 0
    for words in (
        *("team/job  Running", "It is Running.", "Plan: 1 x 80 GiB GPU, lora"),
        *("25% Training", "step 10/40  loss 1.25  12,346 tokens/s  2m 10s left"),
        "Stability: Warning",
        "step 9, loss-spike: loss 9.1 is 7 sigma above its mean. Lower training.learningRate.",
    ):
        assert words in run.output
    assert [line.split() for line in run.output.splitlines()[-2:]] == [
        ["trainer", "1", "Killed", "1m", "0s", "step", "12"],
        ["trainer", "2", "Active"],
    ]
    assert calls.read_text() == (
        "get finetunejobs.finetune.dev job --output=json --namespace=team --context=here\n"
    )


def test_status_tells_what_it_took_and_how_right_the_plan_was(
    plugin: Plugin, kubectl: Arrange
) -> None:
    usage = {"gpuHours": 4.2, "expectedGpuHours": 5.0, "cost": 2.94, "currency": "EUR"}
    measured = {
        "attempt": 1, "gpuMemoryGib": 50.0, "estimatedMemoryGib": 51.0, "memoryError": 0.02,
    }  # fmt: skip
    kubectl(_job("Running", usage=usage, measured=measured))
    output = plugin("status", "job").output
    assert "Used: 4.20 GPU-hours (about 5.00 expected), 2.94 EUR" in output
    assert "Measured: 50.0 GiB of GPU memory, estimated 51.0 (+2.0%)" in output
    kubectl(_job("Running", usage={"gpuHours": 0.0}, measured={"attempt": 1, "hostMemoryGib": 3.5}))
    lines = plugin("status", "job").output.splitlines()
    assert {"Used: 0.00 GPU-hours", "Measured: 3.5 GiB of host memory"} <= set(lines)


def test_words_in_brackets_are_no_markup(plugin: Plugin, kubectl: Arrange) -> None:
    kubectl(_job("Failed", message="found [red] in [/models] :warning:"))
    assert "found [red] in [/models] :warning:" in plugin("status", "job").output


def test_a_job_that_no_operator_has_seen_is_pending(plugin: Plugin, kubectl: Arrange) -> None:
    kubectl(make_job_body())
    assert plugin("status", "job").output.splitlines() == ["team/job  Pending"]


def _events(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "MODIFIED", "object": job} for job in jobs]


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_watching_ends_with_the_job(
    plugin: Plugin, kubectl: Arrange, phase: str, code: int
) -> None:
    kubectl(
        *_events(_job("Preparing", progress=None), _job("Running"), _job("Running"), _job(phase))
    )
    run = plugin("status", "job", "--watch")
    assert run.code == code
    assert [line.split()[:2] for line in run.output.splitlines()] == [
        ["job", "Preparing"],
        ["job", "Running"],
        ["job", phase],
        ["It", "is"],
    ]


def test_watching_a_job_that_is_deleted_says_so(plugin: Plugin, kubectl: Arrange) -> None:
    kubectl(*_events(_job("Running")), {"type": "DELETED", "object": _job("Running")})
    run = plugin("status", "job", "-w")
    assert (run.code, run.errors) == (2, "error: FineTuneJob job was deleted.\n")


@pytest.mark.parametrize("command", [["status"], ["status", "-w"], ["logs"], ["report"]])
def test_what_kubectl_refuses_is_passed_on(
    plugin: Plugin, kubectl: Arrange, command: list[str]
) -> None:
    said = 'Error from server (NotFound): finetunejobs.finetune.dev "job" not found\n'
    kubectl(errors=f"Warning: old\n{said}", code=1)
    run = plugin(*command, "job")
    assert (run.code, run.errors) == (
        2,
        'error: finetunejobs.finetune.dev "job" not found.\n',
    )


def test_without_kubectl_that_is_said(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert plugin("status", "job").errors == "error: kubectl is not on PATH: install it.\n"


def test_logs_are_of_the_newest_attempt(plugin: Plugin, kubectl: Arrange) -> None:
    calls = kubectl(_job("Running"))
    assert plugin("logs", "job", "--follow", "-n", "team").code == 0
    assert calls.read_text().splitlines()[-1] == "logs job-trainer-2-0 --follow --namespace=team"


def test_logs_of_a_job_without_pods_say_why(plugin: Plugin, kubectl: Arrange) -> None:
    kubectl(_job("Pending", attempts=[]))
    assert plugin("logs", "job").errors == (
        "error: job has no pod yet, it is Pending: It is Pending.\n"
    )


def test_a_report_is_beside_the_model(plugin: Plugin, kubectl: Arrange) -> None:
    kubectl(_job("Succeeded", artifact={"uri": "pvc://models/team/a", "kind": "adapter"}))
    output = plugin("report", "job").output
    assert output.startswith("pvc://models/team/a/report.html\n")
    assert "kubectl cp POD:/models/team/a/report.html report.html" in output


def test_a_job_without_a_model_has_no_report(plugin: Plugin, kubectl: Arrange) -> None:
    kubectl(_job("Failed"))
    assert plugin("report", "job").errors == (
        "error: job has no report yet, it is Failed: It is Failed.\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m 0s"), (130, "2m 10s"), (7500, "2h 5m")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
