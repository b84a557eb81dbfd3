"""kubectl finetune run --local: the real trainer, with folders for claims."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.plugin.local import readable
from unit.operator.plugin_process import Plugin
from unit.trainer.builders import chat_rows, save_model, write_rows

JOB: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "tiny"},
    "spec": {
        "method": "sft",
        "model": {"source": "pvc://sources/model"},
        "dataset": {"source": "configmap://rows/rows.jsonl"},
        "training": {"maxSteps": 2, "batchSize": 2},
        "output": {"claim": "models"},
    },
}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The command line for a tiny model and four chats, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_model(tmp_path / "sources/model")
    write_rows(tmp_path / "rows.jsonl", chat_rows(4))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    claims = ["--claim", "sources=sources", "--claim", "models=models"]
    return ["run", "--local", "-f", "job.yaml", *claims, "--configmap", "rows=rows.jsonl"]


def test_a_job_trains_here_and_leaves_its_model(
    plugin: Plugin, arguments: list[object], tmp_path: Path
) -> None:
    run = plugin(*arguments, "--set", "count=0", "--profile")
    assert run.code == 0, run.output + run.errors
    assert "CPU, lora, micro-batch 2 x 1" in run.output
    assert "The model is in models/tiny." in run.output
    assert (tmp_path / "models/tiny/adapter_config.json").exists()
    assert (tmp_path / "models/tiny/profile/operators.txt").exists()
    again = plugin(*arguments, "--set", "count=0")
    assert again.code == 0, again.output + again.errors
    changed = plugin(*arguments, "--set", "count=0,training.maxSteps=3")
    assert changed.code == 2
    assert "tiny.local holds a job with another spec: name another folder" in changed.errors


def test_data_that_does_not_fit_ends_with_the_trainers_words_and_code(
    plugin: Plugin, arguments: list[object], tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    run = plugin(*arguments)
    assert run.code == 65
    assert "DataInvalid: the rows of configmap://rows/rows.jsonl look like paired" in run.errors
    assert run.errors.endswith("The whole log is tiny.local/trainer.log.\n")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "no folder stands for it: give --claim sources=FOLDER"),
        (["--claim", "sources"], "'sources' is not of the form NAME=FOLDER"),
        (["--claim", "sources=."], "give --configmap rows=FOLDER"),
        (["--set", "model.source=job://other"], "job://other is another job: run it first"),
        (["--set", "count=2"], "resources.gpu.count is 2, but this machine has no GPU"),
        (["--set", "method=dpo,dataset.format=chat"], "spec.dataset.format: method dpo trains on"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    plugin: Plugin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    words: str,
) -> None:
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "nvidia-smi" else which(name))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    folder = ["--folder", tmp_path / "local"]
    run = plugin("run", "--local", "-f", tmp_path / "job.yaml", *folder, *command)
    assert run.code == 2
    assert words in run.errors
    assert run.errors.count("\n") == 1


def test_a_folder_whose_job_cannot_be_read_is_left_alone(
    plugin: Plugin, arguments: list[object], tmp_path: Path
) -> None:
    (tmp_path / "tiny.local").mkdir()
    (tmp_path / "tiny.local/job.json").write_text('{"name": ')
    run = plugin(*arguments)
    assert run.code == 2
    assert "tiny.local holds a job with another spec" in run.errors


def test_run_is_for_this_machine(plugin: Plugin, tmp_path: Path) -> None:
    assert plugin("run", "-f", tmp_path / "job.yaml").errors == (
        "error: run is for this machine: give --local, or kubectl apply -f the job.\n"
    )


def test_logs_are_shortened_for_people() -> None:
    entry = {
        "time": "2026-11-24T14:16:17.653+00:00",
        "level": "info",
        "logger": "x",
        "message": "metrics",
        "step": 1,
        "loss": 4.842391490936279,
        "data": {"a": 1},
    }
    assert readable(json.dumps(entry)) == "14:16:17 metrics step=1 loss=4.842\n"
    assert readable("Killed\n") == "Killed\n"
