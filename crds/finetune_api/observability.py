"""Alert rules and reference pages, made from the stability table and the catalogue of metrics."""

from typing import Any

from finetune_api.metrics import EVALUATION, FINDINGS, LOGGED, OWN
from finetune_api.spec import Method
from finetune_api.stability import STABILITY_RULES, StabilityRule

_EVERY = set(Method)
_JOB = "{{ $labels.namespace }}/{{ $labels.finetunejob }}"


def alert_groups() -> dict[str, Any]:
    """Return the groups of a PrometheusRule: one alert per rule of the stability table.

    They follow the trainer's own findings: a rule's windows count steps, which PromQL cannot.
    """
    rules = [_alert(rule) for rule in STABILITY_RULES]
    return {"groups": [{"name": "finetune-stability", "rules": rules}]}


def _alert(rule: StabilityRule) -> dict[str, Any]:
    name = "".join(word.capitalize() for word in rule.name.split("-"))
    # A rule that was answered by a rollback counts with severity Warning from then on.
    series = f'rule="{rule.name}", severity="{rule.severity}"'
    return {
        "alert": f"FineTune{name}",
        "expr": f"max by (namespace, finetunejob) ({FINDINGS.name}{{{series}}}) > 0",
        "labels": {"severity": rule.severity.lower()},
        "annotations": {
            "summary": f"{_JOB}: {rule.meaning}",
            "description": f"{rule.metric} is {rule.abnormal()}. What to do: {rule.advice}.",
        },
    }


def stability_page(header: str) -> str:
    """Return the Markdown page of the stability table."""
    lines = [
        f"<!-- {header} -->",
        "# Stability rules",
        "",
        "What the trainer watches in every logged step and evaluation; what follows from a finding",
        "is in [Stability](../stability.md). Metrics have TRL's names; values are logged ones, one",
        "per `training.logEverySteps` steps. `Info` does not change the verdict: what is healthy",
        "there depends on the task.",
        "",
        "| Rule | Metric | Methods | Finding when | After | Severity | Healthy |",
        "|---|---|---|---|---|---|---|",
        *(_rule_row(rule) for rule in STABILITY_RULES),
        "",
        "## What it means and what to do",
        "",
        "| Rule | Meaning | Advice | Source |",
        "|---|---|---|---|",
        *(
            f"| `{rule.name}` | {rule.meaning} | {rule.advice} | {rule.source} |"
            for rule in STABILITY_RULES
        ),
    ]
    return "\n".join(lines) + "\n"


def _rule_row(rule: StabilityRule) -> str:
    cells = (
        f"`{rule.name}`",
        f"`{rule.metric}`",
        _methods(rule.methods),
        rule.abnormal(),
        f"{rule.warm_up} values" if rule.warm_up else "",
        rule.severity,
        rule.healthy,
    )
    return f"| {' | '.join(cells)} |"


def _methods(methods: tuple[Method, ...]) -> str:
    return "all" if set(methods) == _EVERY else ", ".join(methods)


def metrics_page(header: str) -> str:
    """Return the Markdown page of the trainer's metrics."""
    lines = [
        f"<!-- {header} -->",
        "# Metrics of the trainer",
        "",
        "Served at `:9400/metrics` of a job's first trainer pod while it runs. Every metric has",
        "the labels `namespace` and `finetunejob`; what is not known yet is left out. Names and",
        "meanings stay; what TRL logs beyond this list is in `metrics.jsonl` alone.",
        "",
        "## What the trainer measures",
        "",
        "| Metric | Kind | Further labels | |",
        "|---|---|---|---|",
        *(
            f"| `{metric.name}` | {metric.kind} | {_labels(metric.labels)} | {metric.help} |"
            for metric in OWN
        ),
        "",
        "## What TRL logs",
        "",
        "All are gauges: the value of the newest logged step. What is measured on held-out data",
        f"has the same name after `finetune_{EVALUATION}`. `reward` is the reward's name in",
        "`spec.rewards`, of which there are at most 16.",
        "",
        "| Metric | TRL's name | Methods | |",
        "|---|---|---|---|",
        *(
            f"| `finetune_{metric.name}{'{reward}' if '*' in metric.key else ''}` | `{metric.key}`"
            f" | {_methods(metric.methods)} | {metric.help} |"
            for metric in LOGGED
        ),
    ]
    return "\n".join(lines) + "\n"


def _labels(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)
