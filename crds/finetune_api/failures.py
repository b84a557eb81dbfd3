"""The closed taxonomy of failures: one reason, one exit code, one retry class, one piece of advice.

Exit codes follow sysexits(3) where it has a fitting one. The operator decides from these, never
from log text.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class RetryClass(StrEnum):
    """What the operator does with a failed attempt."""

    USER = "User"
    """Trying again cannot help: the job fails at once."""
    TRANSIENT = "Transient"
    """The next attempt may succeed: counts against runPolicy.backoffLimit."""
    ADAPT = "Adapt"
    """The next attempt needs a smaller plan: counts against runPolicy.backoffLimit."""
    PREEMPTED = "Preempted"
    """Not the job's fault: the next attempt starts at once and does not count."""
    ROLLBACK = "Rollback"
    """The next attempt starts from an earlier checkpoint: counts against stability.maxRollbacks."""


class Reason(StrEnum):
    """Why an attempt, or the job, ended; also the reason in conditions and events."""

    CONFIG_INVALID = "ConfigInvalid"
    DATA_INVALID = "DataInvalid"
    MODEL_NOT_FOUND = "ModelNotFound"
    DATASET_NOT_FOUND = "DatasetNotFound"
    SOURCE_UNAUTHORIZED = "SourceUnauthorized"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    OUTPUT_CONFLICT = "OutputConflict"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a password
    PLAN_INFEASIBLE = "PlanInfeasible"
    DEVICE_UNAVAILABLE = "DeviceUnavailable"
    STORAGE_FULL = "StorageFull"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    TRAINING_UNSTABLE = "TrainingUnstable"
    ROLLED_BACK = "RolledBack"
    INTERNAL_ERROR = "InternalError"
    KILLED = "Killed"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    POD_DELETED = "PodDeleted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"


@dataclass(frozen=True)
class Failure:
    """How one reason is reported and treated."""

    retry: RetryClass
    exit_code: int | None
    """None for what only the operator can see, such as a deleted pod."""
    advice: str


_U, _T, _A, _P = RetryClass.USER, RetryClass.TRANSIENT, RetryClass.ADAPT, RetryClass.PREEMPTED

FAILURES: Final[dict[Reason, Failure]] = {
    Reason.CONFIG_INVALID: Failure(
        _U, 64, "Correct the field that the message names and apply the job again."
    ),
    Reason.DATA_INVALID: Failure(
        _U, 65, "Correct the data, or choose the method that fits its columns."
    ),
    Reason.MODEL_NOT_FOUND: Failure(
        _U, 66, "Check model.source: the organisation, the name, the revision, the path."
    ),
    Reason.DATASET_NOT_FOUND: Failure(_U, 67, "Check dataset.source and dataset.split."),
    Reason.SOURCE_UNAVAILABLE: Failure(
        _T, 69, "Check the network, the proxy and the address of the source."
    ),
    Reason.INTERNAL_ERROR: Failure(
        _T, 70, "Read the trainer's log: kubectl logs on the pod of this attempt."
    ),
    Reason.MODEL_UNSUPPORTED: Failure(
        _U, 72, "Choose a causal language model that Transformers can load."
    ),
    Reason.OUTPUT_CONFLICT: Failure(
        _U, 73, "Choose another output.path, or delete what is there and make the job anew."
    ),
    Reason.STORAGE_FULL: Failure(_T, 74, "Free or add space on the claim that the message names."),
    Reason.PREEMPTED: Failure(_P, 75, "Training continues from the last checkpoint."),
    Reason.SOURCE_UNAUTHORIZED: Failure(
        _U, 77, "Name a Secret with a valid token in the source's secret field."
    ),
    Reason.DEVICE_UNAVAILABLE: Failure(
        _T,
        78,
        "The pod has GPUs by its plan but CUDA sees none: check the driver and the device plugin.",
    ),
    Reason.GPU_OUT_OF_MEMORY: Failure(
        _A, 80, "Lower training.microBatchSize or maxLength, or allow more GPUs."
    ),
    Reason.TRAINING_UNSTABLE: Failure(
        _U, 81, "Lower training.learningRate, and look at status.stability for the rule that fired."
    ),
    Reason.ROLLED_BACK: Failure(
        RetryClass.ROLLBACK,
        82,
        "Training goes on from the last good checkpoint, past the bad data and with a lower"
        " learning rate.",
    ),
    Reason.HOST_OUT_OF_MEMORY: Failure(_A, None, "Make a new job with more resources.memory."),
    Reason.CLAIM_NOT_FOUND: Failure(
        _U,
        None,
        "Correct the name, or create the PersistentVolumeClaim, delete the job and apply it again.",
    ),
    Reason.SECRET_NOT_FOUND: Failure(
        _U,
        None,
        "Correct the name, or create the Secret, delete the job and apply it again.",
    ),
    Reason.PLAN_INFEASIBLE: Failure(
        _U, None, "Allow more or larger GPUs in resources, or use qlora."
    ),
    Reason.KILLED: Failure(
        _T,
        None,
        "The process was killed from outside; training continues from the last checkpoint.",
    ),
    Reason.NODE_LOST: Failure(
        _P, None, "The node went away; training continues from the last checkpoint."
    ),
    Reason.POD_DELETED: Failure(
        _P, None, "The pod was deleted; training continues from the last checkpoint."
    ),
    Reason.DEADLINE_EXCEEDED: Failure(
        _U, None, "Make a new job with a longer runPolicy.activeDeadlineSeconds."
    ),
}


def reason_of_exit_code(code: int) -> Reason:
    """Return the reason that an exit code stands for; unknown codes are internal errors."""
    for reason, failure in FAILURES.items():
        if failure.exit_code == code:
            return reason
    # 128 + SIGKILL; 128 + SIGTERM before the handler was installed.
    return {137: Reason.KILLED, 143: Reason.PREEMPTED}.get(code, Reason.INTERNAL_ERROR)
