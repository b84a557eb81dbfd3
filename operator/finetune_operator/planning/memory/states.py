"""What is held from step to step: weights, adapter, optimizer states, reference model."""

import math
from dataclasses import dataclass, replace
from typing import Final

from finetune_api.experts import routed_weights
from finetune_api.spec import FSDP, FineTuneJobSpec, Grpo, Method, Quantization
from finetune_api.status import ModelFacts
from finetune_operator.planning.memory.adapters import adapter_weights, kinds, shapes
from finetune_operator.planning.memory.candidate import Candidate, accumulates

_CONSTANTS: Final = {True: 1 / 64 + 4 / (64 * 256), False: 4 / 64}
"""Bytes of quantisation constants for each NF4 weight (blocks of 64, constants in float32, or with
double quantisation in 8 bits with blocks of 256; arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class States:
    """Bytes on one GPU."""

    weights: float
    quantization: float
    adapter: float
    optimizer: float
    reference: float
    gradients: float
    """Of all that is trained, once the backward pass is through."""
    kept_gradients: float
    """Of that, what is there throughout the step."""


def embeddings(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """Return the weights of the embedding and of the output head; a reward model has no head."""
    both = not model.tied_embeddings and spec.method is not Method.REWARD
    return model.vocabulary * model.hidden_size * (2 if both else 1)


def weights(spec: FineTuneJobSpec, model: ModelFacts) -> int:
    """Return the number of weights of what is trained on: a reward model loses its output head."""
    loses_head = spec.method is Method.REWARD and not model.tied_embeddings
    return model.parameters - (model.vocabulary * model.hidden_size if loses_head else 0)


def states(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> States:
    """Return what one GPU holds from step to step."""
    if spec.adapter.type == "full":
        return _spread(spec, model, candidate, _full(spec, model, candidate))
    return _spread(spec, model, candidate, _with_adapter(spec, model, candidate))


def _full(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> States:
    """Weights, gradients and both AdamW states in the number format of the model.

    FSDP2 trains copies in float32 (accelerate, fsdp2_prepare_model). DeepSpeed has beside the bf16
    weights float32 copies, two states and gradients in both formats: its estimate_zero2 counts 18
    bytes a weight, estimate_zero3 18 with the weights.
    """
    width = 4 if candidate.strategy in FSDP else candidate.width
    count = float(weights(spec, model))
    zero = candidate.strategy in {"zero2", "zero3"}
    gradients = {"zero2": 6.0, "zero3": 4.0}.get(candidate.strategy, width) * count
    return States(
        weights=width * count,
        quantization=0.0,
        adapter=0.0,
        optimizer=(12.0 if zero else 2 * width) * count,
        reference=candidate.width * count if _has_reference(spec) else 0.0,
        gradients=gradients,
        kept_gradients=gradients,
    )


def _with_adapter(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> States:
    """Frozen weights, and an adapter in float32; TRL keeps that of a quantised base in bf16."""
    count = adapter_weights(spec, model)
    quantised = spec.adapter.type == "qlora"
    bf16 = quantised or candidate.strategy == "zero3"
    width = 2 if bf16 and candidate.precision != "float32" else 4
    zero = candidate.strategy in {"zero2", "zero3"}
    gradients = {"zero2": 6.0, "zero3": 4.0}.get(candidate.strategy, float(width)) * count
    base, constants = float(candidate.width * weights(spec, model)), 0.0
    if quantised:
        base, constants = _quantised(spec, model, candidate)
    return States(
        weights=base,
        quantization=constants,
        adapter=float(width * count),
        optimizer=(12.0 if zero else 2.0 * width) * count,
        reference=0.0,
        gradients=gradients,
        kept_gradients=gradients,
    )


def _quantised(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate
) -> tuple[float, float]:
    """Return the bytes of the quantised base, and of what quantisation adds.

    bitsandbytes quantises linear layers only, not experts, and dequantises one of them at a time. 8
    bits have one float32 constant for each output.
    """
    outside = embeddings(spec, model)
    whole = outside + _outside_of_linear(model)
    inside = weights(spec, model) - whole
    quantization = spec.adapter.quantization or Quantization()
    layers = (shapes(model, sparse=sparse).values() for sparse in kinds(model))
    largest = candidate.width * max(math.prod(shape) for kind in layers for shape in kind)
    if quantization.bits == 8:
        constants = 4 * inside / model.hidden_size
        return float(candidate.width * whole + inside), constants + largest
    constants = inside * _CONSTANTS[quantization.double_quant]
    return candidate.width * whole + 0.5 * inside, constants + largest


def _outside_of_linear(model: ModelFacts) -> int:
    """Return the weights of routers and experts."""
    routers = model.experts.layers * model.experts.count * model.hidden_size if model.experts else 0
    return routed_weights(model) + routers


def _has_reference(spec: FineTuneJobSpec) -> bool:
    """Tell whether a frozen copy is needed when all weights are trained.

    With an adapter the reference is the model without it.
    """
    if spec.method in {Method.DPO, Method.KTO, Method.EBFT}:
        return True
    return spec.method is Method.GRPO and (spec.grpo or Grpo()).beta > 0


def _spread(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate, whole: States
) -> States:
    """Return one GPU's share of the states."""
    count = candidate.shards
    if candidate.is_sharded:
        return _sharded(spec, model, candidate, whole)
    if candidate.strategy == "zero2":
        gradients = whole.gradients / count
        return replace(
            whole,
            optimizer=whole.optimizer / count,
            gradients=gradients,
            kept_gradients=gradients,
        )
    # Gradients lie in DDP's buckets, which are never freed.
    stays = candidate.strategy == "ddp" or accumulates(spec, candidate)
    return replace(whole, kept_gradients=whole.gradients if stays else 0.0)


def _sharded(
    spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate, whole: States
) -> States:
    """Whole on every GPU: the layer at work, the one fetched ahead, what is outside of the layers,
    and the gradients of one layer, with their copy on the way to their shards. With hsdp what was
    summed within the node, in the model's number format, stays until all nodes' sums are there.
    """
    count, width = candidate.shards, candidate.width
    outside = embeddings(spec, model)
    layer = width * _largest_layer(spec, model)
    trains_all = spec.adapter.type == "full"
    passing = layer if trains_all else whole.gradients / model.layers
    within_node = whole.gradients * width / 4 if candidate.strategy == "hsdp" else 0.0
    gradients = (whole.gradients + within_node) / count + 2 * passing
    return States(
        weights=whole.weights / count + 2 * layer + width * outside,
        quantization=whole.quantization,
        adapter=whole.adapter / count,
        optimizer=whole.optimizer / count,
        reference=whole.reference / count + (2 * layer if whole.reference else 0.0),
        gradients=gradients,
        kept_gradients=gradients,
    )


def _largest_layer(spec: FineTuneJobSpec, model: ModelFacts) -> float:
    """Return the weights of a decoder layer; of the larger kind where some have experts."""
    inside, feed_forward = weights(spec, model) - embeddings(spec, model), {}
    for sparse in kinds(model):
        experts = model.experts if sparse else None
        width = model.intermediate_size
        if experts is not None:
            width = experts.count * experts.size + experts.shared_size
        feed_forward[sparse] = 3 * model.hidden_size * width
    around = inside - sum(count * feed_forward[sparse] for sparse, count in kinds(model).items())
    return around / model.layers + max(feed_forward.values())
