"""The progress of an attempt that has ended, by its result."""

from finetune_api.status import Progress
from finetune_api.trainer import Result


def final_progress(progress: Progress | None, result: Result) -> Progress:
    """Return the last progress by the result: a short job may never have been polled."""
    before = progress or Progress(activity="Done")
    metrics = result.metrics
    step = before.step if result.step is None else result.step
    return Progress.model_validate(
        before.model_dump()
        | {
            "activity": "Done",
            "steps": f"{step}/{step}",
            "step": step,
            "total_steps": step,
            "epoch": metrics.get("epoch", before.epoch),
            "loss": metrics.get("loss", metrics.get("train_loss", before.loss)),
            "eval_loss": metrics.get("eval_loss", before.eval_loss),
            "eval_loss_before": metrics.get("eval_loss_before", before.eval_loss_before),
            "tokens_per_second": result.measured.get("tokens_per_second", before.tokens_per_second),
            "eta_seconds": 0,
        }
    )


def stopped_progress(progress: Progress | None, checkpoint: int) -> Progress | None:
    """Return the progress at the checkpoint that a trainer left; None if none was seen."""
    if progress is None:
        return None
    total = progress.total_steps
    return progress.model_copy(
        update={
            "step": checkpoint,
            "steps": f"{checkpoint}/{total}" if total else progress.steps,
            "checkpoint_step": checkpoint,
            "eta_seconds": None,
            "tokens_per_second": None,
        }
    )
