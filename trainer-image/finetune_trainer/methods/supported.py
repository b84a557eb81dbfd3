"""What this version of the trainer cannot run, refused in one place and before a GPU is taken."""

from finetune_api.failures import Reason
from finetune_api.spec import SHARDED, FineTuneJobSpec, Method
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure, unsupported_rollout


def check_supported(spec: FineTuneJobSpec, plan: Plan | None) -> None:
    """Raise JobFailure when the job asks for what the trainer cannot run."""
    unsupported = unsupported_rollout(spec)
    if unsupported is not None:
        raise _failure(unsupported)
    strategy = plan.strategy if plan else spec.resources.strategy
    _check_sharding(spec, strategy)


def _check_sharding(spec: FineTuneJobSpec, strategy: str) -> None:
    quantised = spec.adapter.type == "qlora"
    if quantised and strategy in SHARDED and strategy != "zero2":
        raise _failure(
            f"the strategy is {strategy}, which cannot spread the quantised weights of qlora: set "
            "resources.strategy to ddp or zero2, or use adapter.type lora."
        )
    if spec.training.precision == "float8" and strategy in SHARDED:
        raise _failure(
            f"the strategy is {strategy}, which cannot spread weights in float8: set "
            "resources.strategy to ddp, or training.precision to bf16."
        )
    if spec.stability.policy == "Rollback" and strategy in SHARDED:
        raise _failure(
            "stability.policy is Rollback, which cannot change the sharded checkpoints of "
            f"strategy {strategy}: use Halt or Warn, or set resources.strategy to ddp."
        )
    if spec.method is Method.EBFT and strategy in SHARDED:
        raise _failure(
            f"the strategy is {strategy}, but method ebft needs the whole model in each process: "
            "set resources.strategy to ddp, or leave it out."
        )


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.CONFIG_INVALID, message)
