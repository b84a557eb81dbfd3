"""Lists everything once in a while: the safety net under the watches."""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Final

from finetune_api import names
from finetune_operator.api import JOBS, PODS, Api, ApiError, Resource
from finetune_operator.metrics import MISSED_EVENTS
from finetune_operator.nodes import Nodes
from finetune_operator.queue import Queue
from finetune_operator.store import Body, Key, Store

logger = logging.getLogger(__name__)

_WATCH_DELAY: Final = 5.0
"""A watch that lives has delivered by then what a list has seen."""
_AFTER_RELIST: Final = 2.0


class Resync:
    """Replaces the store by lists: at the start, every few minutes, and after a watch was lost."""

    def __init__(
        self,
        api: Api,
        store: Store,
        queue: Queue[Key],
        *,
        namespaces: Sequence[str],
        interval: float,
        nodes: Nodes | None = None,
    ) -> None:
        self._api = api
        self._store = store
        self._queue = queue
        self._scopes: list[str | None] = list(namespaces) or [None]
        self._interval = interval
        self._nodes = nodes
        self._requested = asyncio.Event()
        self.stale = 0
        """How many scheduled resyncs in a row found what the watches had missed."""

    async def fill(self) -> None:
        """Fill the store before the first decision is made; ApiError when that cannot be done."""
        await self._refresh_nodes()
        self._store.replace_all(*await self._list())
        self._enqueue_all()

    def request(self) -> None:
        """Resync soon: kopf has listed anew and tells nobody what was deleted in between."""
        self._requested.set()

    async def run(self) -> None:
        """Resync for ever."""
        while True:
            requested = await self._wait()
            try:
                await self._refresh_nodes()
                jobs, pods, versions = await self._list()
            except ApiError as error:
                # The next one may work; the watches go on.
                logger.warning("resync failed", extra={"error": str(error)})
                continue
            await asyncio.sleep(_WATCH_DELAY)
            missed = self._store.replace_all(jobs, pods, versions)
            if not requested:
                self.stale = self.stale + 1 if missed else 0
                MISSED_EVENTS.inc(missed)
            self._enqueue_all()

    async def _wait(self) -> bool:
        """Return whether a resync was asked for before the next one was due."""
        interval = self._interval * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
        try:
            async with asyncio.timeout(interval):
                await self._requested.wait()
        except TimeoutError:
            return False
        await asyncio.sleep(_AFTER_RELIST)
        self._requested.clear()
        return True

    async def _refresh_nodes(self) -> None:
        if self._nodes is not None:
            await self._nodes.refresh()

    async def _list(self) -> tuple[list[Body], list[Body], tuple[str, str]]:
        selector = f"{names.MANAGED_BY_LABEL}={names.MANAGER}"
        jobs, jobs_version = await self._list_scopes(JOBS, "")
        pods, pods_version = await self._list_scopes(PODS, selector)
        return jobs, pods, (jobs_version, pods_version)

    async def _list_scopes(self, resource: Resource, selector: str) -> tuple[list[Body], str]:
        pages = [await self._api.list(resource, scope, selector) for scope in self._scopes]
        # The oldest of the versions: what is newer than it may be absent only from that list.
        version = min((version for _, version in pages), key=int)
        return [body for bodies, _ in pages for body in bodies], version

    def _enqueue_all(self) -> None:
        for key, _ in self._store.jobs():
            self._queue.add(key)
