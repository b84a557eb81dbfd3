"""What operator and trainer tell each other: job.json, the termination message, /progress."""

import bisect
import json
from collections.abc import Iterator
from typing import Any, Self

from pydantic import Field

from finetune_api import names
from finetune_api.base import ApiModel, Measurements
from finetune_api.failures import FAILURES, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import (
    Artifact,
    ModelStart,
    Plan,
    Preparation,
    Progress,
    Rollback,
    Stability,
)

_READABLE_LENGTH = 256
"""A message cut to fewer characters says too little: numbers are dropped before."""


class TrainerConfig(ApiModel):
    """job.json: everything that one pod of one attempt has to know."""

    name: str
    """The job's name."""
    namespace: str
    """The job's namespace."""
    uid: str
    """The job's UID; marks the output, so that no job overwrites another's."""
    attempt: int = Field(ge=1)
    """Number of the attempt."""
    spec: FineTuneJobSpec
    """The job's spec."""
    plan: Plan | None = None
    """The plan; unset for preparation."""
    preparation: Preparation | None = None
    """Facts from preparation; unset for preparation itself."""
    starts: dict[str, ModelStart] = Field(default={})
    """What each source of the form job://NAME stands for, by that source."""
    rollbacks: list[Rollback] = Field(default=[])
    """Returns to an earlier checkpoint so far; the last may not have been carried out yet."""


class Result(ApiModel):
    """How a container ended: its termination message."""

    reason: str
    """Succeeded, or one of finetune_api.failures.Reason."""
    message: str = ""
    """One sentence: what was found, what was expected, what to do."""
    step: int | None = None
    """Last optimizer step."""
    checkpoint_step: int | None = None
    """With a failure: step of the newest complete checkpoint."""
    metrics: Measurements = Field(default={})
    """Last metrics by their TRL names; eval_loss_before is the held-out loss before training."""
    measured: Measurements = Field(default={})
    """Measured peaks and speed, for the next plan: gpu_memory_gib, host_memory_gib,
    tokens_per_second."""
    preparation: Preparation | None = None
    """Facts from preparation."""
    artifact: Artifact | None = None
    """The model that was made."""
    stability: Stability | None = None
    """What the stability guard says at the end."""
    rollback: Rollback | None = None
    """With reason RolledBack: what the next attempt has to do."""

    @classmethod
    def succeeded(cls, **fields: Any) -> Self:
        """Return the result of a container that did what it should."""
        return cls(reason="Succeeded", **fields)

    @classmethod
    def failed(cls, reason: Reason, message: str, **fields: Any) -> Self:
        """Return the result of a failure; message is one sentence."""
        return cls(reason=reason.value, message=message, **fields)

    def to_message(self) -> str:
        """Return JSON of at most 4096 bytes, the kubelet's limit.

        The message is cut first; if that is not enough, metrics of training go, then
        stability findings, the mildest first and of those the oldest, then metrics of
        evaluations, then the measurements.
        """
        for smaller in self._smaller():
            text = smaller._fitting()  # noqa: SLF001 - a copy of itself
            if text is not None:
                return text
        raise ValueError("preparation and artifact leave no room in the kubelet's 4096 bytes")

    def _smaller(self) -> Iterator[Self]:
        yield self
        held_out = {name: value for name, value in self.metrics.items() if "eval_" in name}
        kept = self.model_copy(update={"metrics": held_out})
        yield kept
        for stability in _shorter(self.stability):
            kept = kept.model_copy(update={"stability": stability})
            yield kept
        for name in ("metrics", "measured"):
            kept = kept.model_copy(update={name: {}})
            yield kept

    def _fitting(self) -> str | None:
        """Return JSON with as much of the message as fits; None if that says too little."""
        text = self._dump(self.message)
        if len(text.encode()) <= names.TERMINATION_MESSAGE_BYTES:
            return text
        lengths = range(len(self.message))
        limit = names.TERMINATION_MESSAGE_BYTES
        length = bisect.bisect_right(lengths, limit, key=lambda n: len(self._cut(n).encode())) - 1
        return self._cut(length) if length >= _READABLE_LENGTH else None

    def _cut(self, length: int) -> str:
        return self._dump(self.message[:length] + "...")

    def _dump(self, message: str) -> str:
        fields = self.to_json() | {"message": message}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _shorter(stability: Stability | None) -> Iterator[Stability]:
    """Yield it with ever fewer findings; the verdict stays."""
    if stability is None:
        return
    findings = list(stability.findings)
    severities = ("Info", "Warning", "Critical")
    for finding in sorted(findings, key=lambda one: severities.index(one.severity)):
        findings.remove(finding)
        yield stability.model_copy(update={"findings": list(findings)})


def unsupported_rollout(spec: FineTuneJobSpec) -> str | None:
    """Return why the trainer cannot have completions written as is asked for; None when it can."""
    if spec.rollout is None or spec.rollout.mode not in {"server", "colocate"}:
        return None
    return (
        f"rollout.mode is {spec.rollout.mode}, which this trainer version cannot do: use local, or"
        " leave it out."
    )


class ProgressReport(ApiModel):
    """GET :9400/progress: where training is and what the stability guard says."""

    progress: Progress
    """Where training is."""
    stability: Stability | None = None
    """What the stability guard says."""


class JobFailure(Exception):  # noqa: N818 - a Failure of the taxonomy that is raised
    """A failure of the closed taxonomy; the process ends with its exit code and message."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def exit_code(self) -> int:
        """Return the sysexits-like code of the reason; 70 for reasons only the operator can see."""
        return FAILURES[self.reason].exit_code or 70
