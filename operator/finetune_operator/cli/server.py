"""/healthz, /readyz and /metrics on one port."""

from collections import Counter
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_api.status import Phase
from finetune_operator.metrics import JOBS, QUEUE_DEPTH, QUEUE_OLDEST, REGISTRY
from finetune_operator.queue import Queue
from finetune_operator.resync import Resync
from finetune_operator.store import Key, Store

_STUCK_AFTER: Final = 180.0
_STALE_RESYNCS: Final = 2


class Health:
    """Knows whether the operator does its work."""

    def __init__(self, queue: Queue[Key], resync: Resync) -> None:
        self._queue = queue
        self._resync = resync
        self.ready = False
        """Whether the store has been filled."""

    def complaint(self) -> str | None:
        """Return what is wrong; None when the operator is healthy."""
        if self._queue.stuck(_STUCK_AFTER):
            return f"the work queue has not moved for {_STUCK_AFTER:.0f} seconds"
        if self._resync.stale >= _STALE_RESYNCS:
            return (
                f"the watches missed changes before each of the last {self._resync.stale} resyncs"
            )
        return None


def application(health: Health, store: Store, queue: Queue[Key]) -> web.Application:
    """Return the web application."""

    async def healthz(_: web.Request) -> web.Response:
        complaint = health.complaint()
        return web.Response(text=complaint or "ok", status=503 if complaint else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(
            text="ok" if health.ready else "the first listing is not done",
            status=200 if health.ready else 503,
        )

    async def metrics(_: web.Request) -> web.Response:
        _measure(store, queue)
        return web.Response(
            body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _measure(store: Store, queue: Queue[Key]) -> None:
    phases = Counter(
        (body.get("status") or {}).get("phase", Phase.PENDING.value) for _, body in store.jobs()
    )
    for phase in Phase:
        JOBS.labels(phase.value).set(phases[phase.value])
    QUEUE_DEPTH.set(queue.depth)
    QUEUE_OLDEST.set(queue.oldest())
