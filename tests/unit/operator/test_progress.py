"""Following the progress of trainers, in virtual time."""

import asyncio
from itertools import pairwise

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError

from finetune_api import names
from finetune_api.status import Progress, Stability
from finetune_api.trainer import ProgressReport
from finetune_operator.progress import DirectReader, Follower, Target
from finetune_operator.store import Key

pytestmark = pytest.mark.asyncio

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


@pytest.mark.looptime
async def test_a_change_is_told_at_most_every_15_seconds() -> None:
    trainer = Trainer()
    woken = await follow(trainer, 120)
    assert woken[0] == pytest.approx(5)
    pauses = [later - earlier for earlier, later in pairwise(woken)]
    assert min(pauses) >= 15
    assert max(pauses) <= 25
    assert len(trainer.asked) >= 15


@pytest.mark.looptime
async def test_nothing_new_wakes_nobody() -> None:
    assert len(await follow(Trainer(frozen=True), 300)) == 1


@pytest.mark.looptime
async def test_a_trainer_that_does_not_answer_is_asked_less_and_less() -> None:
    trainer = Trainer(broken=True)
    assert await follow(trainer, 600) == []
    assert len(trainer.asked) < 20


@pytest.mark.looptime
async def test_a_trainer_that_does_not_answer_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await follow(Trainer(broken=True), 60)
    assert caplog.records == []
    await follow(Trainer(broken=True), 1200)
    assert [(one.levelname, one.__dict__["pod"]) for one in caplog.records] == [
        ("WARNING", "job-trainer-1-0")
    ]


@pytest.mark.looptime
async def test_a_new_pod_starts_anew() -> None:
    follower = Follower(Trainer(), lambda _: None)
    follower.follow(KEY, TARGET)
    await asyncio.sleep(6)
    assert follower.report(KEY) is not None
    follower.follow(KEY, Target("other", "team", "job-trainer-2-0", "10.0.0.2"))
    assert follower.report(KEY) is None
    assert follower.following(KEY) == "job-trainer-2-0"
    follower.follow(KEY, None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (web.Response(status=302, headers={"Location": "/elsewhere"}), ValidationError),
        (web.Response(body=b" " * 64 * 1024 + b"{}"), aiohttp.ClientPayloadError),
        (web.Response(status=503), aiohttp.ClientResponseError),
    ],
)
async def test_a_pod_is_not_trusted(
    answer: web.Response, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def progress(_: web.Request) -> web.Response:
        return answer

    async def elsewhere(_: web.Request) -> web.Response:
        return web.Response(text=(await Trainer()(TARGET)).model_dump_json(by_alias=True))

    app = web.Application()
    app.router.add_get("/progress", progress)
    app.router.add_get("/elsewhere", elsewhere)
    async with TestServer(app) as server, DirectReader() as read:
        monkeypatch.setattr(names, "METRICS_PORT", server.port)
        with pytest.raises(error):
            await read(Target("uid", "team", "job-trainer-1-0", "127.0.0.1"))
