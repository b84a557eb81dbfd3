"""The size of a low-rank adapter."""

from typing import Final

from finetune_api.experts import routed_weights
from finetune_api.spec import FineTuneJobSpec, Lora
from finetune_api.status import ModelFacts
from finetune_operator.planning.memory.candidate import Candidate

_FEED_FORWARD: Final = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def lora_of(spec: FineTuneJobSpec) -> Lora:
    """Return the adapter's options."""
    return spec.adapter.lora or Lora()


def kinds(model: ModelFacts) -> dict[bool, int]:
    """Return how many layers have experts (True), and how many a single feed-forward block."""
    sparse = model.experts.layers if model.experts else 0
    return {kind: n for kind, n in ((True, sparse), (False, model.layers - sparse)) if n}


def shapes(model: ModelFacts, *, sparse: bool) -> dict[str, tuple[int, int]]:
    """Return the inputs and outputs of each linear layer of a decoder layer, by its name.

    Router and experts are none: Transformers has each of them as one parameter.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = {"o_proj": (query, hidden)}
    if model.model_type == "phi3":
        attention["qkv_proj"] = (hidden, query + 2 * key)
        return attention | {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
    attention |= {"q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key)}
    if sparse and model.experts:
        inner = model.experts.shared_size
        if not inner:
            return attention
        attention["shared_expert_gate"] = (hidden, 1)
    gates = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    return attention | gates | {"down_proj": (inner, hidden)}


def adapted(lora: Lora, model: ModelFacts, *, sparse: bool) -> dict[str, tuple[int, int]]:
    """Return the layers that get an adapter: all, when a name is not known here.

    PEFT takes the names of feed-forward layers for those of experts, but for Qwen2-MoE.
    """
    every = shapes(model, sparse=sparse)
    names = _names(lora)
    if model.experts and model.model_type != "qwen2_moe":
        every = {name: shape for name, shape in every.items() if name not in _FEED_FORWARD}
        names -= _FEED_FORWARD
    known = names <= {name for kind in kinds(model) for name in shapes(model, sparse=kind)}
    return {name: shape for name, shape in every.items() if not known or name in names}


def trains_experts(spec: FineTuneJobSpec, model: ModelFacts) -> bool:
    """Tell whether the experts are trained, or get an adapter, as they do when their layers are
    named.
    """
    return spec.adapter.type == "full" or adapts_experts(spec, model)


def adapts_experts(spec: FineTuneJobSpec, model: ModelFacts) -> bool:
    """Tell whether the experts get an adapter."""
    if model.experts is None or model.model_type == "qwen2_moe" or spec.adapter.type == "full":
        return False
    return bool(_names(lora_of(spec)) & _FEED_FORWARD)


def _names(lora: Lora) -> set[str]:
    return {target.rsplit(".", 1)[-1] for target in lora.target_modules}


def adapter_weights(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """Return the weights of an adapter: rank x (inputs + outputs) of each layer.

    With DoRA one more for each output (arXiv 2402.09353).
    """
    lora, total = lora_of(spec), 0
    for sparse, layers in kinds(model).items():
        pairs = adapted(lora, model, sparse=sparse).values()
        each = sum(lora.rank * (inputs + outputs) for inputs, outputs in pairs)
        magnitudes = sum(outputs for _, outputs in pairs) if lora.dora else 0
        total += layers * (each + magnitudes)
    if model.experts and adapts_experts(spec, model):
        # The two layers that are one parameter have twice the rank, each its own half.
        hidden, inner = model.hidden_size, model.experts.size
        each = lora.rank * (2 * (hidden + 2 * inner) + inner + hidden)
        total += model.experts.layers * model.experts.count * each
    return total


def adapter_copies(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    """Return the bytes of autocast's bf16 copies of a float32 adapter."""
    if spec.adapter.type != "lora" or candidate.precision == "float32":
        return 0
    return 2 * adapter_weights(spec, model)


def adapted_experts(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    """Return the bytes of a layer's experts with their adapter added, which is a copy that the
    backward pass needs; 0 where experts get no adapter.
    """
    if model.experts is None or not adapts_experts(spec, model):
        return 0
    return candidate.width * routed_weights(model) // model.experts.layers
