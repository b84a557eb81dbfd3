"""Renders the report: numbers and texts in, one HTML page out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from finetune_api.metrics import PARTS, SECONDS
from finetune_api.status import Memory
from finetune_trainer.report.charts import HEIGHT, WIDTH, Mark, draw_all
from finetune_trainer.report.data import ReportData
from finetune_trainer.report.measures import number

_LONGEST_TEXT = 4000
"""Characters of a prompt or an answer; all of it is in samples.json."""

_SHARES = tuple(name for name in Memory.model_fields if name != "total")

_MEASURED = {
    "gpu_memory_gib": ("Peak GPU memory", "GiB"),
    "host_memory_gib": ("Peak host memory", "GiB"),
    "tokens_per_second": ("Speed", "tokens/s"),
}


@dataclass(frozen=True)
class MemoryBar:
    """Planned memory by what holds it, beside the measured peak; positions in percent."""

    shares: list[tuple[str, str, float]]
    """Name, GiB as text, width."""
    planned: str
    measured: str | None
    """None: where it was measured is not what was planned for."""
    marker: float


@dataclass(frozen=True)
class TimeBar:
    """Mean seconds of a step by what they went into; widths in percent."""

    step: str
    """Seconds of the whole step."""
    shares: list[tuple[str, str, float]]
    """Part, seconds as text, width."""


def render(data: ReportData) -> str:
    """Return the page. It asks for nothing from anywhere, and runs no scripts."""
    marks = list(_marks(data))
    known, others = draw_all(data.entries, marks)
    return _template().render(
        data=data,
        spec=data.spec,
        plan=data.plan,
        facts=data.facts,
        charts=known,
        other_charts=others,
        width=WIDTH,
        height=HEIGHT,
        memory=_memory(data),
        time=_time(data),
        measured=[_measured(name, value) for name, value in sorted(data.measured.items())],
        hyperparameters=list(_flat(data.hyperparameters())),
        number=number,
        shortened=_shortened,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("finetune_trainer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _marks(data: ReportData) -> Iterator[Mark]:
    for finding in data.stability.findings if data.stability else []:
        text = f"step {finding.step}, {finding.rule}: {finding.message}"
        yield Mark(finding.step, text, finding.severity.lower())
    for rollback in data.config.rollbacks:
        text = f"step {rollback.step}, {rollback.rule}: rolled back to step {rollback.to_step}"
        yield Mark(rollback.step, text, "rollback")


def _memory(data: ReportData) -> MemoryBar | None:
    """Return planned against measured memory; None when nothing was planned."""
    memory = data.plan.memory
    if memory.total <= 0:
        return None
    on_gpu = "gpu_memory_gib" in data.measured
    comparable = on_gpu or data.plan.gpus == 0
    peak = data.measured.get("gpu_memory_gib" if on_gpu else "host_memory_gib")
    peak = peak if comparable else None
    widest = max(memory.total, peak or 0.0)
    held = [(name, getattr(memory, name)) for name in _SHARES]
    return MemoryBar(
        shares=[(name, f"{size:.2f}", 100 * size / widest) for name, size in held if size > 0],
        planned=f"{memory.total:.2f}",
        measured=None if peak is None else f"{peak:.2f}",
        marker=100 * (peak or 0.0) / widest,
    )


def _time(data: ReportData) -> TimeBar | None:
    """Return where the time of the logged steps went; None when none was measured."""
    means = {}
    for part in PARTS:
        name = f"{SECONDS}{part}"
        logged = [entry[name] for entry in data.entries if name in entry]
        if logged:
            means[part] = sum(logged) / len(logged)
    step = sum(means.values())
    if step <= 0:
        return None
    return TimeBar(
        step=number(step),
        shares=[(part, number(mean), 100 * mean / step) for part, mean in means.items()],
    )


def _measured(name: str, value: float) -> tuple[str, str]:
    label, unit = _MEASURED.get(name, (name, ""))
    return label, f"{number(value)} {unit}".strip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a nested mapping's leaves by their paths in the spec."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} …"
