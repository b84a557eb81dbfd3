"""What this version of the trainer cannot run, refused in one place and before a GPU is taken."""

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure


def check_supported(spec: FineTuneJobSpec, plan: Plan | None) -> None:
    """Raise JobFailure when the job asks for what the trainer cannot run."""
    if spec.training.precision == "float8":
        raise _failure(
            "training.precision is float8, which this trainer version cannot run: use auto or bf16."
        )
    if spec.stability.policy != "Warn":
        raise _failure(
            f"stability.policy is {spec.stability.policy}, which this trainer version cannot do: "
            "use Warn."
        )
    if isinstance(spec.resources.nodes, int) and spec.resources.nodes > 1:
        raise _failure(
            f"resources.nodes is {spec.resources.nodes}, but this trainer version runs on one "
            "node: set resources.nodes to 1, or leave it out."
        )
    strategy = plan.strategy if plan else spec.resources.strategy
    if strategy in {"fsdp", "zero2", "zero3"}:
        raise _failure(
            f"the strategy is {strategy}, which this trainer version cannot run: set "
            "resources.strategy to ddp, or leave it out."
        )


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.CONFIG_INVALID, message)
