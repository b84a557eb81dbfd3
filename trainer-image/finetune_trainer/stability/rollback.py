"""Goes back to an earlier checkpoint: its weights, later data, a lower learning rate."""
# ruff: noqa: SLF001 - schedulers have no public seam for where they are

from pathlib import Path
from typing import Any

from finetune_api.failures import Reason
from finetune_api.status import Rollback
from finetune_api.trainer import JobFailure
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.durable import read_json, remove, write_json
from finetune_trainer.metrics_log import MetricsLog

_RECORD = "rollbacks.json"
_RATE = "learning-rate.json"
"""In a derived checkpoint: what the learning rate is multiplied by when it is loaded."""


def carry_out(rollbacks: list[Rollback], checkpoints: Checkpoints, metrics: MetricsLog) -> None:
    """Make the checkpoint that training goes on from, for each rollback that was not carried out.

    For the first process alone, before it looks for the newest checkpoint. What was interrupted
    is done again from the start. Raises JobFailure when the checkpoint to go back to is gone.
    """
    record = checkpoints.root / _RECORD
    done = (read_json(record) or {"carried_out": 0})["carried_out"]
    for number in range(done, len(rollbacks)):
        rollback = rollbacks[number]
        factor = rollback.learning_rate_factor / _factor_at(rollback.to_step, rollbacks[:number])
        checkpoints.remove_after(rollback.to_step)
        newest = checkpoints.newest_complete()
        if newest is None or newest.name != f"checkpoint-{rollback.to_step}":
            raise JobFailure(
                Reason.TRAINING_UNSTABLE,
                f"checkpoint {rollback.to_step}, to which training goes back after rule "
                f"{rollback.rule}, is not in the workspace: make the job anew, with a lower "
                "training.learningRate.",
            )
        metrics.rewind(rollback.to_step)
        staged = checkpoints.derive(rollback.to_step, rollback.step)
        _skip_to(staged, rollback.step, factor)
        checkpoints.publish(rollback.step, good=rollback.to_step)
        write_json(record, {"carried_out": number + 1})


def _factor_at(step: int, earlier: list[Rollback]) -> float:
    """Return the factor on the learning rate that a checkpoint was made with."""
    factors = [rollback.learning_rate_factor for rollback in earlier if rollback.step <= step]
    return factors[-1] if factors else 1.0


def _skip_to(staged: Path, step: int, factor: float) -> None:
    """Make Trainer go on after a step: it skips the data before it."""
    state = read_json(staged / "trainer_state.json")
    # The epoch stays: it says how much data the weights have seen, until the next step sets it.
    write_json(staged / "trainer_state.json", state | {"global_step": step})
    # Sums since the last log, and completions that are in use, are those of the bad steps.
    for stale in (*staged.glob("accumulators-*.json"), *staged.glob("completions-*.pt")):
        remove(stale)
    before = (read_json(staged / _RATE) or {"factor": 1.0})["factor"]
    write_json(staged / _RATE, {"factor": before * factor, "step": step})


def adjust_learning_rate(checkpoint: Path, scheduler: Any) -> None:
    """Bring a scheduler that was loaded from a derived checkpoint to its step and its rate.

    On every rank, after the optimizer was loaded: so it works alike when optimizers are sharded.
    """
    change = read_json(checkpoint / _RATE)
    if change is None:
        return
    step = change["step"]
    scheduler.base_lrs = [rate * change["factor"] for rate in scheduler.base_lrs]
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    rates = [base * shape(step) for base, shape in pairs]
    scheduler._last_lr = rates
    groups = scheduler.optimizer.param_groups
    for group, rate, base in zip(groups, rates, scheduler.base_lrs, strict=True):
        group["lr"], group["initial_lr"] = rate, base
