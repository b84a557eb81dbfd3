"""What a vLLM server needs to write completions: GPUs for its weights and for keys and values.

The rules are those by which vLLM 0.32 accepts a tensor-parallel size and sets its cache up.
"""

import math
from dataclasses import dataclass
from typing import Final

from finetune_api.status import ModelFacts
from finetune_operator.planning.quantity import GIB

UTILIZATION: Final = 0.9
"""Share of a GPU that a server of its own may take."""

MOST_SEQUENCES: Final = 256
"""Sequences that a server writes at once at most (--max-num-seqs): vLLM's default on GPUs below 70
GiB, taken for all."""

WORKING_GIB: Final = 2.0
"""Beside weights, keys and values: CUDA, activations of the largest batch, captured graphs. An
allowance, not measured."""

_VOCABULARY_UNIT: Final = 64
_SIZES: Final = (1, 2, 4, 8)


@dataclass(frozen=True)
class Server:
    """One vLLM server."""

    tensor_parallel_size: int
    """GPUs over which each weight is split."""
    weights_gib: float
    """Weights on each of them."""
    kv_gib: float
    """Room for keys and values on each of them; below 0 where the weights do not fit."""
    kv_tokens: int
    """Tokens whose keys and values fit, over all sequences that are written at once."""

    @property
    def taken_gib(self) -> float:
        """What it takes of each GPU."""
        return self.weights_gib + self.kv_gib + WORKING_GIB

    def sequences(self, length: int) -> int:
        """Return how many sequences of a length it writes at once at most."""
        return min(self.kv_tokens // length, MOST_SEQUENCES)


def tensor_parallel_sizes(model: ModelFacts, most: int = _SIZES[-1]) -> list[int]:
    """Return over how many GPUs, of a node that has most, vLLM can split the model, fewest first.

    Heads, the widths of feed-forward blocks and experts, and the vocabulary, padded to a multiple
    of 64, must divide evenly; key and value heads too, or be repeated evenly.
    """
    return [size for size in _SIZES if size <= most and _divides(model, size)]


def _divides(model: ModelFacts, size: int) -> bool:
    vocabulary = math.ceil(model.vocabulary / _VOCABULARY_UNIT) * _VOCABULARY_UNIT
    keys, fewer = max(model.kv_heads, size), min(model.kv_heads, size)
    experts = (model.experts.size, model.experts.shared_size) if model.experts else ()
    widths = (model.heads, model.intermediate_size, vocabulary, *experts)
    return all(width % size == 0 for width in widths) and keys % fewer == 0


def kv_bytes(model: ModelFacts, width: int = 2) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return 2 * width * model.layers * model.kv_heads * model.head_dim


def kv_bytes_per_gpu(model: ModelFacts, size: int) -> int:
    """Return the bytes of one token's keys and values on one of so many GPUs.

    No GPU has less than one head: beyond the number of key and value heads they are repeated.
    """
    return kv_bytes(model) * math.ceil(model.kv_heads / size) // model.kv_heads


def server_of(model: ModelFacts, gpu_gib: float, size: int) -> Server:
    """Return the server that fills so many GPUs of gpu_gib GiB, whether the weights fit or not."""
    weights = _weights_gib(model, size)
    room = UTILIZATION * gpu_gib - WORKING_GIB - weights
    tokens = max(0, int(room * GIB / kv_bytes_per_gpu(model, size)))
    return Server(size, weights, room, tokens)


def server_for(model: ModelFacts, size: int, tokens: int) -> Server:
    """Return the server on so many GPUs that takes no more than so many tokens need."""
    room = tokens * kv_bytes_per_gpu(model, size) / GIB
    return Server(size, _weights_gib(model, size), room, tokens)


def _weights_gib(model: ModelFacts, size: int) -> float:
    return 2 * model.parameters / size / GIB
