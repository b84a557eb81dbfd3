"""A work queue of keys: one worker at a time for each key, back-off after errors."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

logger = logging.getLogger(__name__)


class Queue(Generic[K]):
    """Keys to be worked on; a key that is added while it is worked on comes up once more."""

    def __init__(
        self,
        *,
        expected: tuple[type[Exception], ...] = (),
        describe: Callable[[K], dict[str, Any]] = lambda key: {"key": key},
        first_backoff: float = 0.5,
        longest_backoff: float = 60.0,
    ) -> None:
        self._expected = expected
        """Errors that need no traceback."""
        self._describe = describe
        self._first_backoff = first_backoff
        self._longest_backoff = longest_backoff
        self._waiting: deque[K] = deque()
        self._since: dict[K, float] = {}
        """When each waiting key was added."""
        self._working: dict[K, float] = {}
        """When a worker took each key."""
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._errors: dict[K, int] = {}
        self._available = asyncio.Semaphore(0)
        self._moved = 0.0

    def add(self, key: K) -> None:
        """Have a key worked on soon."""
        self._cancel_timer(key)
        if key in self._working:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = _now()
            self._waiting.append(key)
            self._available.release()

    def add_after(self, key: K, seconds: float) -> None:
        """Have a key worked on later, in place of any earlier appointment."""
        self._cancel_timer(key)
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.add, key)

    @property
    def depth(self) -> int:
        """How many keys wait for a worker."""
        return len(self._waiting)

    def oldest(self) -> float:
        """Return for how many seconds the oldest key has waited or been worked on; 0 when idle."""
        times = [*self._since.values(), *self._working.values()]
        return _now() - min(times) if times else 0.0

    def stuck(self, limit: float) -> bool:
        """Return whether there is work, and none of it has moved for so many seconds."""
        return min(self.oldest(), _now() - self._moved) > limit

    async def run(self, handle: Callable[[K], Awaitable[float | None]], *, workers: int) -> None:
        """Work until cancelled; handle returns after how many seconds it wants the key again."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(handle))

    async def _work(self, handle: Callable[[K], Awaitable[float | None]]) -> None:
        while True:
            await self._available.acquire()
            key = self._waiting.popleft()
            del self._since[key]
            self._working[key] = self._moved = _now()
            try:
                again_after = await handle(key)
            except Exception as error:  # noqa: BLE001 - one key's error must not stop the others
                again_after = self._backoff(key, error)
            else:
                self._errors.pop(key, None)
            finally:
                del self._working[key]
                self._moved = _now()
            self._finish(key, again_after)

    def _finish(self, key: K, again_after: float | None) -> None:
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif again_after is not None:
            self.add_after(key, again_after)
        else:
            self._cancel_timer(key)

    def _backoff(self, key: K, error: Exception) -> float:
        errors = self._errors[key] = self._errors.get(key, 0) + 1
        delay = min(self._first_backoff * 2.0 ** min(errors - 1, 16), self._longest_backoff)
        delay *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter, not cryptography
        extra = {**self._describe(key), "errors": errors, "error": str(error)}
        trace = None if isinstance(error, self._expected) else error
        logger.warning("reconcile failed, again in %.1f s", delay, extra=extra, exc_info=trace)
        return delay

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()
