"""On what to train: the GPUs of the plan, or the CPU."""

import os
from dataclasses import dataclass

import torch

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.spec import SHARDED, Training
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure

_FLOAT8_SINCE = (8, 9)
"""Compute capability of the first GPUs that multiply in float8 (Ada)."""


@dataclass(frozen=True)
class Device:
    """Where and in what number format the model is trained."""

    cuda: bool
    dtype: torch.dtype

    @property
    def bf16(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.dtype is torch.bfloat16

    @property
    def name(self) -> str:
        """The GPU's model, or cpu."""
        return torch.cuda.get_device_name() if self.cuda else "cpu"


def choose_device(plan: Plan, training: Training) -> Device:
    """Return the plan's device. Raises JobFailure when CUDA does not see the plan's GPUs.

    With FINETUNE_DEVICE=cpu a plan with GPUs runs on the CPU, in float32 unless the spec says
    otherwise: bfloat16 is slow there.
    """
    forced_cpu = os.environ.get(names.DEVICE_ENV) == "cpu"
    cuda = plan.gpus > 0 and not forced_cpu
    if cuda:
        _check_gpus(plan)
        _check_float8(plan)
    elif plan.strategy in SHARDED:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"the strategy is {plan.strategy}, which needs GPUs, but this trainer runs on the CPU: "
            "set resources.strategy to ddp, or leave it out.",
        )
    precision = plan.precision
    if not cuda and training.precision == "auto":
        precision = "float32"
    return Device(cuda, torch.float32 if precision == "float32" else torch.bfloat16)


def _check_float8(plan: Plan) -> None:
    if plan.precision == "float8" and torch.cuda.get_device_capability() < _FLOAT8_SINCE:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"training.precision is float8, which {torch.cuda.get_device_name()} does not have: "
            "use bf16, or a GPU of the Ada, Hopper or Blackwell generation.",
        )


def _check_gpus(plan: Plan) -> None:
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < plan.gpus_per_node:
        raise JobFailure(
            Reason.DEVICE_UNAVAILABLE,
            f"the plan has {plan.gpus_per_node} GPUs in this pod, but CUDA sees {seen}: check the "
            f"driver and the device plugin; {names.DEVICE_ENV}=cpu is for clusters without GPUs.",
        )
