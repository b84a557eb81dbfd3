"""What was measured on held-out rows, before and after training, by the names people use."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.spec import Method
from finetune_trainer.metrics_log import BEFORE


@dataclass(frozen=True)
class Meaning:
    """What a metric is to people."""

    label: str
    better: Literal["lower", "higher"]
    note: str = ""


_ACCURACY = Meaning("reward accuracy", "higher", "0.5 is chance")

MEANINGS: Mapping[str, Meaning] = {
    "eval_loss": Meaning("held-out loss", "lower"),
    "eval_mean_token_accuracy": Meaning("token accuracy", "higher"),
    "eval_rewards/accuracies": _ACCURACY,
    "eval_rewards/margins": Meaning("reward margin", "higher", "chosen minus rejected"),
    "eval_accuracy": _ACCURACY,
    "eval_margin": Meaning("reward margin", "higher", "chosen minus rejected"),
    "eval_reward": Meaning("mean reward", "higher"),
    "eval_ebft/alignment": Meaning("alignment with the given answers", "higher"),
}

HEADLINES: Mapping[Method, str] = {
    Method.SFT: "eval_loss",
    Method.DPO: "eval_rewards/accuracies",
    Method.KTO: "eval_rewards/margins",
    Method.ORPO: "eval_rewards/accuracies",
    Method.REWARD: "eval_accuracy",
    Method.GRPO: "eval_reward",
    Method.EBFT: "eval_reward",
}
"""The metric that says whether a method did what it is for."""


ONLINE = frozenset({Method.GRPO, Method.EBFT})
"""Methods that learn from what the model writes; their loss is about zero whatever they learn."""


@dataclass(frozen=True)
class Measure:
    """One held-out metric before and after training."""

    name: str
    """Its TRL name."""
    meaning: Meaning
    before: float | None
    after: float

    @property
    def improved(self) -> bool | None:
        """Whether it became better; None when it was not measured before, or stayed."""
        if self.before is None or self.before == self.after:
            return None
        return (self.after > self.before) == (self.meaning.better == "higher")


def held_out(metrics: Mapping[str, float], method: Method) -> list[Measure]:
    """Return the held-out metrics that have a meaning, the method's headline first.

    metrics: the newest value of each, and those before training with the ending _before.
    """
    unknown = {"eval_loss"} if method in ONLINE else set()
    names = [name for name in MEANINGS if name in metrics.keys() - unknown]
    names.sort(key=lambda name: name != HEADLINES[method])
    return [
        Measure(name, _meaning(name, method), metrics.get(name + BEFORE), metrics[name])
        for name in names
    ]


def _meaning(name: str, method: Method) -> Meaning:
    meaning = MEANINGS[name]
    if method in {Method.DPO, Method.KTO} and name.startswith("eval_rewards/"):
        # These rewards are differences from the reference, which the model equals at first.
        return replace(meaning, note=f"{meaning.note}; 0 before training by definition")
    return meaning


def number(value: float | None) -> str:
    """Return a number as people read it, with four significant digits."""
    if value is None:
        return "not measured"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.3g}"
