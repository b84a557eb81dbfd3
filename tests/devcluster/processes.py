"""Daemons that outlive the command that started them, and are never mistaken for another's.

A pid alone proves nothing after a crash: the kernel reuses pids. A record therefore holds the
boot, the start time and the command line, and only a process that matches all is ours.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster.layout import ClusterError

ENTER_NETWORK = ("/usr/bin/nsenter", "--net=")


@dataclass(frozen=True)
class Record:
    """Who a daemon is, as written to its pid file."""

    pid: int
    boot: str
    start_ticks: int
    argv: list[str]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Clock ticks between boot and the start of `pid`; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_running(record: Record) -> bool:
    """Whether the recorded process, and not a later one with its pid, is alive."""
    if record.boot != boot_id() or start_ticks(record.pid) != record.start_ticks:
        return False
    argv = command_line(record.pid)
    if argv[:1] == [ENTER_NETWORK[0]]:  # Not yet replaced by the command it starts.
        argv = argv[2:]
    # In the middle of an exec a process has no command line for a moment.
    return argv in ([""], record.argv)


class Daemons:
    """The daemons of one cluster: pid files in `<state>/pids`, output in `<state>/log`."""

    def __init__(self, state: Path) -> None:
        self._pids = state / "pids"
        self._logs = state / "log"

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        network: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start `argv` in its own session, in the network namespace `network` if given."""
        command = [str(word) for word in argv]
        full = [ENTER_NETWORK[0], f"{ENTER_NETWORK[1]}{network}", *command] if network else command
        self._pids.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = str(self._logs / f"{name}.log")
        output_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            full[0],
            full,
            {**daemon_environment(), **(environment or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, output_flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE],
        )
        record = Record(pid, boot_id(), start_ticks(pid) or 0, command)
        self._pid_file(name).write_text(json.dumps(asdict(record)))

    def names(self) -> list[str]:
        """Daemons that were started and not stopped, alive or not."""
        return sorted(file.stem for file in self._pids.glob("*.json"))

    def record(self, name: str) -> Record | None:
        try:
            return Record(**json.loads(self._pid_file(name).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # Cut short by a crash: it names nobody.
            return None

    def running(self, name: str) -> bool:
        record = self.record(name)
        return record is not None and is_running(record)

    def send(self, name: str, number: signal.Signals) -> None:
        record = self.record(name)
        if record is not None and is_running(record):
            os.kill(record.pid, number)

    def stop(
        self, name: str, *, first: signal.Signals = signal.SIGTERM, grace: float = 5.0
    ) -> None:
        """Send `first`, and SIGKILL to what is still there after `grace` seconds."""
        record = self.record(name)
        if record is not None:
            for number in (first, signal.SIGKILL):
                self.send(name, number)
                if _gone_within(record, grace):
                    break
        self._pid_file(name).unlink(missing_ok=True)

    def log_tail(self, name: str, lines: int = 15) -> str:
        log = self._logs / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

    def wait(self, name: str, ready: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Wait until `ready()`; fail with the daemon's last words if it ends or is late."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running(name):
                raise ClusterError(f"{name} ended before {what}; its log:\n{self.log_tail(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name}: not {what} after {seconds:.0f} s; its log:\n{self.log_tail(name)}"
                )
            time.sleep(0.1)

    def _pid_file(self, name: str) -> Path:
        return self._pids / f"{name}.json"


def daemon_environment() -> dict[str, str]:
    """Ours without proxies (all traffic is local) and with the system's tools on $PATH."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**kept, "PATH": f"{kept.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"}


def _gone_within(record: Record, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _reap(record.pid)
        if not is_running(record):
            return True
        time.sleep(0.02)
    return False


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        # Started by an earlier command: init reaps it.
        return
