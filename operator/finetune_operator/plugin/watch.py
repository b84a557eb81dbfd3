"""kubectl finetune status, logs and report."""

from contextlib import suppress

from rich.console import Console
from rich.live import Live

from finetune_api import names
from finetune_api.status import Attempt, Phase
from finetune_operator.plugin import terminal
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.kubectl import Cluster, status_of
from finetune_operator.plugin.status_view import is_finished, line, view


def show_status(cluster: Cluster, name: str, *, follow: bool) -> int:
    """Print a job's status, with follow until it is finished; return 1 when it failed."""
    console = terminal.console()
    if not follow:
        job = cluster.job(name)
        console.print(view(job))
        return _exit_code(status_of(job).phase)
    with suppress(KeyboardInterrupt):
        return _follow(cluster, name, console)
    return 130


def _follow(cluster: Cluster, name: str, console: Console) -> int:
    """Redraw a terminal at every change; anywhere else print one line for each."""
    said = ""
    with Live(console=console, auto_refresh=False) as live:
        for job in cluster.watch(name):
            if job is None:
                raise PluginError(f"FineTuneJob {name} was deleted.")
            status = status_of(job)
            if console.is_terminal:
                live.update(view(job), refresh=True)
            elif (now := line(job)) != said:
                console.print(now, soft_wrap=True)
                said = now
            if is_finished(status):
                if not console.is_terminal:
                    console.print(status.message, soft_wrap=True)
                return _exit_code(status.phase)
    raise PluginError("the watch ended before the job did: start it again.")


def _exit_code(phase: Phase) -> int:
    return 1 if phase is Phase.FAILED else 0


def show_logs(cluster: Cluster, name: str, *, follow: bool) -> int:
    """Pass on the log of the newest attempt's first pod; return kubectl's exit code."""
    status = status_of(cluster.job(name))
    if not status.attempts:
        raise PluginError(f"{name} has no pod yet, it is {status.phase}: {status.message}")
    pod = _pod(name, status.attempts[-1])
    return cluster.pass_through("logs", pod, *(["--follow"] if follow else []))


def _pod(name: str, attempt: Attempt) -> str:
    rank = "-0" if attempt.role == names.TRAINER_ROLE else ""
    return f"{name}-{attempt.role}-{attempt.number}{rank}"


def show_report(cluster: Cluster, name: str) -> None:
    """Print where a finished job's report is; PluginError when there is none."""
    status = status_of(cluster.job(name))
    if status.artifact is None:
        raise PluginError(f"{name} has no report yet, it is {status.phase}: {status.message}")
    claim, _, path = status.artifact.uri.removeprefix("pvc://").partition("/")
    terminal.console().print(
        f"{status.artifact.uri}/report.html\n"
        f"With a pod that mounts the claim {claim} at /models:\n"
        f"  kubectl cp POD:/models/{path}/report.html report.html",
        soft_wrap=True,
    )
