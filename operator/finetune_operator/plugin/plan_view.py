"""A plan on a terminal: what was decided, what fills the memory, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Final

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from finetune_api.spec import ONLINE
from finetune_api.status import Memory, Plan, RolloutPlan
from finetune_operator.plugin.prices import price_of
from finetune_operator.plugin.scenarios import Scenario
from finetune_operator.plugin.terminal import amount

_BAR_WIDTH: Final = 60
_PARTS: Final = (
    ("█", "blue"),
    ("▓", "magenta"),
    ("▒", "cyan"),
    ("░", "green"),
    ("▚", "yellow"),
    ("▞", "red"),
    ("▟", "bright_blue"),
    ("▄", "bright_magenta"),
    ("▌", "bright_cyan"),
    ("▀", "bright_green"),
)
"""Glyph and colour by turns: the bar is read without colours too."""
_HOURS: Final = "GPU-hours"
_BASES: Final = {
    "Measured": ("measured", "by the speed of a like run that was measured"),
    "Arithmetic": ("computed", "by arithmetic, at 40 % of the GPUs' peak"),
}
"""What GPU-hours rest on, as a word and in full."""
_FREE: Final = "·"
_ALWAYS: Final = {"Hardware", "Micro-batch", "Memory (GiB)"}
"""Rows of a comparison even where all plans agree."""


def show(
    console: Console, scenarios: Sequence[Scenario], prices: Mapping[str, float] | None = None
) -> None:
    """Print the plan of the job as it is, and beside it those with something changed.

    With prices of a GPU-hour it says what they cost.
    """
    first, prices = scenarios[0], prices or {}
    console.print(_title(first))
    trouble, others = _trouble(first), _troubles(scenarios[1:])
    if trouble:
        console.print(Text(trouble, style="bold red"))
    if len(scenarios) > 1:
        _print_comparison(console, scenarios, prices)
    elif first.plan:
        console.print(_details(first, first.plan, prices))
    for each, changes in others.items():
        if each != trouble:
            console.print(Text(f"With {' or '.join(changes)}: {each}", style="red"))
    console.print(_notes(first))


def _trouble(scenario: Scenario) -> str | None:
    """Return why there is no plan, or why the trainer would refuse it."""
    return scenario.refusal or scenario.unsupported


def _troubles(scenarios: Sequence[Scenario]) -> dict[str, list[str]]:
    """Return each trouble with the changes that lead to it."""
    found: dict[str, list[str]] = {}
    for scenario in scenarios:
        trouble = _trouble(scenario)
        if trouble:
            found.setdefault(trouble, []).append(scenario.change)
    return found


def _title(scenario: Scenario) -> Text:
    spec = scenario.job.spec
    text = Text(f"{scenario.job.name}: {spec.method} of {spec.model.source}, {spec.adapter.type}")
    text.stylize("bold", 0, len(scenario.job.name))
    return text


def _details(scenario: Scenario, plan: Plan, prices: Mapping[str, float]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    rows = dict(_rows(scenario, plan, prices))
    if _HOURS in rows:
        rows[_HOURS] = _hours_in_full(scenario, plan)
    for name, value in rows.items():
        table.add_row(name, value)
    return Group(
        Text(f"{plan.summary}\n", style="bold green"),
        table,
        Text(),
        *_memory(plan, scenario.gpu_memory),
        Text("\nWhy", style="bold"),
        listed([*plan.reasons, *(plan.rollout.reasons if plan.rollout else [])]),
    )


def listed(sentences: Iterable[str]) -> RenderableType:
    """Return sentences as a list, each with its own indented lines."""
    table = Table.grid(padding=(0, 1))
    for sentence in sentences:
        table.add_row("-", sentence)
    return table


def _rows(scenario: Scenario, plan: Plan, prices: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    yield "Hardware", _hardware(scenario, plan)
    if plan.gpus:
        hours, word, _ = _hours(scenario, plan)
        yield _HOURS, f"{hours}{word}"
    price = price_of(prices, plan)
    if price is not None:
        cost = scenario.cost(price)
        expected = f", about {amount(cost['expected'])} in all" if "expected" in cost else ""
        yield "Cost", f"{cost['perHour']:,.2f} an hour{expected}"
    elif prices:
        yield "Cost", "no --price for it"
    yield "Micro-batch", f"{plan.micro_batch_size} x {plan.gradient_accumulation_steps}"
    yield "Longest sequence", f"{plan.max_length:,} tokens"
    yield "Precision", plan.precision
    yield "Checkpointing", plan.gradient_checkpointing
    yield "Compile", "yes" if plan.compile else "no"
    yield "Each pod", f"{plan.cpu} CPU, {plan.host_memory} memory"
    if plan.rollout is not None:
        yield from _rollout(plan.rollout)


def _hours(scenario: Scenario, plan: Plan) -> tuple[str, str, str]:
    """Return GPU-hours, empty where they are not known, what they rest on, and that in full."""
    time = scenario.expected
    if time is not None:
        return f"about {amount(time.gpu_hours)}, ", *_BASES[time.basis]
    method = scenario.job.spec.method
    if method in ONLINE:
        why = f"method {method} writes completions for most of the time"
    elif plan.gpu_product is None:
        why = "name resources.gpu.product"
    else:
        why = f"no speed of {plan.gpu_product} in {plan.precision} is known"
    return "", "not known", why


def _hours_in_full(scenario: Scenario, plan: Plan) -> str:
    hours, word, why = _hours(scenario, plan)
    return f"{hours.removesuffix(', ')} ({why})" if hours else f"{word}: {why}"


def _rollout(rollout: RolloutPlan) -> Iterator[tuple[str, str]]:
    more = "1 more GPU" if rollout.gpus == 1 else f"{rollout.gpus} more GPUs"
    where = more if rollout.gpus else "on the trainer's GPUs"
    servers = f"{rollout.replicas} x tensor parallel {rollout.tensor_parallel_size}"
    sizes = f"weights {rollout.weights:.1f}, keys and values {rollout.kv_cache:.1f} GiB"
    times = f"{rollout.writing_seconds:,.1f} s, training on it {rollout.training_seconds:,.1f} s"
    yield "vLLM", f"{servers}, {where}"
    yield "vLLM memory", f"{sizes}, {rollout.gpu_memory_utilization:.0%} of each GPU"
    yield "Writing a batch", f"about {times}, as computed"


def _hardware(scenario: Scenario, plan: Plan) -> str:
    if not plan.gpus:
        return "CPU"
    gpu = plan.gpu_product or f"{scenario.gpu_memory:.0f} GiB GPU"
    nodes = f" on {plan.nodes} nodes" if plan.nodes > 1 else ""
    strategy = "" if plan.strategy == "single" else f", {plan.strategy}"
    return f"{plan.gpus} x {gpu}{nodes}{strategy}"


def parts_of(memory: Memory) -> dict[str, float]:
    """Return the GiB of each part by its name."""
    return {
        name: value
        for name, value in memory.model_dump().items()
        if name != "total" and isinstance(value, float)
    }


def _memory(plan: Plan, gpu_memory: float) -> Iterator[RenderableType]:
    memory, limit = plan.memory, gpu_memory if plan.gpus else plan.memory.total
    of = f" of {limit:.0f} GiB on each GPU" if plan.gpus else " GiB"
    yield Text(f"Memory: {memory.total:.1f}{of}", style="bold")
    bar, legend = Text(), []
    for (name, size), (glyph, colour) in zip(_largest_first(memory), cycle(_PARTS)):
        bar.append(glyph * round(_BAR_WIDTH * size / max(limit, memory.total)), style=colour)
        legend.append(Text(f"{glyph} ", style=colour).append(f"{name} {size:.1f}", style="none"))
    bar.append(_FREE * (_BAR_WIDTH - len(bar)), style="dim")
    yield bar
    yield Columns(legend, padding=(0, 2))


def _largest_first(memory: Memory) -> list[tuple[str, float]]:
    """Return the parts that are more than nothing."""
    sizes = sorted(parts_of(memory).items(), key=lambda part: -part[1])
    return [(name, size) for name, size in sizes if round(size, 1)]


def _print_comparison(
    console: Console, scenarios: Sequence[Scenario], prices: Mapping[str, float]
) -> None:
    """Print the plans side by side; changes that are too long for a line get numbers."""
    columns = [_column(scenario, prices) for scenario in scenarios]
    changes = [scenario.change for scenario in scenarios[1:]]
    table = _table(scenarios, ["as it is", *changes], columns)
    natural = Measurement.get(console, console.options.update(max_width=10_000), table)
    if natural.maximum > console.width:
        numbers = [str(number) for number in range(1, len(scenarios))]
        for number, change in zip(numbers, changes, strict=True):
            console.print(f"{number}: {change}", soft_wrap=True)
        table = _table(scenarios, ["as it is", *numbers], columns)
    console.print(table)
    if prices or _HOURS in table.columns[0].cells:
        console.print(_footnotes(scenarios))


def _footnotes(scenarios: Sequence[Scenario]) -> RenderableType:
    """Return what the words beside GPU-hours mean, each once."""
    found = [_hours(one, one.plan)[1:] for one in scenarios if one.plan and one.plan.gpus]
    notes = [Text(f"GPU-hours {word}: {why}.") for word, why in dict.fromkeys(found)]
    return Group(Text(), *notes)


def _table(
    scenarios: Sequence[Scenario], heads: Sequence[str], columns: Sequence[Mapping[str, str]]
) -> Table:
    """Return the plans side by side, without what is the same in all of them."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, overflow="fold")
    planned = [column for column, one in zip(columns, scenarios, strict=True) if one.plan]
    for name in max(columns, key=len):
        if name in _ALWAYS or len({column.get(name) for column in planned}) > 1:
            table.add_row(name, *[column.get(name, "") for column in columns])
    return table


def _column(scenario: Scenario, prices: Mapping[str, float]) -> dict[str, str]:
    plan = scenario.plan
    if plan is None:
        return {"Hardware": "no plan"}
    limit = f" of {scenario.gpu_memory:.0f}" if plan.gpus else ""
    sizes = {
        f"  {name}": f"{size:.1f}" if round(size, 1) else ""
        for name, size in parts_of(plan.memory).items()
    }
    total = {"Memory (GiB)": f"{plan.memory.total:.1f}{limit}"}
    return dict(_rows(scenario, plan, prices)) | total | sizes


def _notes(scenario: Scenario) -> RenderableType:
    return Group(Text("\nWhat this rests on", style="bold"), listed(scenario.basis.notes))
