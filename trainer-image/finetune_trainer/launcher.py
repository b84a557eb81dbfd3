"""Starts one process per GPU of this pod and ends as they end.

torchrun would do, but an attempt is all its processes or none, so nothing of its elasticity is of
use, and it turns every exit code into 1, where the operator decides from exit codes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from finetune_api import names
from finetune_api.failures import FAILURES, Reason
from finetune_api.status import Plan
from finetune_trainer import environment

_GRACE_SECONDS = 10
"""How long the others get to end by themselves after one failed."""


def needs_launch(plan: Plan | None) -> bool:
    """Tell whether this process should start those that train: one per GPU of several in all."""
    return plan is not None and plan.gpus > 1 and not environment.is_launched()


def launch(plan: Plan, arguments: list[str]) -> int:
    """Run the same command once per GPU and return the first exit code that is not 0.

    Once one has failed the others are told to end, and what they end with says nothing. One that
    stopped for SIGTERM has not failed: the others stop at the same step.
    """
    processes = _start_all(plan, arguments)

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    code = 0
    while code == 0 and any(process.poll() is None for process in processes):
        time.sleep(0.2)
        code = next((process.returncode for process in processes if process.poll()), 0)
    if code not in {0, FAILURES[Reason.PREEMPTED].exit_code}:
        forward(signal.SIGTERM, None)
    _end(processes)
    return 128 - code if code < 0 else code


def _start_all(plan: Plan, arguments: list[str]) -> "list[subprocess.Popen[bytes]]":
    """Start the processes of this pod, which meet where the operator says.

    Those of a single pod meet at a socket that is theirs from the start: jobs that run on one host,
    outside a cluster, would meet each other at a port that is the same for all.
    """
    local_ranks = range(plan.gpus_per_node)
    if plan.nodes > 1:
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        port = os.environ.get("MASTER_PORT", str(names.RENDEZVOUS_PORT))
        meeting = {"MASTER_ADDR": address, "MASTER_PORT": port}
        return [_start(plan, rank, arguments, meeting) for rank in local_ranks]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, port = listener.getsockname()
        meeting = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        listening = meeting | {environment.LISTENER: str(listener.fileno())}
        first = _start(plan, 0, arguments, listening, listener.fileno())
        return [first, *(_start(plan, rank, arguments, meeting) for rank in local_ranks[1:])]


def _start(
    plan: Plan, local_rank: int, arguments: list[str], meeting: dict[str, str], *inherited: int
) -> "subprocess.Popen[bytes]":
    node = int(os.environ.get("GROUP_RANK", "0"))
    ranks = {
        "LOCAL_RANK": str(local_rank),
        "RANK": str(node * plan.gpus_per_node + local_rank),
        "WORLD_SIZE": str(plan.nodes * plan.gpus_per_node),
        "LOCAL_WORLD_SIZE": str(plan.gpus_per_node),
    }
    command = [sys.executable, "-m", "finetune_trainer.cli", *arguments]
    return subprocess.Popen(command, env=os.environ | ranks | meeting, pass_fds=inherited)


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
