"""What a layer holds while tokens pass through it, of a mixture those of its experts.

H is the width of the residual stream, M that of a feed-forward block, or of all experts that a
token passes through, k and E the experts of a token and of a layer. Experts run as Transformers
runs them by default (grouped_mm); read off the tensors as in layers.py.
"""

from typing import Final

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ModelFacts
from finetune_operator.planning.memory.adapters import kinds, trains_experts
from finetune_operator.planning.memory.candidate import Candidate

_WEIGHS_WIDE: Final = {"mixtral"}
"""Families that weigh the outputs of experts in float32."""


def routed(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    """2kH+40k+6E for each expert's output, the order of its tokens and the router's choice; 2kH
    more for the experts' inputs where their weights are trained, and 2H for the output of an expert
    that every token passes through.
    """
    experts = model.experts
    if experts is None:
        return 0
    copies = 2 if trains_experts(spec, model) else 1
    outputs = candidate.width * copies * experts.per_token * model.hidden_size
    shared = candidate.width * model.hidden_size if experts.shared_size else 0
    return outputs + shared + 40 * experts.per_token + 6 * experts.count


def passing(spec: FineTuneJobSpec, model: ModelFacts, *, sparse: bool, again: bool) -> float:
    """Return the bytes per token that going back through a layer in bf16 holds beside what was
    saved: 4M+2.5H for gradients.

    Going back through experts, the gradient of each one's output (2kH) is there while the layer is
    computed again; then come the gradients of what a token's experts add up (6kH), and of what is
    within them (6kM, when their outputs have gone).
    """
    dense = 4 * model.intermediate_size + 2.5 * model.hidden_size
    experts = model.experts
    if not sparse or experts is None:
        return dense
    hidden = model.hidden_size
    outputs, inner = 2 * experts.per_token * hidden, 2 * experts.per_token * experts.size
    weighed = outputs * (2 if model.model_type in _WEIGHS_WIDE else 1)
    moments = [3 * weighed, 3 * inner - outputs, 4.0 * experts.shared_size]
    found = max(moments) + 2.5 * hidden
    if not again:
        return found
    # With experts that are trained, what goes into each layer is saved.
    inputs, product = (0, 0) if trains_experts(spec, model) else (outputs, inner)
    return max(found, weighed + inputs + max(weighed, product) + 6 * hidden)


def running(model: ModelFacts, *, adapter: bool) -> int:
    """Return the numbers per token that a layer holds while it runs and nothing is saved: 4M+2H,
    and 5M+2H with an adapter, whose output is scaled and added.

    Experts: 4M+kH, or 4kH once there are their outputs (some of them are float32 in Mixtral), the
    order of their tokens, 17k, and 4H around them, or 5H with an expert for all tokens.
    """
    return max(_running(model, adapter=adapter, sparse=sparse) for sparse in kinds(model))


def _running(model: ModelFacts, *, adapter: bool, sparse: bool) -> int:
    tensors, experts = 5 if adapter else 4, model.experts
    if not sparse or experts is None:
        return tensors * model.intermediate_size + 2 * model.hidden_size
    outputs = experts.per_token * model.hidden_size
    moments = [
        4 * experts.per_token * experts.size + outputs,
        (6 if model.model_type in _WEIGHS_WIDE else 4) * outputs,
        tensors * experts.shared_size,
    ]
    around = 5 if experts.shared_size else 4
    return max(moments) + around * model.hidden_size + 17 * experts.per_token
