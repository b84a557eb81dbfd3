"""Following the progress of trainers, in virtual time."""

import asyncio
from itertools import pairwise

import aiohttp
import pytest

from finetune_api.status import Progress, Stability
from finetune_api.trainer import ProgressReport
from finetune_operator.progress import Follower, Target
from finetune_operator.store import Key

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

KEY = ("team", "job")
TARGET = Target("uid", "team", "job-trainer-1-0", "10.0.0.1")


class Trainer:
    """Answers with a step that grows by one each second, or not at all."""

    def __init__(self, *, frozen: bool = False, broken: bool = False) -> None:
        self.asked: list[float] = []
        self._frozen, self._broken = frozen, broken

    async def __call__(self, _: Target) -> ProgressReport:
        now = asyncio.get_running_loop().time()
        self.asked.append(now)
        if self._broken:
            raise aiohttp.ClientError
        step = 1 if self._frozen else int(now)
        return ProgressReport(
            progress=Progress(activity="Training", step=step),
            stability=Stability(verdict="Stable"),
        )


async def follow(trainer: Trainer, seconds: float) -> list[float]:
    """Return when the job was woken."""
    woken: list[float] = []

    def wake(key: Key) -> None:
        assert key == KEY
        woken.append(asyncio.get_running_loop().time())

    follower = Follower(trainer, wake)
    follower.follow(KEY, TARGET)
    await asyncio.sleep(seconds)
    follower.follow(KEY, None)
    assert follower.report(KEY) is None
    return woken


async def test_a_change_is_told_at_most_every_15_seconds() -> None:
    trainer = Trainer()
    woken = await follow(trainer, 120)
    assert woken[0] == pytest.approx(5)
    pauses = [later - earlier for earlier, later in pairwise(woken)]
    assert min(pauses) >= 15
    assert max(pauses) <= 25
    assert len(trainer.asked) >= 15


async def test_nothing_new_wakes_nobody() -> None:
    assert len(await follow(Trainer(frozen=True), 300)) == 1


async def test_a_trainer_that_does_not_answer_is_asked_less_and_less() -> None:
    trainer = Trainer(broken=True)
    assert await follow(trainer, 600) == []
    assert len(trainer.asked) < 20


async def test_a_new_pod_starts_anew() -> None:
    follower = Follower(Trainer(), lambda _: None)
    follower.follow(KEY, TARGET)
    await asyncio.sleep(6)
    assert follower.report(KEY) is not None
    follower.follow(KEY, Target("other", "team", "job-trainer-2-0", "10.0.0.2"))
    assert follower.report(KEY) is None
    assert follower.following(KEY) == "job-trainer-2-0"
    follower.follow(KEY, None)
