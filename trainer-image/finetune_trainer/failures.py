"""Names what went wrong: any exception becomes one failure of the closed taxonomy."""

import errno
import sys
from collections.abc import Iterator

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure

_FULL = {errno.ENOSPC, errno.EDQUOT}


def as_failure(error: BaseException) -> JobFailure:
    """Return the failure that an exception stands for; what is unknown is an InternalError."""
    if isinstance(error, JobFailure):
        return error
    chain = list(_chain(error))
    if any(_is_full_disk(cause) for cause in chain):
        return JobFailure(
            Reason.STORAGE_FULL,
            f"there is no space left on a volume ({_one_line(error)}): raise "
            "resources.workspace.size, or free space in the output claim.",
        )
    if any(_is_gpu_out_of_memory(cause) for cause in chain):
        return JobFailure(
            Reason.GPU_OUT_OF_MEMORY,
            f"the GPU's memory is too small for the plan: {_one_line(error)}",
        )
    return JobFailure(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {_one_line(error)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_full_disk(error: BaseException) -> bool:
    # safetensors and torch.save wrap the system's error into text.
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on" in str(error)


def _is_gpu_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
