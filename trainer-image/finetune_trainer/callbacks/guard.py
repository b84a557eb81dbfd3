"""The stability guard: watches what is logged, and acts on Critical findings as the job says."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

import logging
import math
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.failures import Reason
from finetune_api.stability import SKIPPED, rules_of
from finetune_api.status import Finding, Rollback
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer import distributed
from finetune_trainer.checkpoints import Checkpoints, step_of
from finetune_trainer.logs import fields
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.stability.evaluator import Detection, Evaluator
from finetune_trainer.stability.failure import RolledBack

log = logging.getLogger(__name__)

SKIPPED_IN_A_ROW = 3
"""Steps whose gradient is no number that policy Warn skips in a row; one more fails the job."""


class StabilityGuard(TrainerCallback):
    """Holds one run against the stability table. The first process decides for all."""

    def __init__(
        self,
        config: TrainerConfig,
        board: ProgressBoard,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
    ) -> None:
        self.config = config
        self.board = board
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.policy = config.spec.stability
        self._rules = rules_of(config.spec.method)
        self.evaluator = Evaluator(config.spec.method)
        self._skipped = 0
        """Steps since the last log that were skipped."""
        self._in_a_row = 0
        self._findings: list[Finding] = []

    @property
    def may_go_back(self) -> bool:
        """Whether a finding may send training back, if need be to where it began."""
        return self.policy.policy == "Rollback"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Recall what was logged up to the checkpoint."""
        self.recall(state.global_step)

    def recall(self, step: int) -> None:
        """See again what earlier processes logged up to a step, and what they found."""
        self.evaluator = Evaluator(self.config.spec.method)
        self._findings = [_finding_of(rollback) for rollback in self.config.rollbacks]
        self._note(self.evaluator.replay(self.metrics.entries, step))

    def counts(self) -> dict[str, int]:
        """Return what is counted and not logged yet; a checkpoint keeps it."""
        return {"skipped": self._skipped, "in_a_row": self._in_a_row}

    def restore(self, counts: dict[str, int]) -> None:
        """Count on from a checkpoint."""
        self._skipped, self._in_a_row = counts["skipped"], counts["in_a_row"]

    def check_gradient(
        self, norm: float, args: TrainingArguments, state: TrainerState, *, is_applied: bool
    ) -> bool:
        """Tell whether the optimizer must skip a step, or has skipped it.

        Every rank passes the same norm, for gradients are reduced before. `is_applied` says that
        the weights have taken the gradient already. Raises JobFailure when training must end.
        """
        if math.isfinite(norm):
            self._in_a_row = 0
            return False
        step = state.global_step + 1
        self._skipped += 1
        self._in_a_row += 1
        can_skip = not is_applied and self._in_a_row <= SKIPPED_IN_A_ROW
        if self.policy.policy == "Warn" and can_skip:
            if state.is_world_process_zero:
                log.warning("step is skipped: the gradient is no number", extra=fields(step=step))
            return True
        rule = next(rule for rule in self._rules if rule.metric == SKIPPED)
        detection = Detection(rule, SKIPPED, self._skipped, step, since=step)
        self._report([detection], state)
        if self.policy.policy != "Warn":
            self._act(detection, args, state)
        raise JobFailure(
            Reason.TRAINING_UNSTABLE,
            f"the gradient was no finite number in {self._in_a_row} steps in a row, up to step "
            f"{step}: {rule.advice}.",
        )

    def take_skipped(self) -> dict[str, float]:
        """Return the metric of skipped steps, if any were, and count anew."""
        skipped, self._skipped = self._skipped, 0
        return {SKIPPED: float(skipped)} if skipped else {}

    def last_good_step(self) -> int | None:
        """Return the newest step that no finding can yet look back beyond; None if none counts."""
        return None if self.policy.policy == "Warn" else self.evaluator.last_good_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hold one step's or one evaluation's metrics against the table."""
        detections = self.evaluator.observe(state.global_step, logs or {})
        self._report(detections, state)
        if self.policy.policy == "Warn":
            return
        critical = [found for found in detections if found.rule.severity == "Critical"]
        worst = min(critical, key=lambda found: found.since, default=None)
        must_act = worst is not None and state.is_world_process_zero
        # Every step asks, so that all processes take the same turn: a number is quickly passed on.
        if distributed.any_process(must_act, args.device):
            self._act(distributed.first_says(worst), args, state)

    def _report(self, detections: list[Detection], state: TrainerState) -> None:
        if not detections:
            return
        self._note(detections)
        if not state.is_world_process_zero:
            return
        for detection in detections:
            finding = detection.finding()
            log.warning(
                "stability",
                extra=fields(
                    rule=finding.rule,
                    severity=finding.severity,
                    step=finding.step,
                    detail=finding.message,
                    advice=finding.advice,
                ),
            )

    def _note(self, detections: list[Detection]) -> None:
        self._findings += [detection.finding() for detection in detections]
        self.board.found(self._findings, self._rules)

    def _act(self, detection: Detection, args: TrainingArguments, state: TrainerState) -> NoReturn:
        """End training as the policy says, which is not Warn; all processes together."""
        checkpoint = distributed.first_says(self._good_checkpoint(detection.since, state))
        finding = detection.finding()
        rollback = self._rollback(detection, checkpoint or 0, args)
        obstacle = self._obstacle(checkpoint, rollback.step, state.max_steps)
        if obstacle is not None:
            raise JobFailure(
                Reason.TRAINING_UNSTABLE,
                f"{finding.rule}: {finding.message} {obstacle}: {finding.advice}.",
            )
        raise RolledBack(
            f"{finding.rule}: {finding.message} Training goes back to checkpoint {checkpoint} and "
            f"on after step {rollback.step}, with the learning rate times "
            f"{rollback.learning_rate_factor:g}.",
            rollback,
        )

    def _obstacle(self, checkpoint: int | None, step: int, last: int) -> str | None:
        """Say why training does not go on after a step from a checkpoint; None when it can."""
        if not self.may_go_back or checkpoint is None:
            kept = (
                "no good checkpoint" if checkpoint is None else f"checkpoint {checkpoint} as good"
            )
            return f"Training was halted with {kept}"
        if step >= last:
            # The rest of the data would be skipped, and an older model handed over as trained.
            return (
                f"Training cannot go on from checkpoint {checkpoint}: no step is left of the {last}"
            )
        done = len(self.config.rollbacks)
        if done >= self.policy.max_rollbacks:
            return f"stability.maxRollbacks is {done}, and all were used"
        return None

    def _rollback(self, detection: Detection, checkpoint: int, args: TrainingArguments) -> Rollback:
        earlier = self.config.rollbacks
        factor = earlier[-1].learning_rate_factor if earlier else 1.0
        return Rollback(
            rule=detection.rule.name,
            step=_boundary(detection.step, args),
            to_step=checkpoint,
            learning_rate_factor=factor * self.policy.learning_rate_factor,
        )

    def _good_checkpoint(self, since: int, state: TrainerState) -> int | None:
        """Return the newest complete checkpoint from before a step; the first process looks."""
        if not state.is_world_process_zero:
            return None
        found = self.checkpoints.newest_complete(before=since)
        return None if found is None else step_of(found)


def _boundary(step: int, args: TrainingArguments) -> int:
    """Return the first step from this one on after which new completions are sampled.

    Where nothing is sampled that is every step; GRPO uses a batch for several.
    """
    accumulation = args.gradient_accumulation_steps
    batches = getattr(args, "steps_per_generation", accumulation)
    stride: int = batches * getattr(args, "num_iterations", 1) // accumulation
    return math.ceil(step / stride) * stride


def _finding_of(rollback: Rollback) -> Finding:
    return Finding(
        rule=rollback.rule,
        severity="Warning",
        step=rollback.step,
        message=f"Training went back from step {rollback.step} to checkpoint {rollback.to_step}; "
        f"since then the learning rate is multiplied by {rollback.learning_rate_factor:g}.",
        advice="none is needed if the findings end here; else lower training.learningRate",
    )
