"""What the trainer's GPUs hold while completions are written on them."""

import math

from finetune_api.spec import ONLINE, FineTuneJobSpec, Generation, Rollout
from finetune_api.status import ModelFacts, Preparation
from finetune_operator.planning.memory import experts
from finetune_operator.planning.memory.adapters import adapter_copies
from finetune_operator.planning.memory.candidate import Candidate
from finetune_operator.planning.quantity import GIB
from finetune_operator.planning.vllm import (
    MOST_SEQUENCES,
    WORKING_GIB,
    Server,
    kv_bytes,
    server_for,
    tensor_parallel_sizes,
)


def writing(
    spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate, free: float
) -> float:
    """Return the bytes that writing completions needs on top of training.

    free is what training holds at its fullest and not between two steps, when completions are
    written. vLLM keeps its memory all the time unless it sleeps, and a little then too.
    """
    rollout = spec.rollout or Rollout()
    if spec.method not in ONLINE or rollout.mode == "server":
        return 0.0
    if rollout.mode != "colocate":
        return max(0.0, generation(spec, preparation, candidate) - free)
    taken = colocated(spec, preparation.model, candidate).taken_gib * GIB
    return max(WORKING_GIB * GIB, taken - free) if rollout.sleep else taken


def colocated(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> Server:
    """Return the vLLM server in the trainer's processes.

    GPUs that it is split over write all of their sequences at once, each as long as it may be.
    """
    size = _colocated_size(spec, model, candidate)
    share = math.ceil(spec.training.batch_size * size / max(1, candidate.gpus))
    return server_for(model, size, min(share, MOST_SEQUENCES) * candidate.max_length)


def _colocated_size(spec: FineTuneJobSpec, model: ModelFacts, candidate: Candidate) -> int:
    """Return over how many GPUs it is split: where each GPU holds all weights, over one; where they
    are spread because no GPU does, over as many of a node as there are.
    """
    asked = (spec.rollout or Rollout()).tensor_parallel_size
    if asked != "auto":
        return asked
    per_node = max(1, candidate.gpus) // candidate.nodes
    sizes = [size for size in tensor_parallel_sizes(model, per_node) if per_node % size == 0]
    return sizes[-1] if candidate.is_sharded else 1


def generation(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> float:
    """Return the bytes of keys, values and logits at most, with the trainer's own generate().

    All sequences that one GPU needs for an optimizer step are written at once. Their prompts run
    through the model together; a step forward then makes one layer's keys and values anew.
    """
    model = preparation.model
    sequences = spec.training.batch_size / max(1, candidate.gpus)
    completion = (spec.generation or Generation()).max_completion_length
    prompt = max(1, candidate.max_length - completion)
    token = kv_bytes(model, candidate.width)
    running = candidate.width * experts.running(model, adapter=spec.adapter.type != "full")
    prefill = sequences * prompt * (token + running)
    decoding = sequences * candidate.max_length * token * (1 + 1 / model.layers)
    if candidate.gpus:
        decoding += sequences * _copied(model, candidate.width)
    # Logits in float32, scaled, and their softmax.
    logits = 12.0 * sequences * model.vocabulary
    return max(prefill, decoding) + logits + adapter_copies(spec, model, candidate)


def _copied(model: ModelFacts, width: int) -> int:
    """Return the bytes of the experts of a token: on GPUs generate() copies them for each sequence
    when a step writes a single token (batched_mm).
    """
    if model.experts is None:
        return 0
    return width * model.experts.per_token * 3 * model.hidden_size * model.experts.size
