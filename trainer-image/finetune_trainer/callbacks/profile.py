"""Profiles a few steps, for `finetune-trainer run --profile`."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

import logging
from pathlib import Path
from typing import Any

from torch.profiler import profile, supported_activities
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.logs import fields

log = logging.getLogger(__name__)

TRACE = "trace.json.gz"
"""For chrome://tracing or ui.perfetto.dev."""
OPERATORS = "operators.txt"
"""The operators that took longest themselves."""

_SKIPPED = 3
"""Steps that warm caches up and compile."""
_PROFILED = 3
_ROWS = 30


class ProfileCallback(TrainerCallback):
    """Profiles the first process's fourth to sixth step; in a shorter run, what there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin = 0
        self._profile: profile | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the steps."""
        left = state.max_steps - state.global_step
        self._begin = state.global_step + max(0, min(_SKIPPED, left - _PROFILED))
        self._start_or_stop(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start or stop at the chosen steps."""
        self._start_or_stop(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what there is when training ended early."""
        self._stop(state)

    def _start_or_stop(self, state: TrainerState) -> None:
        if state.is_world_process_zero and state.global_step == self._begin:
            self._profile = profile(activities=supported_activities())
            self._profile.start()
        elif state.global_step == self._begin + _PROFILED:
            self._stop(state)

    def _stop(self, state: TrainerState) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        self.folder.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / TRACE))
        averages = self._profile.key_averages()
        on_gpu = any(each.self_device_time_total for each in averages)
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=_ROWS)
        steps = f"Steps {self._begin + 1} to {state.global_step}, by {order}.\n"
        (self.folder / OPERATORS).write_text(steps + table)
        log.info("profiled", extra=fields(path=str(self.folder)))
        self._profile = None
