"""Runs the trainer as the processes of one attempt, as the launcher would start them."""

import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune_api.spec import FSDP
from finetune_api.status import Plan
from finetune_api.trainer import TrainerConfig
from unit.trainer.builders import make_config
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption, main, start_process

LIMIT_SECONDS = 120


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start_ranks(
    site: Site, config: TrainerConfig, interruption: Interruption | None = None
) -> list[Any]:
    """Start one process per GPU of the plan; the last interrupts itself."""
    arguments = site.arguments("run", config)
    (site.root / "termination-log").write_text("")
    plan = config.plan
    assert plan is not None
    target = _sharded_on_the_cpu if plan.strategy in FSDP else main
    shared = {
        "WORLD_SIZE": str(plan.gpus),
        "LOCAL_WORLD_SIZE": str(plan.gpus_per_node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "FINETUNE_DEVICE": "cpu",
    }
    last = plan.gpus - 1
    return [
        start_process(
            target,
            arguments,
            interruption if rank == last else None,
            shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % plan.gpus_per_node)},
        )
        for rank in range(plan.gpus)
    ]


def run_ranks(
    site: Site, config: TrainerConfig, interruption: Interruption | None = None
) -> list[int]:
    """Run all processes to their ends and return their exit codes."""
    processes = start_ranks(site, config, interruption)
    for process in processes:
        process.join(LIMIT_SECONDS)
    return [process.exitcode for process in processes]


def _sharded_on_the_cpu(
    arguments: list[str], interruption: Interruption | None, environment: dict[str, str]
) -> None:
    """Run with FSDP2 on gloo: PyTorch can, but Accelerate and we ask for GPUs.

    Gradients must never wait whole for the last micro-batch of a step.
    """
    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FSDPModule

    from finetune_trainer import run
    from finetune_trainer.device import Device

    patched: Any = PartialState
    patched._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    patched.set_device = lambda state: setattr(state, "device", torch.device("cpu"))
    sharded: Any = FSDPModule
    sharded.set_requires_gradient_sync = None
    replaced: Any = run
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
    replaced.choose_device = lambda plan, _: Device(cuda=False, dtype=dtypes[plan.precision])
    main(arguments, interruption, environment)


def configure_deepspeed(plan: Plan) -> None:
    """Check that Transformers and DeepSpeed take what the plan says of ZeRO."""
    import torch
    from deepspeed.runtime.config import DeepSpeedConfig
    from trl.trainer.sft_config import SFTConfig

    from finetune_trainer import distributed
    from finetune_trainer.device import Device

    spec = make_config().spec
    arguments = SFTConfig(
        output_dir="/nowhere",
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        max_grad_norm=spec.training.max_grad_norm,
        **distributed.arguments(plan, spec, Device(cuda=False, dtype=torch.float32)),
    )
    taken: Any = arguments
    assert taken.hf_deepspeed_config.mismatches == []
    config = DeepSpeedConfig(taken.hf_deepspeed_config.config)
    assert config.zero_config.stage == int(plan.strategy[-1])
    assert config.zero_config.gather_16bit_weights_on_model_save is (plan.strategy == "zero3")


def load_beside_zero3(plan: Plan, folder: Path) -> None:
    """Load whole weights while ZeRO-3 is configured, in one process of several."""
    import torch
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    from finetune_trainer import distributed
    from finetune_trainer.device import Device
    from finetune_trainer.model import load_whole

    spec, device = make_config(plan).spec, Device(cuda=False, dtype=torch.float32)
    kept = HfDeepSpeedConfig(distributed.arguments(plan, spec, device)["deepspeed"])
    assert is_deepspeed_zero3_enabled()
    distributed.load_alone()
    weights = load_whole(folder, spec, torch.float32).parameters()
    assert all(weight.numel() for weight in weights)
    del kept


def wait_for_a_late_first(environment: dict[str, str], *, is_lost: bool) -> None:
    """Be one of two processes; the first comes later than a collective may take, or never."""
    os.environ.update(environment)
    import torch

    from finetune_trainer import distributed
    from finetune_trainer.device import Device

    patched: Any = distributed
    patched._COLLECTIVE = timedelta(seconds=2)
    patched._CAUSE_SECONDS = 0
    distributed.join(Device(cuda=False, dtype=torch.float32))
    if environment["RANK"] == "0":
        time.sleep(4)
        if is_lost:
            os._exit(3)
    try:
        distributed.wait_for_first()
    except RuntimeError as error:
        sys.exit(4 if distributed.is_lost_peer(error) else str(error))
    distributed.leave()
