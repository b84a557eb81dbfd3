"""How much memory one GPU needs, in closed form.

The activation table counts the bytes that autograd saves per token and decoder layer (H hidden,
K key/value width, M intermediate, r LoRA rank), as traced on Llama-type models with SDPA attention.
"""

from dataclasses import dataclass
from typing import Final, Literal

from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import Memory, ModelFacts
from finetune_operator.planning.quantity import GIB

Strategy = Literal["single", "ddp", "fsdp", "zero2", "zero3"]
Checkpointing = Literal["none", "selective", "full"]
Precision = Literal["bf16", "float32", "float8"]

_NF4_BYTES: Final = {True: 0.51587, False: 0.5625}
"""Bytes per weight of NF4 with blocks of 64, by double quantisation."""

_PAIRED: Final = {Method.DPO, Method.ORPO, Method.REWARD}
"""Methods that run the chosen and the rejected sequence of each row."""

_REFERENCED: Final = {Method.DPO, Method.KTO}
"""Methods that hold a second, frozen copy of the model when all weights are trained."""


@dataclass(frozen=True)
class Candidate:
    """One way to run the job, whose memory is estimated."""

    gpus: int
    strategy: Strategy
    micro_batch_size: int
    max_length: int
    checkpointing: Checkpointing
    precision: Precision


def estimate(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> Memory:
    """Return the memory of one GPU in GiB; of the process, when the candidate has no GPU."""
    weights, gradients, optimizer = _spread(spec, model, candidate)
    activations = _activations(spec, model, candidate)
    subtotal = weights + gradients + optimizer + activations
    overhead = (1.0 if candidate.gpus else 1.5) * GIB + 0.05 * subtotal
    parts = [part / GIB for part in (weights, gradients, optimizer, activations, overhead)]
    return Memory(
        weights=round(parts[0], 2),
        gradients=round(parts[1], 2),
        optimizer=round(parts[2], 2),
        activations=round(parts[3], 2),
        overhead=round(parts[4], 2),
        total=round(sum(parts), 2),
    )


def _spread(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate
) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer states that are on one GPU."""
    base = _base_weights(spec, model, candidate)
    trained, gradients, optimizer = _trained_state(spec, model, candidate)
    weights, shards = base + trained, max(1, candidate.gpus)
    if candidate.strategy in {"zero2", "zero3"}:
        # DeepSpeed's own count: beside the bf16 weights 18 bytes a trained weight in ZeRO-2, and 18
        # with them in ZeRO-3: float32 master weights, two AdamW states, gradients in both formats.
        count = _trained_count(spec, model)
        gradients, optimizer = (6.0 if candidate.strategy == "zero2" else 4.0) * count, 12.0 * count
    if candidate.strategy in {"fsdp", "zero3"}:
        # Whole on every GPU: the layer at work, the one fetched ahead, and what lies outside of the
        # layers; and of the gradients those of one layer, on their way to their shards.
        outside = _embeddings(model) * (4 if candidate.precision == "float32" else 2)
        weights = weights / shards + 2 * weights / model.layers + outside
        return weights, gradients / shards + gradients / model.layers, optimizer / shards
    if candidate.strategy == "zero2":
        return weights, gradients / shards, optimizer / shards
    return weights, gradients, optimizer


def _base_weights(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> float:
    width = 4 if candidate.precision == "float32" else 2
    copies = 2 if spec.adapter.type == "full" and spec.method in _REFERENCED else 1
    if spec.adapter.type == "full":
        # The trained copy is counted with its gradients and optimizer states.
        return float(width * model.parameters * (copies - 1))
    if spec.adapter.type == "lora":
        return float(width * model.parameters)
    embeddings = _embeddings(model)
    quantization = spec.adapter.quantization
    bits = quantization.bits if quantization else 4
    double = quantization.double_quant if quantization else True
    per_weight = _NF4_BYTES[double] if bits == 4 else 1.0
    return embeddings * width + (model.parameters - embeddings) * per_weight


def _embeddings(model: ModelFacts) -> int:
    """Return the weights of the embedding and of the output head."""
    return model.vocabulary * model.hidden_size * (1 if model.tied_embeddings else 2)


def _trained_count(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    if spec.adapter.type == "full":
        return model.parameters
    return _adapter_parameters(_rank(spec), model)


def _trained_state(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate
) -> tuple[float, float, float]:
    """Return the bytes of trained weights, gradients and AdamW states."""
    if spec.adapter.type == "full":
        width = 4 if candidate.precision == "float32" else 2
        return (
            float(width * model.parameters),
            float(width * model.parameters),
            float(2 * width * model.parameters),
        )
    adapter = _trained_count(spec, model)
    return 4.0 * adapter, 4.0 * adapter, 8.0 * adapter


def _rank(spec: FineTuneJobSpec) -> int:
    if spec.adapter.type == "full":
        return 0
    return spec.adapter.lora.rank if spec.adapter.lora else 16


def _adapter_parameters(rank: int, model: ModelFacts) -> int:
    """Return the weights of an adapter on all linear layers: an upper bound for fewer targets."""
    hidden, inner = model.hidden_size, model.intermediate_size
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = 2 * (hidden + query) + 2 * (hidden + key)
    return rank * model.layers * (attention + 3 * (hidden + inner))


def _activations(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> float:
    sequences = 2 if spec.method in _PAIRED else 1
    tokens = candidate.micro_batch_size * candidate.max_length * sequences
    layer = _saved_per_token(spec, model, candidate)
    width = 4 if candidate.precision == "float32" else 2
    kept = {
        "none": 0,
        "selective": 2 * width * model.hidden_size,
        "full": width * model.hidden_size,
    }[candidate.checkpointing]
    saved = model.layers * (kept or layer) * tokens
    if candidate.checkpointing != "none":
        saved += (layer + 3 * width * model.intermediate_size) * tokens
    return float(saved + _loss_head(model, candidate, tokens))


def _saved_per_token(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    hidden, inner = model.hidden_size, model.intermediate_size
    key = model.kv_heads * model.head_dim
    if spec.adapter.type == "full":
        saved = 20 * hidden + 4 * key + 8 * inner + 4 * model.heads + 8
    else:
        saved = 16 * hidden + 4 * key + 8 * inner + 14 * _rank(spec)
    return saved * 2 if candidate.precision == "float32" else saved


def _loss_head(model: ModelFacts, candidate: Candidate, tokens: int) -> int:
    if candidate.gpus == 0:
        # Logits, their softmax and their gradient in float32.
        return 12 * tokens * model.vocabulary
    # The fused head: tiles of 4096 x 32768 and a float32 gradient of the hidden states.
    return 4 * tokens * model.hidden_size + 4096 * 32768 * 2
