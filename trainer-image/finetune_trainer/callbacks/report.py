"""Keeps the progress board and the metrics log up to date."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

import logging
import time
from collections import deque
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.metrics import SECONDS
from finetune_trainer.logs import fields
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.progress import ProgressBoard

log = logging.getLogger(__name__)

_WINDOW = 20
"""Steps over which speed and remaining time are estimated."""


# TRL counts tokens since the process started; what is logged counts since training did.
_REPLACED = {"num_input_tokens_seen", "eval_num_tokens"}


class ReportCallback(TrainerCallback):
    """Reports every step, evaluation and checkpoint; rank 0 alone writes the log."""

    def __init__(self, board: ProgressBoard, metrics: MetricsLog) -> None:
        self.board = board
        self.metrics = metrics
        self._steps: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._started = 0.0
        self._tokens_before = 0
        self._first = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what was logged beyond the checkpoint that training resumes from."""
        if state.is_world_process_zero:
            self.metrics.rewind(state.global_step)
        self._report(state, activity="Training")
        log.info("training", extra=fields(step=state.global_step, total_steps=state.max_steps))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock of a step."""
        self._started = time.monotonic()
        self._tokens_before = int(state.num_input_tokens_seen)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step's tokens and seconds. The first warms caches up and would mislead."""
        seconds = time.monotonic() - self._started
        tokens = int(state.num_input_tokens_seen) - self._tokens_before
        self.board.step_seconds = seconds
        if not self._first:
            self._steps.append((seconds, tokens))
            self.board.tokens += tokens
            self.board.training_seconds += seconds
        self._first = False
        self._report(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log what is measured; the tokens a second are on the board alone."""
        if not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        if not state.is_world_process_zero:
            return
        numbers = {key: value for key, value in logs.items() if isinstance(value, int | float)}
        values = {key: value for key, value in numbers.items() if not _is_speed(key)}
        values["num_tokens"] = int(state.num_input_tokens_seen)
        self.metrics.append(state.global_step, values)
        self.board.measured(values)
        said = {key: value for key, value in values.items() if not key.startswith(SECONDS)}
        log.info("metrics", extra=fields(step=state.global_step, **said))
        shown = ("loss", "eval_loss", "learning_rate", "grad_norm")
        self.board.update(**{name: logs[name] for name in shown if name in logs})

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show that an evaluation is on."""
        if self.board.progress.activity != "Evaluating":
            self.board.update(activity="Evaluating")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show that the evaluation is over."""
        self.board.update(activity="Training")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the checkpoint."""
        self.board.checkpointed(state.global_step)
        log.info("checkpoint", extra=fields(step=state.global_step))

    def _report(self, state: TrainerState, **values: Any) -> None:
        seconds = sum(seconds for seconds, _ in self._steps)
        if seconds:
            mean = seconds / len(self._steps)
            values["eta_seconds"] = round(mean * (state.max_steps - state.global_step))
            values["tokens_per_second"] = sum(tokens for _, tokens in self._steps) / seconds
        self.board.update(
            step=state.global_step,
            total_steps=state.max_steps,
            steps=f"{state.global_step}/{state.max_steps}",
            epoch=float(state.epoch or 0),
            **values,
        )


def _is_speed(name: str) -> bool:
    return name.endswith(("_per_second", "_runtime", "_time")) or name in _REPLACED
