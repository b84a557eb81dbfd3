"""List, then watch: how the helper daemons follow the API server through restarts."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import urllib3.exceptions
from kubernetes import client, config, watch

Apply = Callable[[str, Any], None]
"""Called with ADDED, MODIFIED or DELETED and the object."""


def connect(kubeconfig: str) -> client.ApiClient:
    settings = client.Configuration()
    config.load_kube_config(kubeconfig, client_configuration=settings)  # type: ignore[no-untyped-call]
    return client.ApiClient(settings)


def follow(listing: Callable[..., Any], reset: Callable[[], None], apply: Apply) -> NoReturn:
    """Call `apply` for every object and every change, for ever; `reset` before each new list."""
    while True:
        try:
            _follow_once(listing, reset, apply)
        except (client.ApiException, urllib3.exceptions.HTTPError) as error:
            print(f"listing again after: {error}", file=sys.stderr, flush=True)
            time.sleep(0.5)


def _follow_once(listing: Callable[..., Any], reset: Callable[[], None], apply: Apply) -> None:
    found = listing()
    reset()
    for item in found.items:
        apply("ADDED", item)
    version = found.metadata.resource_version
    watcher = watch.Watch()  # type: ignore[no-untyped-call]
    events = watcher.stream(  # type: ignore[no-untyped-call]
        listing, resource_version=version, timeout_seconds=240
    )
    for event in events:
        apply(event["type"], event["object"])


def run_together(*loops: Callable[[], object]) -> NoReturn:
    """Run endless loops side by side; the first that ends takes the process with it."""
    ended: queue.Queue[BaseException] = queue.Queue()

    def guarded(loop: Callable[[], object]) -> None:
        try:
            loop()
        except BaseException as error:  # noqa: BLE001 - the boundary of a thread
            ended.put(error)

    for loop in loops:
        threading.Thread(target=guarded, args=(loop,), daemon=True).start()
    raise ended.get()
