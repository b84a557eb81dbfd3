"""Puts the parts together and keeps them running until a signal."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Sequence

import kopf
from aiohttp import web

from finetune_operator.api import Api, ApiError, load_configuration
from finetune_operator.cli import logs, settings
from finetune_operator.cli.server import Health, application
from finetune_operator.handlers import make_registry, operator_settings
from finetune_operator.nodes import Nodes
from finetune_operator.planning import Inventory
from finetune_operator.progress import DirectReader, Follower, Reader, proxy_reader
from finetune_operator.queue import Queue
from finetune_operator.reconcile import Reconciler, labels
from finetune_operator.resync import Resync
from finetune_operator.store import Key, Store

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = settings.parse(sys.argv[1:] if arguments is None else arguments)
    logs.configure(options.log_level, options.log_format)
    try:
        asyncio.run(run(options))
    except KeyboardInterrupt:
        return 130
    except Exception:
        # Such as an error that the API server sent inside a watch: a new process starts clean.
        logger.critical("the operator ends", exc_info=True)
        return 1
    return 0


async def run(options: settings.Settings) -> None:
    """Run the operator until a signal."""
    async with _connected(options) as (api, read):
        queue: Queue[Key] = Queue(expected=(ApiError,), describe=labels)
        store = Store()
        nodes = Nodes(api) if options.nodes == "watch" else None
        resync = Resync(
            api,
            store,
            queue,
            namespaces=options.namespaces,
            interval=options.resync_seconds,
            nodes=nodes,
        )
        health = Health(queue, resync)
        follower = Follower(read, queue.add)
        reconciler = Reconciler(
            api,
            store,
            follower,
            options.trainer,
            queue.add,
            prices=options.prices,
            inventory=nodes.inventory if nodes is not None else Inventory,
        )
        async with _serving(options, application(health, store, queue)):
            await _fill(resync)
            health.ready = True
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(queue.run(reconciler, workers=options.workers)),
                    group.create_task(resync.run()),
                ]
                await _watch(options, store, queue, resync, nodes)
                for task in background:
                    task.cancel()


@contextlib.asynccontextmanager
async def _connected(options: settings.Settings) -> AsyncIterator[tuple[Api, Reader]]:
    api = await Api.connect(options.context)
    try:
        if options.progress_via == "proxy":
            yield api, proxy_reader(api)
        else:
            async with DirectReader() as reader:
                yield api, reader
    finally:
        await api.close()


@contextlib.asynccontextmanager
async def _serving(options: settings.Settings, app: web.Application) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.address, options.port).start()
        host, port = runner.addresses[0][:2]
        logger.info("serving", extra={"address": host, "port": port})
        yield
    finally:
        await runner.cleanup()


async def _fill(resync: Resync) -> None:
    while True:
        try:
            await resync.fill()
        except ApiError as error:
            logger.warning("cannot list FineTuneJobs and pods yet", extra={"error": str(error)})
            await asyncio.sleep(2)
        else:
            return


async def _watch(
    options: settings.Settings,
    store: Store,
    queue: Queue[Key],
    resync: Resync,
    nodes: Nodes | None,
) -> None:
    """Run kopf until a signal."""
    # kopf ends every task that is younger than its own: the workers must be older.
    await asyncio.sleep(0)
    await kopf.operator(
        registry=make_registry(
            store, queue, lambda: load_configuration(options.context), resync.request, nodes
        ),
        settings=operator_settings(),
        standalone=True,
        clusterwide=not options.namespaces,
        namespaces=options.namespaces,
    )
