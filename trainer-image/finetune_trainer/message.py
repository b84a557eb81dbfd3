"""The termination message: the file that the kubelet hands to the operator when the pod ends."""

import fcntl
from pathlib import Path

from finetune_api.trainer import Result


def leave(path: Path, result: Result, *, only_first: bool) -> None:
    """Write a result as the pod's message; with only_first, unless there is one already.

    The processes of a pod share the file and may end at the same moment, so it is locked. It cannot
    be replaced by a complete one: the kubelet reads the very file that it has mounted.
    """
    with path.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if only_first and file.read(1):
            return
        file.seek(0)
        file.truncate()
        file.write(result.to_message())
