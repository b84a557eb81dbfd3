"""The size of a low-rank adapter."""

from finetune_api.spec import FineTuneJobSpec, Lora
from finetune_api.status import ModelFacts
from finetune_operator.planning.memory.candidate import Candidate


def lora_of(spec: FineTuneJobSpec) -> Lora:
    """Return the adapter's options."""
    return spec.adapter.lora or Lora()


def shapes(model: ModelFacts) -> dict[str, tuple[int, int]]:
    """Return the inputs and outputs of each linear layer of a decoder layer, by its name."""
    hidden, inner = model.hidden_size, model.intermediate_size
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    out = {"o_proj": (query, hidden), "down_proj": (inner, hidden)}
    if model.model_type == "phi3":
        return {"qkv_proj": (hidden, query + 2 * key), "gate_up_proj": (hidden, 2 * inner)} | out
    keys = {"k_proj": (hidden, key), "v_proj": (hidden, key)}
    gates = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    return {"q_proj": (hidden, query)} | keys | gates | out


def adapted(lora: Lora, model: ModelFacts) -> dict[str, tuple[int, int]]:
    """Return the layers that get an adapter: all, when a name is not known here."""
    every = shapes(model)
    names = {target.rsplit(".", 1)[-1] for target in lora.target_modules}
    known = names <= set(every)
    return {name: shape for name, shape in every.items() if not known or name in names}


def adapter_weights(lora: Lora, model: ModelFacts) -> int:
    """Return the weights of an adapter: rank x (inputs + outputs) of each layer.

    With DoRA one more for each output (arXiv 2402.09353).
    """
    pairs = adapted(lora, model).values()
    each = sum(lora.rank * (inputs + outputs) for inputs, outputs in pairs)
    magnitudes = sum(outputs for _, outputs in pairs) if lora.dora else 0
    return model.layers * (each + magnitudes)


def adapter_copies(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    """Return the bytes of autocast's bf16 copies of a float32 adapter."""
    if spec.adapter.type != "lora" or candidate.precision == "float32":
        return 0
    return 2 * adapter_weights(lora_of(spec), model)
