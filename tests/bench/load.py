"""Applies FineTuneJobs at once, and sees through watches when what becomes of them."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from kubernetes.aio import client, config

from finetune_api import names
from finetune_api.status import Phase

Body = dict[str, Any]

STAGES: Final = (
    "accepted",
    "prepare created",
    "prepare scheduled",
    "prepare running",
    "prepare ended",
    "trainer created",
    "trainer scheduled",
    "trainer running",
    "trainer ended",
    "Succeeded",
)
"""A job's way through its two pods, in order."""
STEPS: Final = tuple(pairwise(STAGES))
OPERATOR_STEPS: Final = (STEPS[0], STEPS[4], STEPS[8])
"""Those that wait for the operator; the others wait for the cluster or for the pod itself."""
_AT_ONCE: Final = 50
"""Connections by which jobs are applied; more would measure TLS handshakes."""


class Timeline:
    """When each job was first seen in each stage, in seconds of the event loop's clock."""

    def __init__(self, jobs: Iterable[str]) -> None:
        self._going = set(jobs)
        self._known = frozenset(self._going)
        self._seen: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
        self._all_over = asyncio.Event()
        self.failures: dict[str, str] = {}
        """What failed jobs say, by name."""

    def mark(self, job: str, stage: str) -> None:
        """Note that a job is in a stage now; only the first time and our own jobs count."""
        if job in self._known:
            self._seen[stage].setdefault(job, asyncio.get_running_loop().time())

    def end(self, job: str) -> None:
        """Note that a job has succeeded or failed."""
        self._going.discard(job)
        if not self._going:
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

    def seconds(self, *steps: tuple[str, str]) -> list[float]:
        """Return the seconds that steps took together, for each job that was seen in all."""
        stages = [self._seen[stage] for step in steps for stage in step]
        jobs = set(self._seen[STAGES[0]]).intersection(*stages)
        return [
            sum(self._seen[later][job] - self._seen[earlier][job] for earlier, later in steps)
            for job in jobs
        ]

    def span(self) -> float:
        """Return the seconds from the first job accepted to the last one succeeded, if any has."""
        first, last = self._seen[STAGES[0]].values(), self._seen[STAGES[-1]].values()
        return max(last) - min(first)


class Load:
    """One namespace of the API server, with a user's rights."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._namespace = namespace
        self._jobs = client.CustomObjectsApi(api)
        self._pods = client.CoreV1Api(api)

    async def run(self, bodies: Sequence[Body], *, seconds: float) -> Timeline:
        """Apply jobs at once and wait until all are over, or for so many seconds."""
        timeline = Timeline(body["metadata"]["name"] for body in bodies)
        async with asyncio.TaskGroup() as group:
            watches = [
                group.create_task(self._watch_jobs(timeline)),
                group.create_task(self._watch_pods(timeline)),
            ]
            slots = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(*(self._apply(body, slots, timeline) for body in bodies))
            await timeline.wait(seconds)
            for watch in watches:
                watch.cancel()
        return timeline

    async def _apply(self, body: Body, slots: asyncio.Semaphore, timeline: Timeline) -> None:
        async with slots:
            await self._jobs.create_namespaced_custom_object(
                names.GROUP, names.VERSION, self._namespace, names.PLURAL, body
            )
        timeline.mark(body["metadata"]["name"], "accepted")

    async def _watch_jobs(self, timeline: Timeline) -> None:
        listing = self._jobs.list_namespaced_custom_object_without_preload_content
        where = (names.GROUP, names.VERSION, self._namespace, names.PLURAL)
        async with aclosing(_changes(listing, *where)) as changes:
            async for body in changes:
                name, status = body["metadata"]["name"], body.get("status", {})
                phase = status.get("phase")
                if phase == Phase.SUCCEEDED:
                    timeline.mark(name, "Succeeded")
                if phase == Phase.FAILED:
                    timeline.failures[name] = status.get("message", "")
                if phase in {Phase.SUCCEEDED, Phase.FAILED}:
                    timeline.end(name)

    async def _watch_pods(self, timeline: Timeline) -> None:
        listing = self._pods.list_namespaced_pod_without_preload_content
        async with aclosing(_changes(listing, self._namespace)) as changes:
            async for body in changes:
                labels, phase = body["metadata"]["labels"], body["status"]["phase"]
                name, role = labels[names.JOB_LABEL], labels[names.ROLE_LABEL]
                timeline.mark(name, f"{role} created")
                if "nodeName" in body["spec"]:
                    timeline.mark(name, f"{role} scheduled")
                if phase == "Running":
                    timeline.mark(name, f"{role} running")
                if phase in {"Succeeded", "Failed"}:
                    timeline.mark(name, f"{role} ended")


async def connect(kubeconfig: Path) -> client.ApiClient:
    """Return a client; close it after use."""
    settings = client.Configuration()
    await config.load_kube_config(  # type: ignore[no-untyped-call]
        str(kubeconfig), client_configuration=settings
    )
    return client.ApiClient(settings)


def job(name: str, workspace: str | None = None) -> Body:
    """Return a small job of one GPU, with a workspace of its own or on an existing claim."""
    shared = {"workspace": {"claim": workspace}} if workspace else {}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "method": "sft",
            "model": {"source": "hf://Qwen/Qwen3-0.6B"},
            "dataset": {"source": "hf://acme/support-chats"},
            "resources": {"gpu": {"count": 1}, **shared},
            "output": {"claim": "models"},
        },
    }


async def _changes(
    listing: Callable[..., Awaitable[Any]], *where: str
) -> AsyncGenerator[Body, None]:
    """Yield every object that is there, and every change, for ever.

    Line by line: the client's own Watch parses each object three times.
    """
    version: dict[str, str] = {}
    while True:
        # A busy API server ends watches, and expects to be asked for the rest.
        response = await listing(*where, watch=True, _request_timeout=3600, **version)
        response.raise_for_status()
        async for line in response.content:
            change = json.loads(line)
            if change["type"] == "ERROR":
                raise RuntimeError(f"a watch was lost: {change['object']['message']}")
            version = {"resource_version": change["object"]["metadata"]["resourceVersion"]}
            yield change["object"]
