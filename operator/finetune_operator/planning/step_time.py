"""How long a batch of completions takes to write, and to train on, by the limits of a GPU."""

import math
from dataclasses import dataclass
from typing import Final, Self

from finetune_api.flops import flops_per_token, forward_flops, multiplied_weights
from finetune_api.spec import FineTuneJobSpec, Generation, Grpo, Rollout
from finetune_api.status import ModelFacts, Plan, Preparation
from finetune_operator.planning.duration import REACHED, again_flops
from finetune_operator.planning.products import PRODUCTS, UNKNOWN
from finetune_operator.planning.vllm import Server, kv_bytes_per_gpu

BANDWIDTH_REACHED: Final = 0.7
"""Share of a GPU's memory bandwidth that writing comes to; assumed, not measured."""

BETWEEN_TOKENS: Final = 2e-3
"""Seconds between two tokens, for sampling and scheduling; assumed, not measured."""

ADDING_UP: Final = 15e-6
"""Seconds in which the GPUs of a server add up what each computed, twice in each layer; assumed,
not measured."""


@dataclass(frozen=True)
class Speed:
    """What a GPU comes to."""

    flops: float
    """FLOP/s in bf16."""
    bandwidth: float
    """Bytes of its memory read in a second."""

    @classmethod
    def of(cls, product: str) -> Self:
        """Return the speed of a product; of UNKNOWN for one whose speed is not known."""
        known = PRODUCTS[product if has_speed(product) else UNKNOWN]
        teraflops = known.teraflops or 0
        return cls(REACHED * teraflops * 1e12, BANDWIDTH_REACHED * known.bandwidth * 1e9)


def has_speed(product: str) -> bool:
    """Tell whether a product's speed in bf16 is known."""
    return product in PRODUCTS and PRODUCTS[product].teraflops is not None


@dataclass(frozen=True)
class StepBatch:
    """The completions that are written before the trainer goes on, each as long as it may be: how
    long a model's answers are is not known before.
    """

    model: ModelFacts
    groups: int
    """Prompts."""
    group_size: int
    """Completions of each prompt."""
    prompt: float
    """Tokens of a prompt, in the mean."""
    completion: int
    """Tokens of a completion."""
    longest: int
    """Tokens of the longest prompt with its completion."""
    training_flops: float
    """Arithmetic of all that the trainer does with them."""

    @classmethod
    def of(cls, spec: FineTuneJobSpec, preparation: Preparation, plan: Plan) -> Self:
        """Return the batch of an optimizer step."""
        generation = spec.generation or Generation()
        completion = max(1, min(generation.max_completion_length, plan.max_length - 1))
        prompt = min(preparation.dataset.mean_tokens, max(1, plan.max_length - completion))
        length, model = prompt + completion, preparation.model
        weights = multiplied_weights(model)
        trained = flops_per_token(model, weights, length, full=spec.adapter.type == "full")
        trained += again_flops(model, weights, length, plan.gradient_checkpointing)
        passes = _forward_passes(spec)
        token = (spec.grpo or Grpo()).iterations * trained
        token += passes * forward_flops(model, weights, length)
        return cls(
            model=model,
            groups=max(1, spec.training.batch_size // generation.group_size),
            group_size=generation.group_size,
            prompt=prompt,
            completion=completion,
            longest=plan.max_length,
            training_flops=spec.training.batch_size * length * token,
        )

    @property
    def sequences(self) -> int:
        """Completions in all."""
        return self.groups * self.group_size

    def training_seconds(self, gpus: int, speed: Speed) -> float:
        """Return the time of training on so many GPUs; rewards and communication come on top."""
        return self.training_flops / (gpus * speed.flops)

    def writing_seconds(self, server: Server, share: int, speed: Speed) -> float:
        """Return the time in which a server writes its share of the sequences.

        Prompts take their arithmetic, once for each group. Each further token of all sequences
        that are written at once takes the reading of all weights and of the keys and values so far,
        or its arithmetic if that takes longer; where one sequence ends the next begins.
        """
        model, size = self.model, server.tensor_parallel_size
        at_once = min(share, server.sequences(self.longest))
        seen = self.prompt + self.completion / 2
        read = 2 * model.parameters / size + at_once * seen * kv_bytes_per_gpu(model, size)
        computed = at_once * _seeing(model, seen) / size
        waiting = BETWEEN_TOKENS + (2 * model.layers * ADDING_UP if size > 1 else 0.0)
        token = max(read / speed.bandwidth, computed / speed.flops) + waiting
        prompts = math.ceil(share / self.group_size) * self.prompt
        first = prompts * _seeing(model, self.prompt / 2) / (size * speed.flops)
        return share / at_once * self.completion * token + first


def _forward_passes(spec: FineTuneJobSpec) -> int:
    """Return how often the trainer runs the model over the batch beside training: for the
    reference, and to correct for vLLM's own likelihoods (TRL 1.16).
    """
    options, rollout = spec.grpo or Grpo(), spec.rollout or Rollout()
    corrected = rollout.importance_sampling.mode != "off" or options.iterations > 1
    return (options.beta > 0) + corrected


def _seeing(model: ModelFacts, seen: float) -> float:
    """Return the FLOPs of one token that sees so many: as in a row of twice as many."""
    return forward_flops(model, multiplied_weights(model), 2 * seen)
