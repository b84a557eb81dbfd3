"""kopf as the source of events: every change goes into the store, what matters into the queue."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import kopf
from kubernetes.aio import client

from finetune_api import names
from finetune_operator.nodes import Nodes
from finetune_operator.queue import Queue
from finetune_operator.store import Body, Key, Store, job_key, pod_job_key

EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"] | None
"""None: the object was listed, at the start or after a watch was lost."""


class Backoffs:
    """Pauses between tries, without end: an API server that is away comes back."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1, 2, 3, 5)
        while True:
            yield 10


class NoProgress(kopf.ProgressStorage):
    """There are no change-detecting handlers: kopf has nothing to remember on objects."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class NoDiffBase(kopf.DiffBaseStorage):
    """Without it kopf copies every object several times to find changes that nobody asked for."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def operator_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: it watches, and writes nothing."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.level = logging.CRITICAL
    settings.watching.label_selectors["v1", "pods"] = f"{names.MANAGED_BY_LABEL}={names.MANAGER}"
    settings.watching.label_selectors["v1", "nodes"] = names.GPU_PRODUCT_LABEL
    settings.watching.server_timeout = 600
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Backoffs()
    settings.networking.enforce_retry_after = True
    settings.persistence.progress_storage = NoProgress()
    settings.persistence.diffbase_storage = NoDiffBase()
    return settings


def make_registry(
    store: Store,
    queue: Queue[Key],
    login: Callable[[], Awaitable[client.Configuration]],
    listed: Callable[[], None],
    nodes: Nodes | None = None,
) -> kopf.OperatorRegistry:
    """Return the handlers; listed is called for objects that were listed instead of watched.

    Without nodes, or when they may not be looked at, they are not watched.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def credentials(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(await login())

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def job_event(event: kopf.RawEvent, **_: Any) -> None:
        job_changed(store, queue, event["type"], dict(event["object"]))
        if event["type"] is None:
            listed()

    @kopf.on.event("v1", "pods", registry=registry)
    async def pod_event(event: kopf.RawEvent, **_: Any) -> None:
        pod_changed(store, queue, event["type"], dict(event["object"]))
        if event["type"] is None:
            listed()

    if nodes is not None and nodes.known:
        kopf.on.event("v1", "nodes", registry=registry)(_node_handler(nodes))

    return registry


def _node_handler(nodes: Nodes) -> Callable[..., Awaitable[None]]:
    async def node_event(event: kopf.RawEvent, **_: Any) -> None:
        change = nodes.forget if event["type"] == "DELETED" else nodes.put
        change(dict(event["object"]))

    return node_event


def job_changed(store: Store, queue: Queue[Key], kind: EventType, body: Body) -> None:
    """Take note of a job."""
    if kind == "DELETED":
        store.forget_job(body)
    elif not store.put_job(body):
        return
    key = job_key(body)
    for changed in (key, *store.dependants(key)):
        queue.add(changed)


def pod_changed(store: Store, queue: Queue[Key], kind: EventType, body: Body) -> None:
    """Take note of a pod."""
    if store.forget_pod(body) if kind == "DELETED" else store.put_pod(body):
        queue.add(pod_job_key(body))


def connection_info(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """Return the credentials of the official client in kopf's terms."""
    token = configuration.api_key.get("BearerToken")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        token=token.split()[-1] if token else None,
        proxy_url=configuration.proxy,
    )
