"""Model FLOPs utilisation: what training the model takes, against what the GPUs could do."""

from finetune_api import flops
from finetune_api.gpus import teraflops
from finetune_api.spec import Method
from finetune_api.trainer import TrainerConfig


def flops_per_token(config: TrainerConfig) -> float | None:
    """Return the FLOPs of training on one token of a mean row; None before preparation.

    The utilisation of dpo, kto, grpo and ebft is that of the training alone, without reference
    models and sampling.
    """
    if config.preparation is None:
        return None
    model = config.preparation.model
    multiplied = flops.multiplied_weights(model, has_head=config.spec.method is not Method.REWARD)
    length = config.preparation.dataset.mean_tokens
    return flops.flops_per_token(model, multiplied, length, full=config.spec.adapter.type == "full")


def flops_budget(config: TrainerConfig, device: str) -> float | None:
    """Return the tokens a second that the plan's GPUs would train at their peak; None if unknown.

    Speed divided by it is the utilisation.
    """
    peak, per_token = teraflops(device), flops_per_token(config)
    if peak is None or per_token is None or config.plan is None:
        return None
    return 1e12 * peak * max(1, config.plan.gpus) / per_token
