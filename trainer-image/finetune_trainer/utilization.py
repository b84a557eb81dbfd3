"""Model FLOPs utilisation: what training the model takes, against what the GPUs could do."""

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
    """Return the FLOPs that training on one token takes; None before preparation.

    For N weights in matrix products (an embedding only looks rows up) and causal attention:

        full:         6 N + 6 layers heads head_dim tokens
        lora, qlora:  4 N + 6 layers heads head_dim tokens

    6 per weight: 2 forward, 2 backward for activations, 2 backward for weights (arXiv 2001.08361,
    section 2.1). Frozen weights have no gradient: 4, whether they are quantised or not. Attention
    has no weights: 4 forward for each pair of tokens and each dimension of each head, twice as many
    backward (arXiv 2204.02311, appendix B), and a token sees half of its row in the mean. `tokens`
    is the data's mean row.

    Left out: recomputed activations, for they are the plan's and not the model's; the adapter's own
    weights, passes of a reference model, and sampling, so that the utilisation of dpo, kto, grpo
    and ebft is that of the training alone. Of a mixture of experts all experts are counted.
    """
    if config.preparation is None:
        return None
    model = config.preparation.model
    is_full = config.spec.adapter.type == "full"
    unused = (not model.tied_embeddings) + (config.spec.method is Method.REWARD)
    multiplied = model.parameters - unused * model.vocabulary * model.hidden_size
    dimensions = model.layers * model.heads * model.head_dim
    attended = dimensions * config.preparation.dataset.mean_tokens
    return (6 if is_full else 4) * multiplied + 6 * attended


def flops_budget(config: TrainerConfig, device: str) -> float | None:
    """Return the tokens a second that the plan's GPUs would train at their peak; None if unknown.

    Speed divided by it is the utilisation.
    """
    peak, per_token = peak_flops(device), flops_per_token(config)
    if peak is None or per_token is None or config.plan is None:
        return None
    return peak * max(1, config.plan.gpus) / per_token
