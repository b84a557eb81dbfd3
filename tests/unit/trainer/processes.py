"""Runs the trainer in processes of its own that start in milliseconds, and breaks them on purpose.

A fork server imports torch once; every process is forked from it.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["finetune_trainer.prepare", "finetune_trainer.run", "deepspeed"])


@dataclass(frozen=True)
class Interruption:
    """A signal that the process sends to itself at a certain point."""

    when: Literal["step", "evaluation", "checkpoint", "export", "handed over"]
    number: int = 1
    """Which step, or which occurrence."""
    sends: signal.Signals = signal.SIGKILL


def start_trainer(
    arguments: list[str],
    interruption: Interruption | None = None,
    environment: dict[str, str] | None = None,
) -> Any:
    """Start `finetune-trainer` and return its process."""
    return start_process(main, arguments, interruption, environment or {})


def start_process(target: Callable[..., None], *arguments: Any) -> Any:
    """Start a function of a module in a process of its own."""
    process = _CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def run_trainer(
    arguments: list[str],
    interruption: Interruption | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Run `finetune-trainer` to its end and return its exit code; -9 after SIGKILL."""
    process = start_trainer(arguments, interruption, environment)
    process.join(300)
    return int(process.exitcode)


def main(
    arguments: list[str], interruption: Interruption | None, environment: dict[str, str]
) -> None:
    """Be `finetune-trainer`, with an environment and an interruption."""
    os.environ.update(environment)
    if interruption is not None:
        _arrange(interruption)
    from finetune_trainer import cli

    sys.exit(cli.main(arguments))


def _arrange(interruption: Interruption) -> None:
    from finetune_trainer import checkpoints, export
    from finetune_trainer.callbacks.report import ReportCallback

    owner: Any
    owner, name, after = {
        "step": (ReportCallback, "on_step_begin", False),
        "evaluation": (ReportCallback, "on_prediction_step", False),
        "checkpoint": (checkpoints, "publish", False),
        "export": (export, "publish", False),
        "handed over": (export, "publish", True),
    }[interruption.when]
    original = getattr(owner, name)
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == interruption.number and not after:
            os.kill(os.getpid(), interruption.sends)
        result = original(*args, **kwargs)
        if calls == interruption.number and after:
            os.kill(os.getpid(), interruption.sends)
        return result

    setattr(owner, name, interrupted)
