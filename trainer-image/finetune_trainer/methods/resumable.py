"""What every method's trainer needs so that a resumed run equals an uninterrupted one."""
# ruff: noqa: ARG002, SLF001 - Trainer has no public seam for checkpoints and running sums

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.callbacks.stop import EvaluationStoppedError
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.termination import Terminated


class ResumableTrainer:
    """Mixed into a TRL trainer: atomic checkpoints, and evaluations that leave no trace."""

    checkpoints: Checkpoints
    metrics: MetricsLog

    def use_checkpoints(self: Any, checkpoints: Checkpoints, metrics: MetricsLog) -> None:
        """Write checkpoints there; called once, before train()."""
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.add_callback(_RestoreAccumulators(self))

    def load_weights(self: Any, checkpoint: Path) -> None:
        """Load a checkpoint's weights, without what only training needs."""
        self._load_from_checkpoint(str(checkpoint))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: the card is written once, with the artifact."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        staged = self.checkpoints.staging / f"checkpoint-{self.state.global_step}"
        _accumulators_file(self, staged).write_text(json.dumps(_accumulators(self)))
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.metrics.sync()
            self.checkpoints.publish(self.state.global_step)
        self.accelerator.wait_for_everyone()

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without touching the random state that dropout and data order draw from."""
        devices = [torch.cuda.current_device()] if self.args.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationStoppedError:
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(self.args, self.state, self.control)
            raise Terminated from None
        return metrics


class _RestoreAccumulators(TrainerCallback):
    """Restores the sums since the last log, after Trainer has zeroed them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.checkpoint: Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the checkpoint that training resumes from."""
        checkpoint = self.trainer.checkpoints.root / f"checkpoint-{state.global_step}"
        file = _accumulators_file(self.trainer, checkpoint)
        if not file.exists():
            return
        sums = json.loads(file.read_text())
        trainer = self.trainer
        trainer._tr_loss = torch.tensor(sums["loss"], device=trainer.args.device)
        trainer._globalstep_last_logged = sums["last_logged_step"]
        trainer._metrics["train"].update(sums["metrics"])


def _accumulators(trainer: Any) -> dict[str, Any]:
    return {
        "loss": trainer._tr_loss.item(),
        "last_logged_step": trainer._globalstep_last_logged,
        "metrics": dict(trainer._metrics["train"]),
    }


def _accumulators_file(trainer: Any, checkpoint: Path) -> Path:
    return checkpoint / f"accumulators-{trainer.args.process_index}.json"
