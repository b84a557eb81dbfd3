"""Several processes: how they find each other, and how weights are spread over their GPUs.

FSDP2 (fsdp, hsdp) goes through Accelerate, ZeRO through DeepSpeed; both are set up by Transformers'
Trainer from the fields that `arguments` returns.
"""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import disable_fsdp_ram_efficient_loading, enable_fsdp_ram_efficient_loading
from torch.distributed.distributed_c10d import _get_default_store
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune_api.failures import Reason
from finetune_api.spec import FSDP, FineTuneJobSpec
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure
from finetune_trainer import environment
from finetune_trainer.device import Device
from finetune_trainer.logs import fields

log = logging.getLogger(__name__)

_START = timedelta(minutes=30)
"""How long the first process waits for the last: its node may still pull the image."""

_COLLECTIVE = timedelta(minutes=15)
"""How long a process waits in a collective, for others that do the same work."""

_WRITING = timedelta(hours=6)
"""How long the others wait for what the first does alone: checksums, merging, writing a model."""

_CAUSE_SECONDS = 60
"""How long a process that has lost another waits to be ended with it."""

_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection was likely closed",
    "Broken pipe",
    "NCCL",
)

_waits = count()


def has_several(plan: Plan) -> bool:
    """Tell whether several processes train."""
    return plan.gpus > 1


def join(device: Device) -> None:
    """Meet the other processes of the attempt, if there are any. Raises JobFailure."""
    if not environment.is_launched():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listener = os.environ.pop(environment.LISTENER, None)
    minutes = _START.total_seconds() / 60
    log.info(
        "waiting for the other processes",
        extra=fields(address=f"{host}:{port}", processes=world_size, at_most_minutes=minutes),
    )
    if device.cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            world_size,
            rank == 0,
            timeout=_START,
            master_listen_fd=None if listener is None else int(listener),
        )
    except torch.distributed.DistError as error:
        raise JobFailure(
            Reason.INTERNAL_ERROR,
            f"the {world_size} processes did not meet at {host}:{port}, for which they have "
            f"{minutes:.0f} minutes: {str(error).splitlines()[0]} See why the others of this "
            "attempt did not start.",
        ) from error
    torch.distributed.init_process_group(
        "nccl" if device.cuda else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=_COLLECTIVE,
    )


def leave() -> None:
    """Part from the other processes; at the interpreter's end one would abort for the other's."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_lost_peer(error: RuntimeError) -> bool:
    """Tell whether an error says that another process has ended."""
    return any(text in str(error) for text in _LOST_PEER)


@contextmanager
def after_the_cause() -> Iterator[None]:
    """Let the process that failed be the one that says why.

    Whoever loses it in a collective waits to be ended by the launcher or, from another pod, by the
    operator: its own error says nothing.
    """
    try:
        yield
    except RuntimeError as error:
        if environment.is_launched() and is_lost_peer(error):
            log.warning("another process ended", extra=fields(detail=str(error).splitlines()[0]))
            time.sleep(_CAUSE_SECONDS)
        raise


def wait_for_first() -> None:
    """Wait until the first process comes here too, longer than a collective may take.

    All must call it. Raises RuntimeError when the first process is lost.
    """
    if not torch.distributed.is_initialized():
        return
    # A copy, as waiting holds the connection.
    store = _get_default_store().clone()  # type: ignore[attr-defined]
    key = f"first-{next(_waits)}"
    if torch.distributed.get_rank() == 0:
        store.set(key, "here")
    store.wait([key], _WRITING)
    torch.distributed.barrier()


def load_alone() -> None:
    """Let this process load a model that the others do not: ZeRO-3 would wait for their parts."""
    unset_hf_deepspeed_config()


def check_processes(checkpoint: Path, processes: int) -> None:
    """Raise JobFailure when other than that many processes have written a checkpoint."""
    found = len(list(checkpoint.glob("rng_state*.pth")))
    if found != processes:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{checkpoint.name} was written by {found} processes, but {processes} would go on "
            "from it: set resources.gpu.count as it was, or make a new job.",
        )


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set in any process; all must call it."""
    if not torch.distributed.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags.item())


def first_says(value: Any) -> Any:
    """Return what the first process passes: all must take the same turn, and call this."""
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values[0]


class AlreadyTrainedError(Exception):
    """The checkpoint that was loaded is that of the last step."""


class OncePrepared(TrainerCallback):
    """Measures the model as it came, at the start of training.

    Before, an evaluation would register the model with Accelerate as it is, and train() would
    neither shard it nor average its gradients.
    """

    def __init__(self, measure: Callable[[], None]) -> None:
        self.measure = measure

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure before the first step. Raises AlreadyTrainedError: Trainer would go on."""
        if state.global_step >= state.max_steps:
            raise AlreadyTrainedError
        if state.global_step == 0:
            self.measure()


@contextmanager
def loading(plan: Plan, spec: FineTuneJobSpec, device: Device) -> Iterator[None]:
    """Within, from_pretrained reads the weights in one process per pod and spreads them at once."""
    kept = None
    if plan.strategy in FSDP:
        enable_fsdp_ram_efficient_loading()
    if plan.strategy == "zero3":
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # Transformers asks for it by a weak reference.
        kept = HfDeepSpeedConfig(_deepspeed(plan, spec, device))
    yield
    load_whole_again()
    del kept


def load_whole_again() -> None:
    """Make each process read whole weights again, as TRL takes a reference or reward model.

    Only the model that is trained gets its weights from the first process.
    """
    disable_fsdp_ram_efficient_loading()


def arguments(plan: Plan, spec: FineTuneJobSpec, device: Device) -> dict[str, Any]:
    """Return the fields of TrainingArguments that carry out the plan's strategy."""
    if plan.strategy in FSDP:
        return _fsdp(plan)
    if plan.strategy in {"zero2", "zero3"}:
        return {"deepspeed": _deepspeed(plan, spec, device)}
    return {}


def _fsdp(plan: Plan) -> dict[str, Any]:
    """Return what sets FSDP2 up; with hsdp each node has a copy of the weights for itself."""
    chosen: dict[str, Any] = {
        "fsdp": True,
        "fsdp_config": dict(_FSDP),
        # Else each GPU keeps whole gradients until the last micro-batch of a step.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }
    if plan.strategy == "hsdp":
        # Ranks are counted node by node, so the second dimension is one node.
        chosen["parallelism_config"] = ParallelismConfig(
            dp_replicate_size=plan.nodes, dp_shard_size=plan.gpus_per_node
        )
    return chosen


# Gradient checkpointing stays with the model's own layers: in FSDP2 it gathers no weight twice,
# and knows the selective kind.
_FSDP = {
    "version": 2,
    # Each decoder layer, as the model names its class.
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "reshard_after_forward": True,
    "cpu_ram_efficient_loading": True,
    # Each process writes its part of a checkpoint.
    "state_dict_type": "SHARDED_STATE_DICT",
}


def _deepspeed(plan: Plan, spec: FineTuneJobSpec, device: Device) -> dict[str, Any]:
    """Return DeepSpeed's configuration; "auto" is filled in from the model's width."""
    zero: dict[str, Any] = {
        "stage": 2 if plan.strategy == "zero2" else 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if plan.strategy == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": device.bf16},
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_clipping": spec.training.max_grad_norm,
    }


def keep_outputs(accelerator: Accelerator) -> None:
    """Leave what models return as they computed it: log-probabilities in float32.

    Accelerate has FSDP2 round it to bfloat16, but `dpo`, `kto` and `grpo` take small differences of
    it. To be called before any model is sharded, a reference model among them.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        policy = replace(plugin.mixed_precision_policy, output_dtype=None)
        plugin.mixed_precision_policy = policy


def gather_weights(trainer: Any, plan: Plan, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """Return all trained weights to the first process; all must call it.

    None when the model of each process is whole. With an adapter these are the adapter's,
    else all, in dtype: FSDP2 and ZeRO train copies in float32.
    """
    if plan.strategy in FSDP:
        return _gather_fsdp(trainer, dtype)
    if plan.strategy == "zero3":
        with_adapter = hasattr(trainer.model, "peft_config")
        state: dict[str, torch.Tensor] | None = (
            trainer.deepspeed._zero3_consolidated_16bit_state_dict(  # noqa: SLF001 - Trainer does
                exclude_frozen_parameters=with_adapter
            )
        )
        return state
    return None


def _gather_fsdp(trainer: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model, is_main = trainer.model, trainer.is_world_process_zero()
    with_adapter = hasattr(model, "peft_config")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    left_out = model.state_dict().keys() - trained if with_adapter else model.all_tied_weights_keys
    state = {}
    for name, weight in model.state_dict().items():
        if name in left_out:
            continue
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        if is_main:
            state[name] = whole.cpu() if with_adapter else whole.to("cpu", dtype)
    return state
