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
    meeting = _meeting(plan)
    processes = [_start(plan, rank, arguments, meeting) for rank in range(plan.gpus_per_node)]

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


def _meeting(plan: Plan) -> dict[str, str]:
    """Return where the processes meet: as the operator says, or, of one pod, at a free port.

    Jobs that run on one host, outside a cluster, must not meet each other.
    """
    if plan.nodes == 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    return {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(names.RENDEZVOUS_PORT)),
    }


def _start(
    plan: Plan, local_rank: int, arguments: list[str], meeting: dict[str, str]
) -> "subprocess.Popen[bytes]":
    node = int(os.environ.get("GROUP_RANK", "0"))
    ranks = {
        "LOCAL_RANK": str(local_rank),
        "RANK": str(node * plan.gpus_per_node + local_rank),
        "WORLD_SIZE": str(plan.nodes * plan.gpus_per_node),
        "LOCAL_WORLD_SIZE": str(plan.gpus_per_node),
        **meeting,
    }
    command = [sys.executable, "-m", "finetune_trainer.cli", *arguments]
    return subprocess.Popen(command, env=os.environ | ranks)


def _end(processes: "list[subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
