"""Breaks the training loop on purpose, at given optimizer steps, and runs it in this process."""

import argparse
from collections.abc import Callable, Container
from typing import Any

import pytest
import torch

from finetune_api.trainer import TrainerConfig
from finetune_trainer import cli
from finetune_trainer.methods import sft
from unit.trainer.conftest import Site
from unit.trainer.processes import main


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] + float("inf")


def no_number(loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan")


def infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    """Leave the loss as it is; only its gradient overflows."""
    overflowing: torch.Tensor = _Overflow.apply(loss)
    return overflowing


def fifty_times(loss: torch.Tensor) -> torch.Tensor:
    return loss * 50


def more_than_double(loss: torch.Tensor) -> torch.Tensor:
    return loss * 2.5


def out_of_memory(_loss: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def break_loss(
    monkeypatch: pytest.MonkeyPatch,
    steps: Container[int],
    change: Callable[[torch.Tensor], torch.Tensor],
    broken_class: Any = sft.ResumableSftTrainer,
) -> None:
    """Change the training loss of some optimizer steps, counted from 1."""
    original = broken_class.compute_loss

    def broken(trainer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(trainer, model, *args, **kwargs)
        is_due = model.training and trainer.state.global_step + 1 in steps
        return change(loss) if is_due else loss

    monkeypatch.setattr(broken_class, "compute_loss", broken)


def break_evaluation(monkeypatch: pytest.MonkeyPatch, steps: Container[int]) -> None:
    """Make the held-out loss no number after some optimizer steps."""
    original = sft.ResumableSftTrainer.compute_loss

    def broken(trainer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(trainer, model, *args, **kwargs)
        is_due = not model.training and trainer.state.global_step in steps
        return no_number(loss) if is_due else loss

    monkeypatch.setattr(sft.ResumableSftTrainer, "compute_loss", broken)


def run_here(site: Site, config: TrainerConfig) -> int:
    """Run `run` in this process and return its exit code."""
    log = site.root / "termination-log"
    log.write_text("")
    paths = site.paths
    options = argparse.Namespace(
        termination_log=log,
        workspace=paths.workspace,
        output=paths.output,
        sources=paths.sources,
        port=0,
        profile=False,
    )
    return cli._guarded(cli.COMMANDS["run"], config, options)


def broken_rank(arguments: list[str], step: int, environment: dict[str, str]) -> None:
    """Be one of several processes, of which the second has a loss that is no number at a step."""
    if environment["RANK"] == "1":
        break_loss(pytest.MonkeyPatch(), [step], no_number)
    main(arguments, None, environment)
