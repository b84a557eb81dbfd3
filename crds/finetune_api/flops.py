"""The arithmetic of training, as planner and trainer count it."""

from finetune_api.experts import routed_weights
from finetune_api.status import ModelFacts


def multiplied_weights(model: ModelFacts, *, has_head: bool = True) -> int:
    """Return the weights that a token is multiplied by: an embedding only looks rows up, and a
    token passes through few of a mixture's experts. A reward model has no output head.
    """
    unused = (not model.tied_embeddings) + (not has_head)
    passed = model.parameters - unused * model.vocabulary * model.hidden_size
    if model.experts is None:
        return passed
    idle = model.experts.count - model.experts.per_token
    return passed - routed_weights(model) * idle // model.experts.count


def flops_per_token(model: ModelFacts, weights: float, length: float, *, full: bool) -> float:
    """Return the FLOPs of training on one token, in a row of a length in tokens.

    For N weights that it is multiplied by, and causal attention:

        all weights trained:  6 N + 6 layers heads head_dim tokens
        frozen base:          4 N + 6 layers heads head_dim tokens

    6 per weight: 2 forward, 2 backward for activations, 2 backward for weights (arXiv 2001.08361,
    section 2.1). Frozen weights have no gradient: 4, whether they are quantised or not. Attention
    has no weights: 4 forward for each pair of tokens and each dimension of each head, twice as many
    backward (arXiv 2204.02311, appendix B), and a token sees half of its row in the mean.

    Left out: recomputed activations, for they are the plan's and not the model's; the adapter's own
    weights, passes of a reference model, and sampling.
    """
    return (6 if full else 4) * weights + 6 * _attended(model, length)


def forward_flops(model: ModelFacts, weights: float, length: float) -> float:
    """Return the FLOPs of one token going forward only, counted alike: 2 N and a third of the
    attention.
    """
    return 2 * weights + 2 * _attended(model, length)


def _attended(model: ModelFacts, length: float) -> float:
    return model.layers * model.heads * model.head_dim * length
