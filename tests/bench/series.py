"""Made-up metrics of training runs, clean or with one fault, as TRL would log them."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.spec import Method
from finetune_api.stability import SKIPPED

Series = list[dict[str, float]]
"""What is logged at steps 1, 2, ..."""

STEPS = 400


def clean(method: Method, seed: int, steps: int = STEPS) -> Series:
    """Return the metrics of a run in which all goes well, with the noise of small batches."""
    noise = random.Random(f"{method} {seed}")  # noqa: S311 - noise, no secret
    return [_values(method, step / steps, noise) for step in range(steps)]


def _values(method: Method, done: float, noise: random.Random) -> dict[str, float]:
    common = {
        # Gradients have heavy tails.
        "grad_norm": 0.6 * math.exp(noise.gauss(0, 0.45)),
        "learning_rate": 1e-4 * (1 + math.cos(math.pi * done)) / 2 + 1e-9,
    }
    learned = 1 - math.exp(-6 * done)
    makers = {
        Method.SFT: _sft,
        Method.REWARD: _reward_model,
        Method.GRPO: _policy,
        Method.EBFT: _energy,
    }
    return common | makers.get(method, _preference)(learned, noise)


def _sft(learned: float, noise: random.Random) -> dict[str, float]:
    loss = (2.4 - 1.3 * learned) * math.exp(noise.gauss(0, 0.08))
    return {"loss": loss, "entropy": loss * 0.9, "mean_token_accuracy": 0.4 + 0.3 * learned}


def _preference(learned: float, noise: random.Random) -> dict[str, float]:
    margin = 1.5 * learned + noise.gauss(0, 0.4)
    return {
        "loss": math.log1p(math.exp(-margin)) * math.exp(noise.gauss(0, 0.1)),
        "rewards/chosen": 0.5 * learned + noise.gauss(0, 0.2),
        "rewards/rejected": -learned + noise.gauss(0, 0.2),
        "rewards/margins": margin,
        # Of eight pairs.
        "rewards/accuracies": sum(noise.random() < 0.55 + 0.3 * learned for _ in range(8)) / 8,
        "logps/rejected": -120 - 20 * learned + noise.gauss(0, 10),
        "log_odds_chosen": learned + noise.gauss(0, 0.3),
        "kl": abs(noise.gauss(0, 0.2)),
    }


def _reward_model(learned: float, noise: random.Random) -> dict[str, float]:
    margin = 2 * learned + noise.gauss(0, 0.5)
    return {
        "loss": math.log1p(math.exp(-margin)),
        "accuracy": sum(noise.random() < 0.55 + 0.3 * learned for _ in range(8)) / 8,
        "margin": margin,
        "mean_reward": noise.gauss(0, 0.5),
    }


def _policy(learned: float, noise: random.Random) -> dict[str, float]:
    reward = 0.1 + 0.6 * learned + noise.gauss(0, 0.08)
    return {
        "loss": noise.gauss(0, 0.02),
        "grad_norm": 0.2 * math.exp(noise.gauss(0, 0.5)),
        "reward": reward,
        "reward_std": abs(noise.gauss(0.25, 0.08)),
        "frac_reward_zero_std": noise.choice([0, 0, 0.25, 0.5]),
        "rewards/accuracy/mean": reward,
        "entropy": (0.45 - 0.25 * learned) * math.exp(noise.gauss(0, 0.1)),
        "kl": 0.2 * learned * math.exp(noise.gauss(0, 0.2)),
        "clip_ratio/region_mean": abs(noise.gauss(0.02, 0.01)),
        # A model that learns to reason writes more.
        "completions/mean_length": (180 + 60 * learned) * math.exp(noise.gauss(0, 0.15)),
        "completions/clipped_ratio": abs(noise.gauss(0.1, 0.05)),
        "sampling/sampling_logp_difference/mean": abs(noise.gauss(0.02, 0.01)),
        "sampling/importance_sampling_ratio/min": noise.uniform(0.2, 0.9),
    }


def _energy(learned: float, noise: random.Random) -> dict[str, float]:
    return _policy(learned, noise) | {
        "ebft/alignment": 0.4 + 0.3 * learned + noise.gauss(0, 0.05),
        "ebft/diversity": abs(noise.gauss(0.05, 0.02)),
        "ebft/cfm_loss": (3 - 2 * learned) * math.exp(noise.gauss(0, 0.1)),
        "ebft/reward": -0.5 + learned + noise.gauss(0, 0.1),
    }


Change = Callable[[dict[str, float], int, random.Random], dict[str, float]]
"""From a clean step's values, the steps since the fault began (from 0) and noise: the values."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and the rules of which one has to say so."""

    method: Method
    change: Change
    rules: frozenset[str]

    def inject(self, series: Series, place: int, seed: int) -> Series:
        """Return the series with the fault from index `place` on."""
        noise = random.Random(seed)  # noqa: S311 - noise, no secret
        return [
            values if index < place else values | self.change(values, index - place, noise)
            for index, values in enumerate(series)
        ]


def _once(values: dict[str, float]) -> Change:
    return lambda _clean, since, _noise: values if since == 0 else {}


def _spiked(*metrics: str) -> Change:
    def change(values: dict[str, float], since: int, _noise: random.Random) -> dict[str, float]:
        return {name: values[name] * 50 for name in metrics} if since == 0 else {}

    return change


def _bad_data(values: dict[str, float], _since: int, noise: random.Random) -> dict[str, float]:
    # As of labels that are random: near the logarithm of the vocabulary, once in a while less.
    return {"loss": 8 * math.exp(noise.gauss(0, 0.2)), "grad_norm": values["grad_norm"] * 4}


def _collapse(values: dict[str, float], since: int, _noise: random.Random) -> dict[str, float]:
    return {"entropy": values["entropy"] * math.exp(-since / 4)}


def _explosion(values: dict[str, float], since: int, _noise: random.Random) -> dict[str, float]:
    growth = min(2048.0, values["completions/mean_length"] * math.exp(since / 8))
    return {"completions/mean_length": growth}


def _constant(value: float) -> Change:
    values = {
        "reward": value,
        "rewards/accuracy/mean": value,
        "reward_std": 0.0,
        "frac_reward_zero_std": 1.0,
    }
    return lambda _clean, _since, _noise: values


def _swapped(values: dict[str, float], _since: int, noise: random.Random) -> dict[str, float]:
    return {
        "rewards/margins": -0.5 + noise.gauss(0, 0.3),
        "rewards/accuracies": 0.3 + noise.gauss(0, 0.1),
        "loss": values["loss"],
    }


def _creeping(rate: float) -> Change:
    def change(values: dict[str, float], since: int, _noise: random.Random) -> dict[str, float]:
        return {"loss": values["loss"] * math.exp(rate * since)}

    return change


FAULTS: dict[str, Fault] = {
    "NaN loss": Fault(
        Method.SFT,
        _once({"loss": math.nan, "grad_norm": math.nan, SKIPPED: 1.0}),
        frozenset({"gradient-not-finite", "loss-not-finite"}),
    ),
    "infinite gradient": Fault(
        Method.DPO,
        _once({"grad_norm": math.inf, SKIPPED: 1.0}),
        frozenset({"gradient-not-finite"}),
    ),
    "x50 spike of the loss": Fault(
        Method.SFT,
        _spiked("loss", "grad_norm"),
        frozenset({"loss-jump", "loss-spike", "grad-norm-spike"}),
    ),
    "x50 spike of the gradient": Fault(
        Method.GRPO, _spiked("grad_norm"), frozenset({"grad-norm-spike"})
    ),
    "divergence": Fault(
        Method.SFT,
        _creeping(0.1),
        frozenset({"loss-spike", "loss-spikes-repeated", "loss-diverged", "loss-above-start"}),
    ),
    "data that turns bad": Fault(
        Method.SFT,
        _bad_data,
        frozenset({"loss-jump", "loss-jumps-repeated", "loss-shifted", "loss-diverged"}),
    ),
    "chosen and rejected swapped": Fault(
        Method.DPO, _swapped, frozenset({"margins-negative", "accuracy-below-chance"})
    ),
    "constant reward": Fault(
        Method.GRPO,
        _constant(0.5),
        frozenset({"reward-function-constant", "reward-without-spread", "no-group-with-signal"}),
    ),
    "entropy collapse": Fault(Method.GRPO, _collapse, frozenset({"entropy-collapse"})),
    "length explosion": Fault(Method.GRPO, _explosion, frozenset({"length-explosion"})),
}

PLACES = (80, 200, 330)
"""Indices at which a fault begins: early, in the middle, late."""
