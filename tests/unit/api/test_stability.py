"""The stability table: closed, documented, and each condition as its words say."""

import re
from pathlib import Path

import pytest

from finetune_api.detection import (
    Above,
    AboveBest,
    AboveStart,
    Below,
    Collapsed,
    Condition,
    Constant,
    History,
    NotFinite,
    Spike,
    Trend,
)
from finetune_api.metrics import LOGGED, exported
from finetune_api.spec import Method
from finetune_api.stability import STABILITY_RULES, rules_of, stability_of
from finetune_api.status import Finding

NAN = float("nan")


def test_names_are_unique_and_can_be_part_of_an_alert() -> None:
    names = [rule.name for rule in STABILITY_RULES]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(-[a-z]+)*", name)] == []


def test_every_rule_says_what_it_means_in_sentences() -> None:
    for rule in STABILITY_RULES:
        assert rule.meaning.endswith("."), rule.name
        assert not rule.advice.endswith("."), rule.name
        assert rule.source, rule.name
        assert rule.times <= rule.within, rule.name


def test_what_is_watched_is_exported() -> None:
    names = {rule.metric.replace("*", "name").removeprefix("eval_") for rule in STABILITY_RULES}
    assert [name for name in names if exported(name) is None] == []


def test_a_rule_watches_only_what_its_methods_log() -> None:
    logged = {metric.key: metric.methods for metric in LOGGED}
    wrong = [
        rule.name
        for rule in STABILITY_RULES
        if not set(rule.methods) <= set(logged[rule.metric.removeprefix("eval_")])
        # KTO has no pairs to rank.
        and rule.name != "accuracy-below-chance"
    ]
    assert wrong == []


def test_every_method_is_watched_for_numbers_that_are_none() -> None:
    for method in Method:
        names = {rule.name for rule in rules_of(method)}
        assert {"gradient-not-finite", "loss-not-finite", "eval-loss-not-finite"} <= names


def _verdicts(condition: Condition, values: list[float]) -> list[bool]:
    history = History(condition.window)
    verdicts = []
    for value in values:
        verdicts.append(condition.holds(history, value))
        history.add(value)
    return verdicts


@pytest.mark.parametrize(
    ("condition", "values", "abnormal"),
    [
        (NotFinite(), [1, NAN, float("inf"), 0], [1, 2]),
        (Above(2), [2, 3, 1], [1]),
        (Above(2, window=2), [0, 5, 0, 3], [1, 2]),
        (Below(0), [0, -1, 1], [1]),
        (Constant(2), [0, 0, 0, 1, 1, 1 + 1e-15], [2, 5]),
        (Spike(factor=3, window=10), [*[1.0] * 10, 2.9, 3.6], [11]),
        (Spike(factor=1.5, window=20, sigma=6), [*[1.0, 1.2] * 10, 1.64, 2.5], [21]),
        # One hard example after the loss has become tiny is below where training began.
        (Spike(factor=3, window=10), [*[1.0] * 10, *[0.01] * 20, 0.9], []),
        (AboveStart(2), [*[1.0] * 10, 1.9, 2.0], [11]),
        (AboveBest(1.5), [2, 1, 1.4, 1.6], [3]),
        (Collapsed(limit=0.01, share=0.2), [*[0.5] * 10, 0.02, 0.009], [11]),
        # It began there.
        (Collapsed(limit=0.01, share=0.2), [*[0.005] * 10, 0.004], []),
        (Trend(rising=True, window=8), [1, 1.1, 1, 1.1, 2, 2.1, 2, 2.1, 2], [7]),
        (Trend(rising=False, window=8), [1, 1.1, 1, 1.1, 2, 2.1, 2, 2.1, 2], []),
        (Trend(rising=False, window=4), [2, 2, 1, 1], [3]),
    ],
)
def test_a_condition_holds_where_its_words_say(
    condition: Condition, values: list[float], abnormal: list[int]
) -> None:
    found = [place for place, holds in enumerate(_verdicts(condition, values)) if holds]
    assert found == abnormal


def test_the_verdict_is_that_of_the_worst_finding() -> None:
    def finding(severity: str) -> Finding:
        fields = {"rule": "r", "severity": severity, "step": 1, "message": "m", "advice": "a"}
        return Finding.model_validate(fields)

    assert stability_of([]).verdict == "Stable"
    assert stability_of([finding("Info")]).verdict == "Stable"
    assert stability_of([finding("Warning"), finding("Info")]).verdict == "Warning"
    assert stability_of([finding("Critical"), finding("Info")]).verdict == "Unstable"
    crowd = [finding("Critical"), *[finding("Warning")] * 14, *[finding("Info")] * 9]
    kept = [one.severity for one in stability_of(crowd).findings]
    assert kept == ["Critical", *["Warning"] * 14, "Info"]


def test_what_is_covered_is_about_the_same_metric_and_not_graver() -> None:
    gravity = ["Info", "Warning", "Critical"]
    rules = {rule.name: rule for rule in STABILITY_RULES}
    for rule in STABILITY_RULES:
        for covered in map(rules.__getitem__, rule.covers):
            assert covered.metric == rule.metric
            assert gravity.index(covered.severity) <= gravity.index(rule.severity)


def test_alerts_and_pages_know_every_rule() -> None:
    root = Path(__file__).resolve().parents[3]
    alerts = (root / "helm/finetune-operator/files/alerts.yaml").read_text()
    page = (root / "docs/reference/stability.md").read_text()
    for rule in STABILITY_RULES:
        assert f'rule="{rule.name}",' in alerts
        assert f"| `{rule.name}` |" in page
