"""What a model is made of: from its config.json, from the catalogue, or from its size alone.

The catalogue is a file of the package: config.json of popular models, as far as it matters here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from finetune_api.experts import COUNTS, experts_of_config
from finetune_api.sources import JOB_SCHEME
from finetune_api.status import Experts, ModelFacts

Config = Mapping[str, Any]
"""A config.json, or as much of one as the number of weights depends on."""


class ArchitectureError(Exception):
    """No facts can be told; the message says what was found and what to give instead."""


@dataclass(frozen=True)
class Family:
    """How the decoder layers of one model_type differ from Llama's, and what Transformers assumes
    where config.json is silent.
    """

    architecture: str
    norms: int = 2
    """Norms of the width of the residual stream in each layer."""
    query_key_norm: bool = False
    """Whether queries and keys are normed over the width of one head."""
    bias: Literal["never", "configured", "inputs"] = "never"
    """Biases of the attention: none, on its four layers by attention_bias, or on its inputs."""
    head_dim: int | None = None
    """Width of one head; None is hidden_size / heads."""
    tied: bool = False
    sparse: bool = False
    """Whether a router chooses among several feed-forward blocks."""


FAMILIES: Final[dict[str, Family]] = {
    "llama": Family("LlamaForCausalLM", bias="configured"),
    "mistral": Family("MistralForCausalLM"),
    "mixtral": Family("MixtralForCausalLM", sparse=True),
    "qwen2": Family("Qwen2ForCausalLM", bias="inputs"),
    "qwen2_moe": Family("Qwen2MoeForCausalLM", bias="inputs", sparse=True),
    "qwen3": Family("Qwen3ForCausalLM", query_key_norm=True, bias="configured", head_dim=128),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", query_key_norm=True, bias="configured", sparse=True),
    "gemma": Family("GemmaForCausalLM", bias="configured", head_dim=256, tied=True),
    "gemma2": Family("Gemma2ForCausalLM", norms=4, bias="configured", head_dim=256, tied=True),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        norms=4,
        query_key_norm=True,
        bias="configured",
        head_dim=256,
        tied=True,
    ),
    "phi3": Family("Phi3ForCausalLM"),
    "smollm3": Family("SmolLM3ForCausalLM", bias="configured", tied=True),
}
"""Model types whose weights are counted exactly."""

_NEEDED: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
_UNITS: Final = {"M": 10**6, "B": 10**9, "T": 10**12}

# Words in a name that tell how a model was trained further, not how it is built.
_TRAINED: Final = {"base", "chat", "hf", "instruct", "it", "meta", "pt"}
_DATE: Final = re.compile(r"2[0-9](0[1-9]|1[0-2])")


def facts_of_config(config: Config) -> ModelFacts:
    """Return the facts of a model from its config.json; ArchitectureError when it is not known."""
    family = _family(config)
    absent = [name for name in _NEEDED if not isinstance(config.get(name), int)]
    if absent:
        raise ArchitectureError(
            f"config.json has no number {absent[0]}: give the config.json of a causal language"
            " model, or its size with --parameters."
        )
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    experts = _experts(config, family)
    parameters = _parameters(config, family, experts)
    return ModelFacts(
        architecture=(config.get("architectures") or [family.architecture])[0],
        model_type=config["model_type"],
        parameters=parameters,
        hidden_size=hidden,
        intermediate_size=config["intermediate_size"],
        experts=experts,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=_head_dim(config, family),
        vocabulary=config["vocab_size"],
        max_positions=config.get("max_position_embeddings") or 1 << 20,
        tied_embeddings=_tied(config, family),
        weights_bytes=parameters * _BYTES.get(dtype, 2),
        dtype=dtype,
    )


def facts_of_name(name: str) -> tuple[str, ModelFacts] | None:
    """Return the catalogue's model that a source such as hf://Qwen/Qwen3-8B names, with its facts;
    None when it is not there.

    Owner, case, dates and words such as Instruct do not matter: they do not change the shape.
    """
    # The name of a job says nothing of the model that it makes.
    entry = None if name.startswith(JOB_SCHEME) else _by_plain_name().get(_plain(name))
    return None if entry is None else (entry, facts_of_config(_catalogue()[entry]))


def facts_of_size(size: str) -> tuple[str, ModelFacts]:
    """Return the catalogue's dense model of the nearest size, with its facts scaled to a size such
    as 8B; ArchitectureError when it is no size.

    What the size does not say is that model's; layers are added or taken away to fill the size.
    """
    wanted = parse_size(size)
    dense = {
        name: facts_of_config(config)
        for name, config in _catalogue().items()
        if not FAMILIES[config["model_type"]].sparse
    }
    name = min(dense, key=lambda name: abs(dense[name].parameters - wanted))
    nearest = dense[name]
    outside = nearest.vocabulary * nearest.hidden_size * (1 if nearest.tied_embeddings else 2)
    share = max(0, wanted - outside) / (nearest.parameters - outside)
    return name, nearest.model_copy(
        update={
            "parameters": wanted,
            "layers": max(1, round(nearest.layers * share)),
            "weights_bytes": wanted * _BYTES[nearest.dtype],
        }
    )


def parse_size(size: str) -> int:
    """Return the weights of a size such as 8B or 135M; ArchitectureError when it is none."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([MBT])", size.strip().upper())
    weights = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not weights:
        raise ArchitectureError(f"{size!r} is not a number of weights: expected 8B or 135M.")
    return weights


def _family(config: Config) -> Family:
    model_type = config.get("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    raise ArchitectureError(
        f"config.json has model_type {model_type}, whose weights this version cannot count: give"
        f" the size with --parameters; it can count {', '.join(sorted(FAMILIES))}."
    )


def _head_dim(config: Config, family: Family) -> int:
    given = config.get("head_dim") or family.head_dim
    return int(given or config["hidden_size"] // config["num_attention_heads"])


def _tied(config: Config, family: Family) -> bool:
    return bool(config.get("tie_word_embeddings", family.tied))


def _experts(config: Config, family: Family) -> Experts | None:
    if not family.sparse:
        return None
    if not any(config.get(name) for name in COUNTS):
        raise ArchitectureError("config.json has no number num_experts: give --parameters.")
    return experts_of_config(config)


def _parameters(config: Config, family: Family, experts: Experts | None) -> int:
    """Return the number of weights: embedding, decoder layers, last norm and output head."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    embedding = config["vocab_size"] * hidden
    sparse = 0 if experts is None else experts.layers
    feed_forward = (layers - sparse) * _feed_forward(config)
    if experts is not None:
        feed_forward += sparse * _mixture(hidden, experts)
    around = layers * (_attention(config, family) + family.norms * hidden)
    return int(embedding * (1 if _tied(config, family) else 2) + around + feed_forward + hidden)


def _attention(config: Config, family: Family) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = _head_dim(config, family)
    query, key = heads * head, (config.get("num_key_value_heads") or heads) * head
    weights = 2 * hidden * query + 2 * hidden * key
    if family.query_key_norm:
        weights += 2 * head
    biases = query + 2 * key
    if family.bias == "inputs":
        return int(weights + biases)
    if family.bias == "configured" and config.get("attention_bias"):
        return int(weights + biases + hidden)
    return int(weights)


def _feed_forward(config: Config) -> int:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    biases = 2 * inner + hidden if config.get("mlp_bias") else 0
    return int(3 * hidden * inner + biases)


def _mixture(hidden: int, experts: Experts) -> int:
    """Return the weights of router and experts, and of the expert that sees every token, if any."""
    gate = hidden if experts.shared_size else 0
    routed = experts.count * (3 * hidden * experts.size + hidden)
    return routed + 3 * hidden * experts.shared_size + gate


@cache
def _catalogue() -> dict[str, Config]:
    text = Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = json.loads(text)
    return {name: {"dtype": "bfloat16"} | config for name, config in entries.items()}


@cache
def _by_plain_name() -> dict[str, str]:
    return {_plain(name): name for name in _catalogue()}


def _plain(source: str) -> str:
    name = source.partition("://")[2] or source
    words = name.partition("@")[0].rstrip("/").rpartition("/")[2].lower().split("-")
    return "-".join(w for w in words if w not in _TRAINED and not _DATE.fullmatch(w))
