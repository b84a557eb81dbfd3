"""The stability guard: watches what is logged, and acts on Critical findings as the job says."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

import logging
import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.failures import Reason
from finetune_api.stability import SKIPPED, rules_of
from finetune_api.status import Finding, Rollback
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer.checkpoints import step_of
from finetune_trainer.logs import fields
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.stability.evaluator import Detection, Evaluator
from finetune_trainer.stability.failure import RolledBack

log = logging.getLogger(__name__)

SKIPPED_IN_A_ROW = 3
"""Steps whose gradient is no number that policy Warn skips in a row; one more fails the job."""


class StabilityGuard(TrainerCallback):
    """Holds one run against the stability table. The first process decides for all."""

    def __init__(self, config: TrainerConfig, board: ProgressBoard, trainer: Any) -> None:
        self.config = config
        self.board = board
        self.trainer = trainer
        self.policy = config.spec.stability
        self._rules = rules_of(config.spec.method)
        self.evaluator = Evaluator(config.spec.method)
        self._observed = 0
        """Newest step that was logged."""
        self._skipped = 0
        """Steps since the last log that were skipped."""
        self._in_a_row = 0
        self._findings: list[Finding] = []
        self.board.found(self._findings, self._rules)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Recall what was logged up to the checkpoint, and make sure that there is one."""
        self.recall(state.global_step)
        first = self.trainer.checkpoints.root / "checkpoint-0"
        if self.policy.policy == "Rollback" and state.global_step == 0 and not first.exists():
            self.trainer.save_checkpoint()

    def recall(self, step: int) -> None:
        """See again what earlier processes logged up to a step, and what they found."""
        self.evaluator = Evaluator(self.config.spec.method)
        self._findings = [_finding_of(rollback) for rollback in self.config.rollbacks]
        self._observed = step
        self._report(self.evaluator.replay(self.trainer.metrics.entries, step))
        self.board.found(self._findings, self._rules)

    def check_gradient(self, norm: float, step: int, *, is_applied: bool) -> bool:
        """Tell whether an optimizer step must be skipped; its number counts from 1.

        Every rank passes the same norm, for gradients are reduced before. `is_applied` says that
        the weights have taken the gradient already. Raises JobFailure when training must end.
        """
        if math.isfinite(norm):
            self._in_a_row = 0
            return False
        self._skipped += 1
        self._in_a_row += 1
        can_skip = not is_applied and self._in_a_row <= SKIPPED_IN_A_ROW
        if self.policy.policy == "Warn" and can_skip:
            log.warning("step is skipped: the gradient is no number", extra=fields(step=step))
            return True
        rule = next(rule for rule in self._rules if rule.metric == SKIPPED)
        detection = Detection(rule, SKIPPED, self._skipped, step, since=step)
        self._report([detection])
        self._act(detection)
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
        """Return the newest step after which nothing Critical is suspected; None if none counts."""
        if self.policy.policy == "Warn":
            return None
        suspect = self.evaluator.suspect_since()
        return self._observed if suspect is None else suspect - 1

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
        self._observed = state.global_step
        self._report(detections)
        critical = [found for found in detections if found.rule.severity == "Critical"]
        if self.policy.policy == "Warn":
            return
        worst = self._as_main(min(critical, key=lambda found: found.since, default=None))
        if worst is not None:
            self._act(worst)

    def _report(self, detections: list[Detection]) -> None:
        for detection in detections:
            finding = detection.finding()
            self._findings.append(finding)
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
        if detections:
            self.board.found(self._findings, self._rules)

    def _act(self, detection: Detection) -> None:
        """End training as the policy says. Returns only for policy Warn."""
        if self.policy.policy == "Warn":
            return
        checkpoint = self._as_main(self._good_checkpoint(detection.since))
        finding = detection.finding()
        kept = "no good checkpoint" if checkpoint is None else f"checkpoint {checkpoint} as good"
        if self.policy.policy == "Halt" or checkpoint is None:
            raise JobFailure(
                Reason.TRAINING_UNSTABLE,
                f"{finding.rule}: {finding.message} Training was halted with {kept}: "
                f"{finding.advice}.",
            )
        done = len(self.config.rollbacks)
        if done >= self.policy.max_rollbacks:
            raise JobFailure(
                Reason.TRAINING_UNSTABLE,
                f"{finding.rule}: {finding.message} stability.maxRollbacks allows {done} "
                f"rollbacks, and all were used: {finding.advice}.",
            )
        rollback = self._rollback(detection, checkpoint)
        raise RolledBack(
            f"{finding.rule}: {finding.message} Training goes back to checkpoint {checkpoint} and "
            f"on after step {rollback.step}, with the learning rate times "
            f"{rollback.learning_rate_factor:g}.",
            rollback,
        )

    def _rollback(self, detection: Detection, checkpoint: int) -> Rollback:
        earlier = self.config.rollbacks
        factor = earlier[-1].learning_rate_factor if earlier else 1.0
        return Rollback(
            rule=detection.rule.name,
            step=min(self._boundary(detection.step), self.trainer.state.max_steps),
            to_step=checkpoint,
            learning_rate_factor=factor * self.policy.learning_rate_factor,
        )

    def _boundary(self, step: int) -> int:
        """Return the first step from this one on after which new completions are sampled.

        Where nothing is sampled that is every step; GRPO uses a batch for several.
        """
        arguments = self.trainer.args
        accumulation = arguments.gradient_accumulation_steps
        batches = getattr(arguments, "steps_per_generation", accumulation)
        stride: int = batches * getattr(arguments, "num_iterations", 1) // accumulation
        return math.ceil(step / stride) * stride

    def _good_checkpoint(self, since: int) -> int | None:
        """Return the newest complete checkpoint from before a step; the first process looks."""
        if not self.trainer.is_world_process_zero():
            return None
        found = self.trainer.checkpoints.newest_complete(before=since)
        return None if found is None else step_of(found)

    def _as_main(self, value: Any) -> Any:
        """Return what the first process passes: all must take the same turn."""
        values = [value]
        if self.trainer.args.world_size > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]


def _finding_of(rollback: Rollback) -> Finding:
    return Finding(
        rule=rollback.rule,
        severity="Warning",
        step=rollback.step,
        message=f"Training went back from step {rollback.step} to checkpoint {rollback.to_step}; "
        f"since then the learning rate is multiplied by {rollback.learning_rate_factor:g}.",
        advice="none is needed if the findings end here; else lower training.learningRate",
    )
