"""The safety net under the watches, in virtual time."""

import asyncio
from typing import Any

import pytest

from finetune_operator.api import PODS, ApiError, Resource
from finetune_operator.queue import Queue
from finetune_operator.resync import Resync
from finetune_operator.store import Key, Store
from unit.operator.builders import OWNER, make_job_body, make_pod_body

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


class Listing:
    """An API server with one job, and its pod until it is deleted."""

    def __init__(self) -> None:
        self.pods = [make_pod_body(version=2)]
        self.lists = 0
        self.broken = False

    async def list(self, resource: Resource, _namespace: Any, _selector: str) -> Any:
        if self.broken:
            raise ApiError("LIST", resource.plural, 0, "away")
        self.lists += 1
        return (self.pods if resource is PODS else [make_job_body(version=1)]), "9"


def make_resync(api: Any) -> tuple[Resync, Store, Queue[Key]]:
    store, queue = Store(), Queue[Key]()
    return Resync(api, store, queue, namespaces=(), interval=600), store, queue


async def test_it_fills_the_store_and_the_queue() -> None:
    resync, store, queue = make_resync(Listing())
    await resync.fill()
    assert store.job(("team", "job")) is not None
    assert len(store.pods(OWNER)) == 1
    assert queue.depth == 1


async def test_it_repairs_the_store_and_knows_that_the_watches_are_stale() -> None:
    api = Listing()
    resync, store, _ = make_resync(api)
    await resync.fill()
    task = asyncio.create_task(resync.run())
    api.pods = []
    await asyncio.sleep(700)
    assert store.pods(OWNER) == []
    assert resync.stale == 1
    await asyncio.sleep(700)
    assert resync.stale == 0, "nothing was missed since"
    task.cancel()


async def test_a_lost_watch_is_followed_by_a_resync_soon() -> None:
    api = Listing()
    resync, store, _ = make_resync(api)
    await resync.fill()
    task = asyncio.create_task(resync.run())
    api.pods = []
    for _ in range(50):
        resync.request()
    await asyncio.sleep(20)
    assert store.pods(OWNER) == []
    assert api.lists == 4, "one for all the objects that were listed anew"
    assert resync.stale == 0
    task.cancel()


async def test_it_survives_an_api_server_that_is_away() -> None:
    api = Listing()
    resync, store, _ = make_resync(api)
    await resync.fill()
    task = asyncio.create_task(resync.run())
    api.broken = True
    await asyncio.sleep(700)
    api.broken, api.pods = False, []
    await asyncio.sleep(700)
    assert store.pods(OWNER) == []
    task.cancel()
