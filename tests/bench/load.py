"""Applies FineTuneJobs at once, and sees through watches when what becomes of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from kubernetes.aio import client, config

from finetune_api import names
from finetune_api.status import Phase

Body = dict[str, Any]

STAGES: Final = (
    "accepted",
    "prepare pod created",
    "prepare pod scheduled",
    "prepare pod running",
    "prepare pod ended",
    "trainer pod created",
    "trainer pod scheduled",
    "trainer pod running",
    "trainer pod ended",
    "Succeeded",
)
"""A job's way, in order."""
_AT_ONCE: Final = 50
"""Connections by which jobs are applied; more would measure TLS handshakes."""


class Timeline:
    """When each job was first seen in each stage, in seconds of the event loop's clock."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._seen: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
        self._over: set[str] = set()
        self._all_over = asyncio.Event()

    def mark(self, job: str, stage: str) -> None:
        """Note that a job is in a stage now; only the first time counts."""
        self._seen[stage].setdefault(job, asyncio.get_running_loop().time())

    def end(self, job: str) -> None:
        """Note that a job has succeeded or failed."""
        self._over.add(job)
        if len(self._over) == self._jobs:
            self._all_over.set()

    async def wait(self, seconds: float) -> None:
        """Wait until all jobs are over, or for so long."""
        try:
            await asyncio.wait_for(self._all_over.wait(), seconds)
        except TimeoutError:
            return

    def count(self, stage: str) -> int:
        """Return how many jobs have reached a stage."""
        return len(self._seen[stage])

    def seconds(self, earlier: str, later: str) -> list[float]:
        """Return the seconds from one stage to another of each job that has reached both."""
        start = self._seen[earlier]
        return [time - start[job] for job, time in self._seen[later].items() if job in start]

    def span(self) -> float:
        """Return the seconds from the first job accepted to the last one succeeded."""
        first, last = self._seen[STAGES[0]].values(), self._seen[STAGES[-1]].values()
        return max(last) - min(first) if first and last else 0.0


class Load:
    """One namespace of the API server, with a user's rights."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._namespace = namespace
        self._jobs = client.CustomObjectsApi(api)
        self._pods = client.CoreV1Api(api)

    async def run(self, prefix: str, jobs: int, *, seconds: float) -> Timeline:
        """Apply so many jobs at once and wait until all are over, or for so many seconds."""
        timeline = Timeline(jobs)
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(self._watch_jobs(prefix, timeline)),
                group.create_task(self._watch_pods(prefix, timeline)),
            ]
            slots = asyncio.Semaphore(_AT_ONCE)
            applied = (self._apply(f"{prefix}-{i:04d}", slots, timeline) for i in range(jobs))
            await asyncio.gather(*applied)
            await timeline.wait(seconds)
            for watch in watches:
                watch.cancel()
        return timeline

    async def _apply(self, name: str, slots: asyncio.Semaphore, timeline: Timeline) -> None:
        async with slots:
            await self._jobs.create_namespaced_custom_object(
                names.GROUP, names.VERSION, self._namespace, names.PLURAL, job(name)
            )
        timeline.mark(name, "accepted")

    async def _watch_jobs(self, prefix: str, timeline: Timeline) -> None:
        listing = self._jobs.list_namespaced_custom_object_without_preload_content
        where = (names.GROUP, names.VERSION, self._namespace, names.PLURAL)
        async with aclosing(_changes(listing, *where)) as changes:
            async for body in changes:
                name, phase = body["metadata"]["name"], body.get("status", {}).get("phase")
                if not name.startswith(prefix):
                    continue
                if phase == Phase.SUCCEEDED:
                    timeline.mark(name, "Succeeded")
                if phase in {Phase.SUCCEEDED, Phase.FAILED}:
                    timeline.end(name)

    async def _watch_pods(self, prefix: str, timeline: Timeline) -> None:
        listing = self._pods.list_namespaced_pod_without_preload_content
        async with aclosing(_changes(listing, self._namespace)) as changes:
            async for body in changes:
                labels, phase = body["metadata"]["labels"], body["status"]["phase"]
                name, role = labels[names.JOB_LABEL], labels[names.ROLE_LABEL]
                if not name.startswith(prefix):
                    continue
                timeline.mark(name, f"{role} pod created")
                if "nodeName" in body["spec"]:
                    timeline.mark(name, f"{role} pod scheduled")
                if phase == "Running":
                    timeline.mark(name, f"{role} pod running")
                if phase in {"Succeeded", "Failed"}:
                    timeline.mark(name, f"{role} pod ended")


async def connect(kubeconfig: Path) -> client.ApiClient:
    """Return a client; close it after use."""
    settings = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=settings)
    return client.ApiClient(settings)


def job(name: str) -> Body:
    """Return a small job of one GPU."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "method": "sft",
            "model": {"source": "hf://Qwen/Qwen3-0.6B"},
            "dataset": {"source": "hf://acme/support-chats"},
            "resources": {"gpu": {"count": 1}},
            "output": {"claim": "models"},
        },
    }


async def _changes(listing: Callable[..., Awaitable[Any]], *where: str) -> AsyncIterator[Body]:
    """Yield every object that is there, and every change.

    Lines as they come: the client's own Watch parses each object three times.
    """
    response = await listing(*where, watch=True, _request_timeout=3600)
    response.raise_for_status()
    async for line in response.content:
        change = json.loads(line)
        if change["type"] == "ERROR":
            raise RuntimeError(f"a watch was lost: {change['object']['message']}")
        yield change["object"]
