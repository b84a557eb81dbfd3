"""The work queue, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from finetune_operator.queue import Queue

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

Handler = Callable[[str], Awaitable[float | None]]


@asynccontextmanager
async def working(queue: Queue[str], handle: Handler, workers: int = 2) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(handle, workers=workers))
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Recorder:
    """A handler that notes when it was called for what."""

    def __init__(self, *, takes: float = 0, again: float | None = None, errors: int = 0) -> None:
        self.calls: list[tuple[str, float]] = []
        self.at_once = 0
        self._takes, self._again, self._errors = takes, again, errors
        self._inside: set[str] = set()

    async def __call__(self, key: str) -> float | None:
        assert key not in self._inside, "two workers on one key"
        self._inside.add(key)
        self.at_once = max(self.at_once, len(self._inside))
        self.calls.append((key, asyncio.get_running_loop().time()))
        await asyncio.sleep(self._takes)
        self._inside.discard(key)
        if len(self.calls) <= self._errors:
            raise OSError("no route to host")
        return self._again

    def times(self, key: str) -> list[float]:
        return [time for called, time in self.calls if called == key]


async def test_a_key_that_waits_is_worked_on_once() -> None:
    queue, handle = Queue[str](), Recorder()
    for _ in range(3):
        queue.add("a")
    assert queue.depth == 1
    async with working(queue, handle):
        await asyncio.sleep(1)
    assert len(handle.calls) == 1


async def test_a_key_added_while_it_is_worked_on_comes_up_once_more() -> None:
    queue, handle = Queue[str](), Recorder(takes=10)
    async with working(queue, handle):
        queue.add("a")
        await asyncio.sleep(5)
        queue.add("a")
        queue.add("a")
        await asyncio.sleep(60)
    assert handle.times("a") == [pytest.approx(0), pytest.approx(10)]


async def test_keys_are_worked_on_at_the_same_time_up_to_the_workers() -> None:
    queue, handle = Queue[str](), Recorder(takes=10)
    async with working(queue, handle, workers=3):
        for key in "abcde":
            queue.add(key)
        await asyncio.sleep(60)
    assert handle.at_once == 3
    assert len(handle.calls) == 5


async def test_the_handler_says_when_it_wants_a_key_again() -> None:
    queue, handle = Queue[str](), Recorder(again=100)
    async with working(queue, handle):
        queue.add("a")
        await asyncio.sleep(250)
    assert handle.times("a") == [pytest.approx(0), pytest.approx(100), pytest.approx(200)]


async def test_a_change_replaces_the_appointment() -> None:
    queue, handle = Queue[str](), Recorder(again=100)
    async with working(queue, handle):
        queue.add("a")
        await asyncio.sleep(50)
        queue.add("a")
        await asyncio.sleep(90)
    assert handle.times("a") == [pytest.approx(0), pytest.approx(50)]


async def test_errors_back_off_and_leave_other_keys_alone(caplog: pytest.LogCaptureFixture) -> None:
    queue, handle = Queue[str](expected=(OSError,)), Recorder(errors=4)
    async with working(queue, handle):
        queue.add("a")
        await asyncio.sleep(60)
        queue.add("b")
        await asyncio.sleep(1)
    times = handle.times("a")
    pauses = [later - earlier for earlier, later in pairwise(times)]
    for pause, expected in zip(pauses, (0.5, 1, 2, 4), strict=True):
        assert expected * 0.75 <= pause <= expected * 1.25
    assert len(handle.times("b")) == 1
    assert all(record.exc_info is None for record in caplog.records)


async def test_unexpected_errors_have_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    queue, handle = Queue[str](), Recorder(errors=1)
    async with working(queue, handle):
        queue.add("a")
        await asyncio.sleep(10)
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_it_knows_when_it_is_stuck() -> None:
    queue = Queue[str]()
    await asyncio.sleep(1000)
    assert not queue.stuck(100), "an idle queue is not stuck"
    queue.add("a")
    await asyncio.sleep(50)
    assert queue.oldest() == pytest.approx(50)
    assert not queue.stuck(100)
    await asyncio.sleep(100)
    assert queue.stuck(100)
