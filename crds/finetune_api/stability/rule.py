"""One row of the stability table."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from finetune_api.detection import Condition
from finetune_api.spec import Method

Severity = Literal["Info", "Warning", "Critical"]

SKIPPED = "non_finite_steps"
"""Metric: optimizer steps since the last log that were skipped for a gradient that is no number."""

SFT = (Method.SFT,)
PREFERENCE = (Method.DPO, Method.KTO, Method.ORPO)
REWARD = (Method.REWARD,)
OFFLINE = (*SFT, *PREFERENCE, *REWARD)
GRPO = (Method.GRPO,)
EBFT = (Method.EBFT,)
ONLINE = (*GRPO, *EBFT)
EVERY = tuple(Method)

AXOLOTL_SFT = "Axolotl, training_stability and agents/sft"
AXOLOTL_PREFERENCE = "Axolotl, agents/preference_tuning"
AXOLOTL_GRPO = "Axolotl, training_stability and agents/grpo"
AXOLOTL_EBFT = "Axolotl, ebft"


@dataclass(frozen=True)
class StabilityRule:
    """One row of the table."""

    name: str
    metric: str
    """TRL's name; * stands for any name between two slashes."""
    methods: tuple[Method, ...]
    condition: Condition
    severity: Severity
    """Info does not change the verdict; only Critical halts training or rolls it back."""
    meaning: str
    advice: str
    source: str
    """Where the rule and its numbers come from."""
    healthy: str = ""
    """What the metric looks like when all is well, as far as that can be said of any task."""
    warm_up: int = 0
    """Values before the rule is looked at."""
    times: int = 1
    """Abnormal values that make a finding."""
    within: int = 1
    """Newest values among which they are counted; equal to times: all in a row."""
    covers: tuple[str, ...] = ()
    """Rules about the same metric, none of them graver, that add nothing once this one fired."""

    def watches(self, metric: str) -> bool:
        """Tell whether the rule is about a metric, by its TRL name."""
        return fnmatchcase(metric, self.metric)

    def abnormal(self) -> str:
        """Return in words what makes a finding."""
        words = self.condition.words()
        if self.times == 1:
            return words
        if self.times == self.within:
            return f"{words}, {self.times} times in a row"
        return f"{words}, {self.times} times in {self.within} values"
