"""What autograd saves of one decoder layer, in bytes per token.

H is the width of the residual stream, Q and K those of queries and of keys, M that of the
feed-forward block or of all experts that a token passes through, r the rank, k and E the experts of
a token and of a layer. Each form was read off the tensors that PyTorch saves (Transformers
5.19, PEFT 0.21, SDPA attention in bf16); test_memory_traced.py reads them again.
"""

from typing import Final

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ModelFacts
from finetune_operator.planning.memory.adapters import adapted, lora_of, trains_experts
from finetune_operator.planning.memory.candidate import Batch, Candidate
from finetune_operator.planning.memory.experts import routed

_NORMED: Final = {"qwen3", "qwen3_moe", "gemma3_text"}
"""Families that norm queries and keys."""

_WIDE_NORM: Final = {"gemma", "gemma2", "gemma3_text"}
"""Families whose norms scale in float32."""

_FOUR_NORMS: Final = {"gemma2", "gemma3_text"}


def saved(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate, batch: Batch, *, sparse: bool
) -> float:
    """Return the bytes per token that one layer saves for its backward pass."""
    sizes = _Sizes(model, sparse=sparse)
    if candidate.precision == "float32":
        bytes_saved = _float32(spec, model, sizes)
    elif candidate.compile:
        bytes_saved = _compiled(sizes) + _compiled_family(model, sizes)
    else:
        bytes_saved = _eager(spec, sizes) + _family(spec, model, sizes)
    bytes_saved += 4 * model.heads + 8
    if sparse:
        bytes_saved += routed(spec, model, candidate)
    if spec.adapter.type != "full":
        bytes_saved += _adapter(spec, model, candidate, sparse=sparse)
    return float(bytes_saved + _mask(sizes, candidate, batch))


def passed_width(model: ModelFacts, *, sparse: bool) -> int:
    """Return the feed-forward width that a token passes through in a layer."""
    if not sparse or model.experts is None:
        return model.intermediate_size
    return model.experts.per_token * model.experts.size + model.experts.shared_size


class _Sizes:
    """The widths of one layer."""

    def __init__(self, model: ModelFacts, *, sparse: bool) -> None:
        self.hidden = model.hidden_size
        self.query = model.heads * model.head_dim
        self.key = model.kv_heads * model.head_dim
        self.inner = passed_width(model, sparse=sparse)


def _eager(spec: FineTuneJobSpec, sizes: _Sizes) -> int:
    """12H+4Q+4K+8M; where weights are trained, 4H more for the two norms' own gradients."""
    norms = 16 if spec.adapter.type == "full" else 12
    return norms * sizes.hidden + 4 * sizes.query + 4 * sizes.key + 8 * sizes.inner


def _compiled(sizes: _Sizes) -> int:
    """8H+4Q+4K+6M: the compiler computes norms, rotations and the gate's activation again."""
    return 8 * sizes.hidden + 4 * sizes.query + 4 * sizes.key + 6 * sizes.inner


def _float32(spec: FineTuneJobSpec, model: ModelFacts, sizes: _Sizes) -> int:
    """16H+8Q+8K+16M, or 24H where weights are trained: there is nothing to convert. Norms of
    queries and keys 4Q+4K, or 8Q+8K.
    """
    full = spec.adapter.type == "full"
    more = 0
    if model.model_type in _NORMED:
        more = (8 if full else 4) * (sizes.query + sizes.key) + 4 * (model.heads + model.kv_heads)
    norms = 24 if full else 16
    return norms * sizes.hidden + 8 * sizes.query + 8 * sizes.key + 16 * sizes.inner + more


def _family(spec: FineTuneJobSpec, model: ModelFacts, sizes: _Sizes) -> int:
    """Return what a family's layers save beyond a Llama's."""
    full, family, more = spec.adapter.type == "full", model.model_type, 0
    wide = family in _WIDE_NORM
    if full and wide:
        more += 4 * sizes.hidden
    if family in _FOUR_NORMS:
        more += (16 if full else 8) * sizes.hidden
    if family in _NORMED:
        each = (8 if wide else 6) if full else 4
        more += each * (sizes.query + sizes.key) + 4 * (model.heads + model.kv_heads)
    if family == "phi3":
        # Queries, keys and values are views of one tensor, which is kept whole.
        more += 4 * sizes.query + 2 * sizes.key
    return more


def _compiled_family(model: ModelFacts, sizes: _Sizes) -> int:
    """Return the same for compiled layers, whether the weights are trained or not."""
    family, more = model.model_type, 0
    if family in _FOUR_NORMS:
        more += 2 * sizes.hidden + 8
    if family in _NORMED:
        more += 2 * (sizes.query + sizes.key) + 4 * (model.heads + model.kv_heads)
    if family == "phi3":
        more += 2 * (sizes.query + sizes.key)
    return more


def _adapter(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate, *, sparse: bool
) -> int:
    """Return what adapters save: the output of A; dropout copies each input, and a mask; DoRA keeps
    two versions of each output.

    A layer without an adapter does not save its input, which is not needed for anything else where
    it is a norm's output or the gated product.
    """
    lora = lora_of(spec)
    found = adapted(lora, model, sparse=sparse)
    pairs = found.values()
    unsaved = _unsaved(set(found), model, sparse=sparse)
    if sparse and model.experts and trains_experts(spec, model):
        unsaved -= model.experts.per_token * model.experts.size
    more = candidate.width * (lora.rank * len(pairs) - unsaved)
    if lora.dropout:
        more += (candidate.width + 1) * sum(inputs for inputs, _ in pairs)
    if lora.dora:
        more += 2 * candidate.width * sum(outputs for _, outputs in pairs)
    return more


def _unsaved(names: set[str], model: ModelFacts, *, sparse: bool) -> int:
    """Return the width of the inputs that no adapter saves."""
    inner = passed_width(model, sparse=sparse)
    if "down_proj" in names:
        # Of a mixture that is the expert of all tokens.
        inner -= model.experts.shared_size if sparse and model.experts else inner
    unsaved = inner
    for inputs in (
        {"q_proj", "k_proj", "v_proj", "qkv_proj"},
        {"gate_proj", "up_proj", "gate_up_proj", "shared_expert_gate"},
    ):
        unsaved += 0 if inputs & names else model.hidden_size
    return unsaved


def _mask(sizes: _Sizes, candidate: Candidate, batch: Batch) -> int:
    """4(Q-K) plus 2 for each token of a row: with a mask SDPA is given keys and values repeated for
    each query head, and turns the mask into numbers to add.
    """
    repeated = 2 * (sizes.query - sizes.key) if batch.repeats else 0
    return candidate.width * (repeated + batch.mask)
