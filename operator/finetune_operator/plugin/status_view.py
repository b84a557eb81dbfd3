"""A job's status on a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.status import (
    Attempt,
    FineTuneJobStatus,
    Measured,
    Phase,
    Progress,
    Stability,
    Usage,
)
from finetune_operator.plugin.kubectl import status_of
from finetune_operator.plugin.manifests import Manifest, job_name
from finetune_operator.plugin.terminal import amount

_COLOURS = {
    Phase.SUCCEEDED: "green",
    Phase.FAILED: "red",
    Phase.RECOVERING: "yellow",
    Phase.SUSPENDED: "yellow",
}
_VERDICTS = {"Stable": "green", "Warning": "yellow", "Unstable": "red"}


def is_finished(status: FineTuneJobStatus) -> bool:
    """Tell whether nothing more will happen."""
    return status.phase in {Phase.SUCCEEDED, Phase.FAILED}


def view(job: Manifest) -> RenderableType:
    """Return everything about a job that fits on a screen."""
    status = status_of(job)
    return Group(*_parts(job, status))


def line(job: Manifest) -> str:
    """Return one line about a job, for a log."""
    status = status_of(job)
    progress = _numbers(status.progress) if status.progress else []
    verdict = [status.stability.verdict] if status.stability else []
    return "  ".join([job_name(job), status.phase, *progress, *verdict])


def _parts(job: Manifest, status: FineTuneJobStatus) -> Iterator[RenderableType]:
    yield _title(job, status)
    if status.message:
        yield Text(status.message)
    if status.plan:
        yield Text(f"Plan: {status.plan.summary}")
    if status.progress:
        yield from _progress(status.progress)
    if status.stability:
        yield from _stability(status.stability)
    if status.usage:
        yield Text(_used(status.usage))
    if status.measured:
        yield Text(_measured(status.measured))
    if status.attempts:
        yield Text("\nAttempts", style="bold")
        yield _attempts(status.attempts)
    if status.artifact:
        yield Text(f"\nModel: {status.artifact.uri}", style="green")


def _title(job: Manifest, status: FineTuneJobStatus) -> Text:
    namespace = (job.get("metadata") or {}).get("namespace", "default")
    text = Text(f"{namespace}/{job_name(job)}", style="bold")
    return text.append(f"  {status.phase}", style=_COLOURS.get(status.phase, "cyan"))


def _progress(progress: Progress) -> Iterator[RenderableType]:
    if progress.total_steps:
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=40)
        row.add_row(bar, f"{progress.step / progress.total_steps:.0%}", progress.activity)
        yield row
    yield Text("  ".join(_numbers(progress)))


def _numbers(progress: Progress) -> list[str]:
    said = {
        "step": progress.steps or None,
        "loss": progress.loss,
        "held-out loss": progress.eval_loss,
        "before training": progress.eval_loss_before,
    }
    numbers = [f"{name} {value}" for name, value in said.items() if value is not None]
    if progress.tokens_per_second is not None:
        numbers.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds:
        numbers.append(f"{duration(progress.eta_seconds)} left")
    return numbers


def duration(seconds: float) -> str:
    """Return a time span for people, such as 2h 5m or 40s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def _stability(stability: Stability) -> Iterator[RenderableType]:
    yield Text(f"Stability: {stability.verdict}", style=_VERDICTS[stability.verdict])
    for finding in stability.findings:
        seen = f"step {finding.step}, {finding.rule}: {finding.message} {finding.advice}"
        yield Text(f"- {seen}")


def _used(usage: Usage) -> str:
    cost = "" if usage.cost is None else f", {amount(usage.cost)} {usage.currency}"
    expected = usage.expected_gpu_hours
    how = " by arithmetic" if usage.expected_basis == "Arithmetic" else ""
    of = "" if expected is None else f" (about {amount(expected)} expected{how})"
    return f"Used: {amount(usage.gpu_hours)} GPU-hours{of}{cost}"


def _measured(measured: Measured) -> str:
    on_gpu = measured.gpu_memory_gib is not None
    peak = measured.gpu_memory_gib if on_gpu else measured.host_memory_gib
    text = f"Measured: {peak} GiB of {'GPU' if on_gpu else 'host'} memory"
    if measured.memory_error is None:
        return text
    return f"{text}, estimated {measured.estimated_memory_gib} ({measured.memory_error:+.1%})"


def _attempts(attempts: list[Attempt]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for attempt in attempts:
        finish = attempt.finish_time
        took = duration((finish - attempt.start_time).total_seconds()) if finish else ""
        outcome = attempt.reason or attempt.state
        step = "" if attempt.step is None else f"step {attempt.step}"
        name = f"{attempt.role} {attempt.number}"
        table.add_row(name, outcome, took, step, attempt.message or "")
    return table
