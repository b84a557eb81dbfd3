"""Measures the operator on a control plane whose nodes and pods KWOK plays."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import load
from bench.processes import cpu_seconds, machine_cpu_seconds, peak_memory_mib
from devcluster import Cluster
from devcluster.processes import Daemons
from integration.operator_process import Operator, install_crd, restricted_kubeconfig
from integration.results import PREPARED, TRAINED

NAMESPACE: Final = "bench"
CLAIM: Final = "models"
"""Where all jobs put their models."""
MOST_REQUESTS: Final = 12
"""Of the operator's own for one job, over the whole of a successful life."""
MOST_MEMORY: Final = 200.0
"""MiB that the operator may have had resident at most."""
SAFETY_NET: Final = frozenset({"LIST finetunejobs", "LIST pods"})
"""Requests of the resync: a few in all, however many jobs there are."""


@dataclass(frozen=True)
class Measurement:
    """What a number of jobs took."""

    jobs: int
    timeline: load.Timeline
    requests: dict[str, int]
    """The operator's, as VERB RESOURCE."""
    cpu: dict[str, float]
    """CPU seconds by process."""
    noise: float
    """Share of this machine's cores that went to anything else."""
    memory: float
    """MiB that the operator had resident at most."""

    @property
    def finished(self) -> int:
        """How many jobs have succeeded."""
        return self.timeline.count("Succeeded")

    @property
    def jobs_per_second(self) -> float:
        """Jobs by the time from the first one accepted to the last one succeeded."""
        return self.finished / self.timeline.span() if self.finished else 0.0

    @property
    def requests_per_job(self) -> float:
        """The operator's requests for one job, without the safety net's."""
        counted = (count for name, count in self.requests.items() if name not in SAFETY_NET)
        return sum(counted) / self.jobs

    def broken(self) -> list[str]:
        """Return what is required and is not so."""
        required = [
            (self.finished == self.jobs, f"{self.finished} of {self.jobs} jobs succeeded"),
            (
                self.requests_per_job <= MOST_REQUESTS,
                f"{self.requests_per_job:.1f} API requests per job, allowed are {MOST_REQUESTS}",
            ),
            (
                self.memory < MOST_MEMORY,
                f"{self.memory:.0f} MiB of memory, allowed are less than {MOST_MEMORY:.0f}",
            ),
        ]
        failures = (f"{name}: {message}" for name, message in self.timeline.failures.items())
        return [*(sentence for kept, sentence in required if not kept), *failures]


class Bench:
    """A control plane and an operator that have run one job already."""

    def __init__(self, cluster: Cluster, operator: Operator) -> None:
        self._cluster = cluster
        self._operator = operator

    def measure(
        self, jobs: int, *, workspace: str | None = None, seconds: float = 600
    ) -> Measurement:
        """Apply so many jobs at once and wait until all are over, or for so many seconds.

        Each job has a workspace of its own, or all have folders on the claim `workspace`.
        """
        bodies = [load.job(f"job-{i:04d}", workspace) for i in range(jobs)]
        requests = self._operator.requests()
        started, machine, cpu = time.monotonic(), machine_cpu_seconds(), self._cpu()
        timeline = asyncio.run(self._load(bodies, seconds=seconds))
        after = self._settled_requests()
        used = {name: seconds - cpu.get(name, 0) for name, seconds in self._cpu().items()}
        others = machine_cpu_seconds() - machine - sum(used.values())
        spent = {name: count - requests.get(name, 0) for name, count in after.items()}
        return Measurement(
            jobs=jobs,
            timeline=timeline,
            requests={name: count for name, count in sorted(spent.items()) if count},
            cpu=used,
            noise=max(0.0, others) / (time.monotonic() - started) / (os.cpu_count() or 1),
            memory=peak_memory_mib(self._operator.pid),
        )

    def warm_up(self) -> None:
        """Run one job: the shared claim is bound, everything is loaded and connected."""
        timeline = asyncio.run(self._load([load.job("warm-up")], seconds=60))
        if not timeline.count("Succeeded"):
            raise RuntimeError(f"one job alone did not succeed: {self._operator.log()}")

    async def _load(self, bodies: Sequence[load.Body], *, seconds: float) -> load.Timeline:
        # Not as system:masters, which is exempt from priority and fairness.
        async with await load.connect(self._cluster.bench_kubeconfig) as api:
            return await load.Load(api, NAMESPACE).run(bodies, seconds=seconds)

    def _settled_requests(self) -> dict[str, int]:
        """Return the operator's requests once it sends no more: Events follow the status."""
        before: dict[str, int] = {}
        while (now := self._operator.requests()) != before:
            before = now
            time.sleep(1)
        return now

    def _cpu(self) -> dict[str, float]:
        """Return CPU seconds by process; this one applies the jobs and watches."""
        daemons = Daemons(self._cluster.layout.state)
        pids = {name: record.pid for name in daemons.names() if (record := daemons.record(name))}
        used = {name: cpu_seconds(pid) for name, pid in pids.items()}
        ours = {"operator": cpu_seconds(self._operator.pid), "bench": time.process_time()}
        return used | ours


@contextlib.contextmanager
def running_bench(name: str, folder: Path, *, nodes: int, pod_seconds: float) -> Iterator[Bench]:
    """Start a control plane with nodes of 8 GPUs, and the operator with the chart's rights."""
    messages = {"prepare": PREPARED, "trainer": TRAINED}
    with Cluster.control_plane(
        name, kwok_nodes=nodes, pod_seconds=pod_seconds, pod_messages=messages
    ) as cluster:
        install_crd(cluster)
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.kubectl("wait", "--for=create", f"--namespace={NAMESPACE}", "sa/default")
        cluster.apply(_claim())
        operator = Operator(restricted_kubeconfig(cluster, NAMESPACE, folder), NAMESPACE, folder)
        operator.start()
        try:
            bench = Bench(cluster, operator)
            bench.warm_up()
            yield bench
        finally:
            operator.kill()


def _claim() -> load.Body:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
