"""Which metrics share a chart, and where their points are on it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from finetune_api.metrics import LOGGED, SECONDS
from finetune_trainer.report.measures import number

WIDTH, HEIGHT = 480, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 24
_MOST_POINTS = 240
"""Points of one curve: a page stays small however long the run was."""
_MOST_DOTS = 30
"""Points that are few enough to be shown one by one."""
_LOGARITHMIC = 100
"""A greatest value of so many medians would press all others flat on a linear axis."""

Point = tuple[float, float]
"""Optimizer step and value."""


@dataclass(frozen=True)
class Chart:
    """Metrics that are read together."""

    title: str
    labels: Mapping[str, str]
    """Names or patterns of metrics, and what their curves are called; "" is the name's `*`."""


CHARTS = (
    Chart("Loss", {"loss": "training", "eval_loss": "held out"}),
    Chart(
        "Reward accuracy",
        {
            "rewards/accuracies": "training",
            "eval_rewards/accuracies": "held out",
            "accuracy": "training",
            "eval_accuracy": "held out",
        },
    ),
    Chart(
        "Reward margin",
        {
            "rewards/margins": "training",
            "eval_rewards/margins": "held out",
            "margin": "training",
            "eval_margin": "held out",
        },
    ),
    Chart(
        "Rewards of chosen and rejected",
        {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    ),
    Chart(
        "Log probabilities of chosen and rejected",
        {"logps/chosen": "chosen", "logps/rejected": "rejected"},
    ),
    Chart("Reward", {"reward": "training", "eval_reward": "held out"}),
    Chart("Mean of each reward", {"rewards/*/mean": ""}),
    Chart("Standard deviation of rewards within a group", {"reward_std": "standard deviation"}),
    Chart("Groups whose rewards are all alike", {"frac_reward_zero_std": "share"}),
    Chart(
        "Scores of the reward model",
        {"max_reward": "greatest", "mean_reward": "mean", "min_reward": "smallest"},
    ),
    Chart(
        "Feature matching",
        {
            "ebft/alignment": "alignment",
            "ebft/diversity": "diversity",
            "ebft/cfm_loss": "distance of means",
        },
    ),
    Chart(
        "Token accuracy",
        {"mean_token_accuracy": "training", "eval_mean_token_accuracy": "held out"},
    ),
    Chart("Entropy", {"entropy": "training", "eval_entropy": "held out"}),
    Chart("KL divergence from the reference", {"kl": "training", "eval_kl": "held out"}),
    Chart(
        "Completion length in tokens",
        {
            "completions/max_length": "longest",
            "completions/mean_length": "mean",
            "completions/min_length": "shortest",
        },
    ),
    Chart("Completions cut at the length limit", {"completions/clipped_ratio": "share"}),
    Chart("Gradient norm, before clipping", {"grad_norm": "norm"}),
    Chart("Learning rate", {"learning_rate": "learning rate"}),
)

_NO_CURVES = {"step", "epoch", "num_tokens", "total_flos"}
"""They only count."""

_HELP = {metric.key: metric.help for metric in LOGGED}


@dataclass(frozen=True)
class Mark:
    """A step at which something happened."""

    step: int
    text: str
    kind: str
    """info, warning, critical or rollback."""


@dataclass(frozen=True)
class Curve:
    """One metric on a chart."""

    label: str
    newest: str
    path: str
    """Points of an SVG polyline."""
    dots: list[tuple[float, float, str]]
    """x, y and what the point says, when there are few."""


@dataclass(frozen=True)
class Drawing:
    """One chart, in coordinates of its SVG."""

    title: str
    help: str
    """What the metric is, where the title does not say it."""
    logarithmic: bool
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, Mark]]


def draw_all(
    entries: Sequence[Mapping[str, Any]], marks: Sequence[Mark]
) -> tuple[list[Drawing], list[Drawing]]:
    """Return the charts of metrics that have a meaning, and one for each other metric."""
    points = curves_of(entries)
    # Where the time went is one bar for all steps.
    known, used = [], _NO_CURVES | {name for name in points if name.startswith(SECONDS)}
    for chart in CHARTS:
        labels = _matching(chart, points)
        used |= labels.keys()
        if labels:
            known.append(_draw(chart.title, {labels[name]: points[name] for name in labels}, marks))
    stems = sorted({name.removeprefix("eval_") for name in points.keys() - used})
    others = []
    for stem in stems:
        sides = {"training": stem, "held out": f"eval_{stem}"}
        shown = {label: points[name] for label, name in sides.items() if name in points}
        others.append(_draw(stem, shown, marks, _HELP.get(stem, "")))
    return known, others


def curves_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Return the points of every metric."""
    points: dict[str, list[Point]] = {}
    for entry in entries:
        for name, value in entry.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((entry["step"], float(value)))
    return points


def thin(points: list[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Return fewer points that keep every peak: of each stretch the least and the greatest."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most // 2))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept |= {min(stretch, key=_value), max(stretch, key=_value)}
    return sorted(kept)


def _value(point: Point) -> float:
    return point[1]


def _matching(chart: Chart, points: Mapping[str, object]) -> dict[str, str]:
    """Return the chart's metrics that were logged, and their labels."""
    return {
        name: label or _starred(pattern, name)
        for pattern, label in chart.labels.items()
        for name in points
        if fnmatchcase(name, pattern)
    }


def _starred(pattern: str, name: str) -> str:
    start, end = pattern.split("*")
    return name.removeprefix(start).removesuffix(end)


def _draw(
    title: str, curves: Mapping[str, list[Point]], marks: Sequence[Mark], explained: str = ""
) -> Drawing:
    thinned = {label: thin(points) for label, points in curves.items()}
    every = [point for points in thinned.values() for point in points]
    values = sorted(value for _, value in every)
    logarithmic = values[0] > 0 and values[-1] > _LOGARITHMIC * values[len(values) // 2]
    steps = _Axis.over([step for step, _ in every], _LEFT, WIDTH - _RIGHT)
    heights = _Axis.over(
        values, HEIGHT - _BOTTOM, _TOP, logarithmic=logarithmic, margin=0 if logarithmic else 0.05
    )
    return Drawing(
        title=title,
        help=explained,
        logarithmic=logarithmic,
        curves=[_curve(label, points, steps, heights) for label, points in thinned.items()],
        x_ticks=[(steps.at(tick), f"{tick:,.0f}") for tick in steps.ticks() if tick.is_integer()],
        y_ticks=[(heights.at(tick), number(tick)) for tick in heights.ticks()],
        marks=[(steps.at(mark.step), mark) for mark in marks if steps.holds(mark.step)],
    )


def _curve(label: str, points: list[Point], steps: "_Axis", heights: "_Axis") -> Curve:
    places = [(steps.at(step), heights.at(value)) for step, value in points]
    dots = []
    if len(points) <= _MOST_DOTS:
        texts = [f"{label}, step {step:.0f}: {number(value)}" for step, value in points]
        dots = [(x, y, text) for (x, y), text in zip(places, texts, strict=True)]
    return Curve(
        label=label,
        newest=number(points[-1][1]),
        path=" ".join(f"{x:g},{y:g}" for x, y in places),
        dots=dots,
    )


@dataclass(frozen=True)
class _Axis:
    """Maps values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        logarithmic: bool = False,
        margin: float = 0,
    ) -> "_Axis":
        """Return an axis that holds all values, with a margin, but not below zero for it."""
        low, high = min(values), max(values)
        room = (high - low) * margin or (0.0 if high > low else abs(high) * 0.1 or 1.0)
        floor = 0.0 if low >= 0 else -math.inf
        return cls(
            low if logarithmic else max(low - room, floor), high + room, start, end, logarithmic
        )

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def at(self, value: float) -> float:
        low, high, here = self.low, self.high, value
        if self.logarithmic:
            low, high, here = math.log10(low), math.log10(high), math.log10(value)
        return round(self.start + (self.end - self.start) * (here - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        """Return three to six round values on the axis."""
        return list(self._powers() if self.logarithmic else self._steps())

    def _powers(self) -> Iterator[float]:
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        stride = max(1, (last - first) // 4)
        for exponent in range(first, last + 1, stride):
            yield 10.0**exponent

    def _steps(self) -> Iterator[float]:
        rough = (self.high - self.low) / 5
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
        first = math.ceil(self.low / step)
        for index in range(first, math.floor(self.high / step + 1e-9) + 1):
            yield float(f"{index * step:.12g}")
