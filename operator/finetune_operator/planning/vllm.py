"""What a vLLM server needs to write completions: GPUs for its weights and for keys and values.

The rules are those by which vLLM 0.32 accepts a tensor-parallel size and sets its cache up.
"""

import math
from dataclasses import dataclass
from typing import Final

from finetune_api.status import ModelFacts
from finetune_operator.planning.memory.rollout import kv_bytes
from finetune_operator.planning.quantity import GIB

UTILIZATION: Final = 0.9
"""Share of a GPU that a server of its own may take."""

_VOCABULARY_UNIT: Final = 64
_SIZES: Final = (1, 2, 4, 8)

_WORKING_GIB: Final = 2.0
"""Beside weights, keys and values: CUDA, activations of the largest batch, captured graphs. An
allowance, not measured."""


@dataclass(frozen=True)
class Server:
    """One vLLM server."""

    tensor_parallel_size: int
    """GPUs over which each weight is split."""
    weights_gib: float
    """Weights on each of them."""
    kv_tokens: int
    """Tokens whose keys and values fit, over all sequences that are written at once."""


def tensor_parallel_sizes(model: ModelFacts) -> list[int]:
    """Return over how many GPUs of a node vLLM can split the model, fewest first.

    Heads, feed-forward width and the vocabulary, padded to a multiple of 64, must divide evenly;
    key and value heads too, or be repeated evenly.
    """
    return [size for size in _SIZES if _divides(model, size)]


def _divides(model: ModelFacts, size: int) -> bool:
    vocabulary = math.ceil(model.vocabulary / _VOCABULARY_UNIT) * _VOCABULARY_UNIT
    keys, fewer = max(model.kv_heads, size), min(model.kv_heads, size)
    even = all(whole % size == 0 for whole in (model.heads, model.intermediate_size, vocabulary))
    return even and keys % fewer == 0


def kv_bytes_per_gpu(model: ModelFacts, size: int) -> int:
    """Return the bytes of one token's keys and values on one of so many GPUs.

    No GPU has less than one head: beyond the number of key and value heads they are repeated.
    """
    return kv_bytes(model) * math.ceil(model.kv_heads / size) // model.kv_heads


def smallest_server(model: ModelFacts, gpu_gib: float, tokens: int) -> Server | None:
    """Return the server on the fewest GPUs of gpu_gib GiB that holds the keys and values of so many
    tokens at once (concurrent sequences x their mean length, and at least the longest one).

    None when no size of one node does.
    """
    for size in tensor_parallel_sizes(model):
        weights = 2 * model.parameters / size / GIB
        room = UTILIZATION * gpu_gib - _WORKING_GIB - weights
        fitting = int(room * GIB / kv_bytes_per_gpu(model, size))
        if fitting >= tokens:
            return Server(size, round(weights, 2), fitting)
    return None
