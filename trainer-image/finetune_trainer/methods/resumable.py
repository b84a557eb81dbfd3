"""What every method's trainer needs so that a resumed run equals an uninterrupted one."""
# ruff: noqa: ARG002, SLF001 - Trainer has no public seam for checkpoints and running sums

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.callbacks.guard import StabilityGuard
from finetune_trainer.callbacks.report import ReportCallback
from finetune_trainer.callbacks.stop import EvaluationStoppedError
from finetune_trainer.callbacks.timing import StepClock, TimingCallback
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.distributed import (
    first_says,
    keep_outputs,
    load_whole_again,
    wait_for_first,
)
from finetune_trainer.methods.rounding import RoundingTrainer
from finetune_trainer.methods.timed import TimedTrainer
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.stability.rollback import adjust_learning_rate
from finetune_trainer.termination import Terminated


class ResumableTrainer(TimedTrainer, RoundingTrainer):
    """Mixed into a TRL trainer: atomic checkpoints, evaluations that leave no trace, a guard."""

    checkpoints: Checkpoints
    metrics: MetricsLog
    guard: StabilityGuard
    norm: Any = None
    """Of the gradient whose step the optimizer was given before it was judged."""

    def create_accelerator_and_postprocess(self: Any) -> None:
        """Set Accelerate up; TRL loads a reference model afterwards, whole, and shards it."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        load_whole_again()
        keep_outputs(self.accelerator)

    def _build_accelerator_args(self, **options: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_accelerator_args(**options)  # type: ignore[misc]
        for handler in arguments["kwargs_handlers"]:
            # Else DDP holds every gradient twice.
            handler.gradient_as_bucket_view = True
        return arguments

    def attend(
        self: Any,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        guard: StabilityGuard,
        report: ReportCallback,
    ) -> None:
        """Set up what accompanies training; called once, before it begins."""
        self.checkpoints, self.metrics, self.guard = checkpoints, metrics, guard
        self.clock = StepClock(cuda=self.args.device.type == "cuda")
        # In this order the log forgets what came after the checkpoint, the guard recalls the rest,
        # and then an evaluation can be made up for; and a step is logged before it is judged.
        for callback in (TimingCallback(self.clock), _Judge(self), report, guard, _Beginning(self)):
            self.add_callback(callback)

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; a gradient that is no number never reaches the weights."""
        with self.clock.part("sync"):
            norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
            if self.optimizer_scales:
                # Asked for the norm now, the GPU would wait until it is given the optimizer's step.
                self.torch_optimizer.found_inf = (~torch.isfinite(norm)).float()
                self.norm = norm
            elif self.judge(norm):
                # An optimizer leaves weights without a gradient alone.
                model.zero_grad()
        return norm

    def judge(self: Any, norm: Any) -> bool:
        """Tell whether a gradient is no number; raises JobFailure when training must end."""
        # DeepSpeed steps inside the backward pass, and may give no norm then.
        is_applied = bool(self.is_deepspeed_enabled)
        number = 0.0 if norm is None else float(norm)
        skips: bool = self.guard.check_gradient(
            number, self.args, self.state, is_applied=is_applied
        )
        return skips

    def log(self: Any, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log, with the number of skipped steps, and where the time of the steps went."""
        if "loss" in logs:
            logs |= self.guard.take_skipped() | self.clock.take()
        super().log(logs, start_time)  # type: ignore[misc]
        if not math.isfinite(logs.get("loss", 0.0)):
            # Trainer subtracts the sum from itself, which leaves NaN for good.
            self._tr_loss.zero_()

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            adjust_learning_rate(Path(checkpoint), self.lr_scheduler)

    def load_weights(self: Any, checkpoint: Path) -> None:
        """Load a checkpoint's weights, without what only training needs."""
        self._load_from_checkpoint(str(checkpoint))

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the trained adapter too: beside TRL's copy for the reference, Trainer misses it."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        loaded = self.model if model is None else model
        is_saved = (Path(resume_from_checkpoint) / "adapter_model.safetensors").exists()
        if is_saved and len(getattr(loaded, "peft_config", {})) > 1:
            loaded.load_adapter(resume_from_checkpoint, "default", is_trainable=True)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: the card is written once, with the artifact."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        with self.clock.part(None):
            self._save_and_publish(model, trial)

    def _save_and_publish(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        staged = self.checkpoints.staging / f"checkpoint-{self.state.global_step}"
        _accumulators_file(self, staged).write_text(json.dumps(_accumulators(self)))
        wait_for_first()
        if self.is_world_process_zero():
            self.metrics.sync()
            self.checkpoints.publish(self.state.global_step, self.guard.last_good_step())
        wait_for_first()

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without touching the random state that dropout and data order draw from."""
        devices = [torch.cuda.current_device()] if self.args.device.type == "cuda" else []
        try:
            with self.clock.part(None), torch.random.fork_rng(devices):
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationStoppedError:
            self.save_checkpoint()
            raise Terminated from None
        return metrics

    def save_checkpoint(self: Any) -> None:
        """Write a checkpoint now; all ranks together."""
        self._save_checkpoint(self.model, None)
        self.callback_handler.on_save(self.args, self.state, self.control)


class _Judge(TrainerCallback):
    """Asks the GPU for what a step came to, once the whole step is with it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the gradient, and count the tokens."""
        if self.trainer.optimizer_scales:
            # Where it is no number, the optimizer has left the weights alone.
            self.trainer.judge(self.trainer.norm)
        self.trainer.count_tokens()


class _Beginning(TrainerCallback):
    """What is to be done before the first step of a process, after Trainer has set itself up."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint as if it had not been left; without one, keep the start."""
        trainer = self.trainer
        checkpoint = trainer.checkpoints.root / f"checkpoint-{state.global_step}"
        file = _accumulators_file(trainer, checkpoint)
        if file.exists():
            _restore(trainer, json.loads(file.read_text()))
        elif state.global_step == 0 and trainer.guard.may_go_back:
            trainer.save_checkpoint()
        if self._owes_evaluation(args, state):
            trainer.evaluate()

    def _owes_evaluation(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Tell whether the process before gave up the evaluation of its last step for SIGTERM."""
        if not state.global_step or not args.eval_steps or state.global_step % args.eval_steps:
            return False
        return first_says(self.trainer.metrics.find(state.global_step, "eval_loss")) is None


def _restore(trainer: Any, sums: dict[str, Any]) -> None:
    """Restore the sums since the last log, which Trainer has zeroed."""
    trainer._tr_loss = torch.tensor(sums["loss"], device=trainer.args.device)
    trainer._globalstep_last_logged = sums["last_logged_step"]
    trainer.guard.restore(sums["guard"])
    _sums(trainer).update(sums["metrics"])


def _accumulators(trainer: Any) -> dict[str, Any]:
    return {
        "loss": trainer._tr_loss.item(),
        "last_logged_step": trainer._globalstep_last_logged,
        "metrics": dict(_sums(trainer)),
        "guard": trainer.guard.counts(),
    }


def _sums(trainer: Any) -> dict[str, list[float]]:
    """Return the values since the last log; TRL's ORPOTrainer keeps them under another name."""
    stored = "_metrics" if hasattr(trainer, "_metrics") else "_stored_metrics"
    sums: dict[str, list[float]] = getattr(trainer, stored)["train"]
    return sums


def _accumulators_file(trainer: Any, checkpoint: Path) -> Path:
    return checkpoint / f"accumulators-{trainer.args.process_index}.json"
