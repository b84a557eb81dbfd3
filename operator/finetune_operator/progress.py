"""Follows the /progress of running trainer pods, outside the work queue."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
from pydantic import ValidationError

from finetune_api import names
from finetune_api.trainer import ProgressReport
from finetune_operator.api import Api, ApiError
from finetune_operator.store import Key

logger = logging.getLogger(__name__)

_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)
_LONGEST_REPORT: Final = 64 * 1024
"""A pod is not trusted: whatever it serves must not fill the operator's memory."""
_MISSES_WORTH_A_WORD: Final = 5
_SOONEST, _LATEST, _LATEST_AFTER_ERRORS = 5.0, 15.0, 60.0
_SOONEST_WRITE, _LATEST_WRITE = 15.0, 60.0


@dataclass(frozen=True)
class Target:
    """The pod whose progress is read."""

    uid: str
    namespace: str
    pod: str
    ip: str


Reader = Callable[[Target], Awaitable[ProgressReport]]


class DirectReader:
    """Reads from the pod's own address: how the operator in the cluster does it."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False)

    async def __call__(self, target: Target) -> ProgressReport:
        """Return the report; ClientError, TimeoutError or ValidationError when there is none."""
        host = f"[{target.ip}]" if ":" in target.ip else target.ip
        url = f"http://{host}:{names.METRICS_PORT}/progress"
        async with self._session.get(url, allow_redirects=False) as response:
            response.raise_for_status()
            return ProgressReport.read_json(await _read(response.content))

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _read(content: aiohttp.StreamReader) -> bytes:
    text = b""
    while chunk := await content.read(_LONGEST_REPORT + 1 - len(text)):
        text += chunk
    if len(text) > _LONGEST_REPORT:
        raise aiohttp.ClientPayloadError(f"a report is longer than {_LONGEST_REPORT} bytes")
    return text


def proxy_reader(api: Api) -> Reader:
    """Return a reader that goes through the API server: for an operator outside the cluster."""

    async def read(target: Target) -> ProgressReport:
        answer = await api.proxy(target.namespace, target.pod, names.METRICS_PORT, "progress")
        return ProgressReport.read(answer)

    return read


class Follower:
    """Polls one pod for each running job and wakes the job when people would see a difference."""

    def __init__(self, read: Reader, wake: Callable[[Key], None]) -> None:
        self._read = read
        self._wake = wake
        self._tasks: dict[Key, tuple[Target, asyncio.Task[None]]] = {}
        self._reports: dict[Key, ProgressReport] = {}

    def follow(self, key: Key, target: Target | None) -> None:
        """Follow this pod and no other for a job; None follows none."""
        current = self._tasks.get(key)
        if current is not None and current[0] == target:
            return
        if current is not None:
            current[1].cancel()
            del self._tasks[key]
        self._reports.pop(key, None)
        if target is not None:
            self._tasks[key] = (target, asyncio.create_task(self._poll(key, target)))

    def following(self, key: Key) -> str | None:
        """Return the name of the pod that is followed for a job."""
        current = self._tasks.get(key)
        return None if current is None else current[0].pod

    def report(self, key: Key) -> ProgressReport | None:
        """Return what the followed pod said last."""
        return self._reports.get(key)

    async def _poll(self, key: Key, target: Target) -> None:
        loop = asyncio.get_running_loop()
        started = written = loop.time()
        pause, shown, misses = _SOONEST, None, 0
        while True:
            await asyncio.sleep(pause)
            elapsed = loop.time() - started
            report = await self._try(key, target, misses)
            if report is None:
                misses += 1
                pause = min(pause * 2, _LATEST_AFTER_ERRORS)
                continue
            misses = 0
            pause = _clamp(elapsed / 20, _SOONEST, _LATEST)
            self._reports[key] = report
            due = shown is None or loop.time() - written >= _clamp(
                elapsed / 60, _SOONEST_WRITE, _LATEST_WRITE
            )
            if due and visible(report) != shown:
                shown, written = visible(report), loop.time()
                self._wake(key)

    async def _try(self, key: Key, target: Target, misses: int) -> ProgressReport | None:
        """Return what the pod says; None, and after several misses in a row a word, if nothing."""
        try:
            return await self._read(target)
        except (aiohttp.ClientError, TimeoutError, ApiError, ValidationError) as error:
            level = logging.WARNING if misses + 1 == _MISSES_WORTH_A_WORD else logging.DEBUG
            fields = {"namespace": key[0], "job": key[1], "pod": target.pod}
            fields["error"] = str(error) or type(error).__name__
            logger.log(level, "the trainer does not tell its progress", extra=fields)
            return None


def visible(report: ProgressReport) -> tuple[Any, ...]:
    """Return what people see of a report."""
    progress, stability = report.progress, report.stability
    return (
        progress.activity,
        progress.step,
        progress.total_steps,
        progress.loss,
        progress.eval_loss,
        progress.checkpoint_step,
        stability and (stability.verdict, [(one.rule, one.step) for one in stability.findings]),
    )


def _clamp(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))
