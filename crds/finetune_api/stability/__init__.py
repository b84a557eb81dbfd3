"""The stability table: what is watched in training, what is abnormal, and what to do about it.

One table with three uses: the trainer's guard evaluates it, the chart's alert rules and the
documentation are generated from it. Metrics have their TRL names; windows and persistence count
logged values.
"""

from typing import Final, Literal

from finetune_api.spec import Method
from finetune_api.stability.general import GRADIENT, NOT_FINITE
from finetune_api.stability.offline import LOSS, PREFERENCES, REWARD_MODEL
from finetune_api.stability.online import ENERGY, POLICY
from finetune_api.stability.rule import SKIPPED, Severity, StabilityRule
from finetune_api.status import Finding, Stability

__all__ = ["QUIET", "SKIPPED", "STABILITY_RULES", "StabilityRule", "rules_of", "stability_of"]

QUIET = 100
"""Steps for which a rule that fired says nothing more about the same metric."""

STABILITY_RULES: Final[tuple[StabilityRule, ...]] = (
    *NOT_FINITE,
    *LOSS,
    *GRADIENT,
    *PREFERENCES,
    *REWARD_MODEL,
    *POLICY,
    *ENERGY,
)


def rules_of(method: Method) -> list[StabilityRule]:
    """Return the rules that watch a method."""
    return [rule for rule in STABILITY_RULES if method in rule.methods]


def stability_of(findings: list[Finding], limit: int = 16) -> Stability:
    """Return the verdict on findings, oldest first, and of too many the gravest and newest."""
    severities = {finding.severity for finding in findings}
    verdict: Literal["Stable", "Warning", "Unstable"] = "Stable"
    if "Critical" in severities:
        verdict = "Unstable"
    elif "Warning" in severities:
        verdict = "Warning"
    places = sorted(range(len(findings)), key=lambda place: _GRAVITY[findings[place].severity])
    # Sorting is stable: of equal gravity the oldest are left out.
    kept = [findings[place] for place in sorted(places[-limit:])]
    return Stability(verdict=verdict, findings=kept)


_GRAVITY: Final[dict[Severity, int]] = {"Info": 0, "Warning": 1, "Critical": 2}
