"""Model FLOPs utilisation: what training the model takes, against what the GPUs could do."""

from finetune_api import flops
from finetune_api.spec import Method
from finetune_api.trainer import TrainerConfig

_PEAKS = {
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A6000": 154.8e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
}
"""Dense bfloat16 FLOP/s by the GPU's product name, from NVIDIA's data sheets (without sparsity)."""


def peak_flops(device: str) -> float | None:
    """Return a GPU's dense bfloat16 FLOP/s by its name as CUDA gives it; None when unknown."""
    words = f" {device} "
    known = [name for name in _PEAKS if f" {name} " in words.replace("-", " ")]
    return _PEAKS[max(known, key=len)] if known else None


def flops_per_token(config: TrainerConfig) -> float | None:
    """Return the FLOPs of training on one token of a mean row; None before preparation.

    The utilisation of dpo, kto, grpo and ebft is that of the training alone, without reference
    models and sampling. Of a mixture of experts all experts are counted.
    """
    if config.preparation is None:
        return None
    model = config.preparation.model
    # An embedding only looks rows up, and a reward model has no output head.
    unused = (not model.tied_embeddings) + (config.spec.method is Method.REWARD)
    multiplied = model.parameters - unused * model.vocabulary * model.hidden_size
    length = config.preparation.dataset.mean_tokens
    return flops.flops_per_token(model, multiplied, length, full=config.spec.adapter.type == "full")


def flops_budget(config: TrainerConfig, device: str) -> float | None:
    """Return the tokens a second that the plan's GPUs would train at their peak; None if unknown.

    Speed divided by it is the utilisation.
    """
    peak, per_token = peak_flops(device), flops_per_token(config)
    if peak is None or per_token is None or config.plan is None:
        return None
    return peak * max(1, config.plan.gpus) / per_token
