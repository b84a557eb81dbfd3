"""Stops training after SIGTERM, on all ranks together and with a checkpoint."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.termination import Termination


class EvaluationStoppedError(Exception):
    """An evaluation in the middle of training was given up for SIGTERM."""


class StopCallback(TrainerCallback):
    """Turns a noted SIGTERM into a checkpoint and the end of training at the next boundary."""

    def __init__(self, termination: Termination) -> None:
        self.termination = termination
        self.stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop; an evaluation that is due would eat up the grace period."""
        if self._agreed(args):
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give up an evaluation that has begun."""
        if self._agreed(args):
            raise EvaluationStoppedError

    def _agreed(self, args: TrainingArguments) -> bool:
        """Tell whether any rank got the signal: all must leave the loop at the same step."""
        requested = self.termination.requested
        if args.world_size > 1:
            flag = torch.tensor(int(requested), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            requested = bool(flag.item())
        self.stopped = requested
        return requested
