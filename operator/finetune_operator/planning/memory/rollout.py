"""What the trainer holds while its model writes completions by its own generate()."""

from finetune_api.spec import ONLINE, FineTuneJobSpec, Generation
from finetune_api.status import ModelFacts, Preparation
from finetune_operator.planning.memory.adapters import adapter_copies
from finetune_operator.planning.memory.candidate import Candidate


def generation(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> float:
    """Return the bytes of keys, values and logits at most; 0 when the method writes nothing.

    All sequences that one GPU needs for an optimizer step are written at once. Their prompts run
    through the model together; a step forward then makes one layer's keys and values anew.
    """
    if spec.method not in ONLINE:
        return 0.0
    model = preparation.model
    sequences = spec.training.batch_size / max(1, candidate.gpus)
    completion = (spec.generation or Generation()).max_completion_length
    prompt = max(1, candidate.max_length - completion)
    token = kv_bytes(model, candidate.width)
    prefill = sequences * prompt * (token + _running(spec, model, candidate))
    decoding = sequences * candidate.max_length * token * (1 + 1 / model.layers)
    # Logits in float32, scaled, and their softmax.
    logits = 12.0 * sequences * model.vocabulary
    return max(prefill, decoding) + logits + adapter_copies(spec, model, candidate)


def _running(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    """Return the bytes per token that a layer holds while it runs: 8M+4H, and 10M+4H with an
    adapter, whose output is scaled and added.
    """
    tensors = 4 if spec.adapter.type == "full" else 5
    return candidate.width * (tensors * model.intermediate_size + 2 * model.hidden_size)


def kv_bytes(model: ModelFacts, width: int = 2) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return 2 * width * model.layers * model.kv_heads * model.head_dim
