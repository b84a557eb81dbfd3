"""Mixtures of experts: what config.json says of them, and their weights."""

from collections.abc import Mapping
from typing import Any, Final

from finetune_api.status import Experts, ModelFacts

COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
"""What families call the number of experts."""

_PER_TOKEN: Final = {"mixtral": 2, "qwen2_moe": 4, "qwen3_moe": 8}
"""What Transformers assumes where config.json is silent."""


_OTHER_PATTERNS: Final = ("interleave_moe_layer_step", "expert_layer_period", "moe_layer_freq")
"""By which some families say which layers have experts; it is not read here."""


def experts_of_config(config: Mapping[str, Any]) -> Experts | None:
    """Return the experts that a config.json tells of; None when it tells of none, or not how many
    of them a token passes through, or in which layers they are.
    """
    if any(config.get(name) not in (None, 1) for name in _OTHER_PATTERNS):
        return None
    count = _number(config, COUNTS)
    layers = sum(_is_sparse(config, n) for n in range(_number(config, ("num_hidden_layers",))))
    per_token = _number(config, ("num_experts_per_tok",)) or _PER_TOKEN.get(config["model_type"], 0)
    size = _number(config, ("moe_intermediate_size", "intermediate_size"))
    if not (count and layers and per_token and size):
        return None
    shared = _number(config, ("shared_expert_intermediate_size",))
    return Experts(
        count=count,
        per_token=per_token,
        size=size,
        shared_size=shared or size * _number(config, ("n_shared_experts",)),
        layers=layers,
    )


def routed_weights(model: ModelFacts) -> int:
    """Return the weights of all experts that a router chooses among."""
    experts = model.experts
    if experts is None:
        return 0
    return experts.layers * experts.count * 3 * model.hidden_size * experts.size


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    step = config.get("decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers") or ()
    first = config.get("first_k_dense_replace") or 0
    return (layer + 1) % step == 0 and layer not in dense and layer >= first


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Return the first number that is given; families name the same thing differently."""
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int)), 0)
