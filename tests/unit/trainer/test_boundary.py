"""What the process makes of errors, of its CPUs and of its command line."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure, Result
from finetune_trainer import environment, launcher, message
from finetune_trainer.cli import _end
from finetune_trainer.failures import as_failure
from finetune_trainer.metrics_log import MetricsLog
from unit.trainer.builders import make_plan


def _caused(cause: Exception) -> Exception:
    error = RuntimeError("saving failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (JobFailure(Reason.DATA_INVALID, "no"), Reason.DATA_INVALID),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.STORAGE_FULL),
        (_caused(OSError(errno.EDQUOT, "Quota exceeded")), Reason.STORAGE_FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), Reason.STORAGE_FULL),
        (torch.OutOfMemoryError("CUDA out of memory"), Reason.GPU_OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), Reason.GPU_OUT_OF_MEMORY),
        (ValueError("two\nlines"), Reason.INTERNAL_ERROR),
    ],
)
def test_every_error_has_a_reason(error: Exception, reason: Reason) -> None:
    failure = as_failure(error)
    assert failure.reason is reason
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    ("limit", "requested", "cpus"),
    [("150000 100000", "8", 2), ("max 100000", "500m", 1), ("50000 100000", None, 1)],
)
def test_threads_fit_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, requested: str | None, cpus: int
) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    monkeypatch.setattr(environment, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert environment.available_cpus(requested) == cpus


def test_help_and_a_missing_config_do_not_load_torch(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "finetune_trainer.cli"]
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "prepare" in result.stdout
    log = tmp_path / "termination-log"
    ended = subprocess.run(
        [*command, "run", "--config=/none/job.json", f"--termination-log={log}"],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 64
    assert "--config /none/job.json cannot be read" in log.read_text()
    assert time.monotonic() - started < 6


@pytest.mark.parametrize(("local_rank", "says"), [("0", True), ("1", False)])
def test_every_pod_of_several_says_that_it_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_rank: str, says: bool
) -> None:
    log = tmp_path / "termination-log"
    log.write_text("")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert _end(log, Result.succeeded()) == 0
    assert bool(log.read_text()) == says


def test_of_processes_that_fail_at_once_one_leaves_a_whole_message(tmp_path: Path) -> None:
    log, start = tmp_path / "termination-log", threading.Barrier(8)

    def fail(length: int) -> None:
        start.wait()
        message.leave(log, Result.failed(Reason.PREEMPTED, length * "x"), only_first=True)

    for _ in range(100):
        log.write_text("")
        processes = [threading.Thread(target=fail, args=(length,)) for length in range(8, 16)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        Result.model_validate_json(log.read_text())


def test_a_pod_ends_with_the_exit_code_of_the_process_that_failed(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.write_text("")
    arguments = ["run", "--config=/none/job.json", f"--termination-log={log}"]
    assert launcher.launch(make_plan(gpus=2, gpus_per_node=2, strategy="ddp"), arguments) == 64
    assert "--config /none/job.json cannot be read" in log.read_text()


_MEETS = f"""
import os, socket
number = os.environ.pop("{environment.LISTENER}", None)
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if os.environ["RANK"] == "0":
    listener = socket.socket(fileno=int(number))
    assert listener.getsockname() == address
    listener.accept()
else:
    assert number is None
    socket.create_connection(address)
"""


def test_processes_of_one_pod_meet_at_a_socket_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, script = tmp_path / "python", tmp_path / "meets.py"
    script.write_text(_MEETS)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert launcher.launch(make_plan(gpus=2, gpus_per_node=2, strategy="ddp"), ["run"]) == 0


def test_several_gpus_are_several_processes_whatever_the_pods() -> None:
    assert launcher.needs_launch(make_plan(gpus=2, nodes=2, gpus_per_node=1, strategy="ddp"))
    assert launcher.needs_launch(make_plan(gpus=2, nodes=1, gpus_per_node=2, strategy="ddp"))
    assert not launcher.needs_launch(make_plan(gpus=1, nodes=1, gpus_per_node=1))
    assert not launcher.needs_launch(None)


def test_logs_start_without_news_of_libraries() -> None:
    script = (
        "from finetune_trainer import logs; logs.configure(); import logging;"
        "from deepspeed.accelerator import get_accelerator; get_accelerator();"
        "logging.getLogger('DeepSpeed').warning('something else')"
    )
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=hidden
    )
    written = result.stdout + result.stderr
    assert "Setting accelerator" not in written
    assert "something else" in written


def test_a_torn_line_of_the_metrics_log_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    metrics = MetricsLog(path)
    metrics.rewind(5)
    metrics.append(2, {"loss": float("nan")})
    assert [entry["step"] for entry in MetricsLog(path).entries] == [1, 2]
