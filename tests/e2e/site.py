"""What the end-to-end tests do with jobs."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import Cluster
from harness import install
from harness.kubectl import Kubectl, KubectlError, Manifest

SOURCES, MODELS, CLAIM_SIZE = "sources", "models", "1Gi"
FINISHED = {"Succeeded", "Failed"}
STEPS = 60
CHECKPOINT_EVERY = 10


def make_job(name: str, **spec: Any) -> Manifest:
    """Return a small SFT job; keyword arguments replace parts of its spec."""
    defaults: dict[str, Any] = {
        "method": "sft",
        "model": {"source": f"pvc://{SOURCES}/tiny"},
        "dataset": {"source": f"pvc://{SOURCES}/chats.jsonl", "evalFraction": 0.05},
        "training": {
            "maxSteps": STEPS,
            # Steps long enough for something to happen in the middle.
            "batchSize": 64,
            "learningRate": 0.005,
            "checkpoint": {"everySteps": CHECKPOINT_EVERY},
        },
        "output": {"claim": MODELS},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": defaults | spec,
    }


@dataclass(frozen=True)
class Site:
    """A cluster with the operator, and a namespace for the tests' jobs."""

    cluster: Cluster
    kubectl: Kubectl
    images: Mapping[str, str]

    def run(self, name: str, seconds: float = 300, **spec: Any) -> Manifest:
        """Apply a job and return it once it has finished."""
        self.kubectl.apply(make_job(name, **spec))
        return self.wait(name, lambda status: status.get("phase") in FINISHED, seconds)

    def finish(self, name: str, seconds: float = 300) -> Manifest:
        """Return a job once it has finished."""
        return self.wait(name, lambda status: status.get("phase") in FINISHED, seconds)

    def wait(
        self, name: str, when: Callable[[dict[str, Any]], bool], seconds: float = 120
    ) -> Manifest:
        """Return a job once its status is as wanted.

        Raises:
            TimeoutError: when it is not so in time; names what was seen last.

        """
        seen: Manifest = {}
        try:
            for seen in self.kubectl.follow("finetunejob", name, seconds):
                if when(seen.get("status", {})):
                    return seen
        except TimeoutError as error:
            raise TimeoutError(f"{error}; last seen: {seen.get('status')}") from error
        raise AssertionError(f"the watch of {name} ended: {seen.get('status')}")

    def wait_for_checkpoint(self, name: str) -> str:
        """Return the trainer pod of a job once it trains and has written a checkpoint."""
        job = self.wait(name, lambda status: status.get("phase") in {"Running", *FINISHED}, 180)
        assert job["status"]["phase"] == "Running", job["status"]
        pod = self.trainer_pods(name)[-1]["metadata"]["name"]
        # The log is the event: a line for each checkpoint.
        for line in self.kubectl.lines("logs", "--follow", pod, seconds=120):
            if '"message": "checkpoint"' in line:
                return str(pod)
        raise AssertionError(f"{pod} ended without a checkpoint")

    def trainer_pods(self, name: str) -> list[Manifest]:
        """Return the trainer pods of a job, oldest first."""
        pods = self.kubectl.list("pods", f"finetune.dev/job={name},finetune.dev/role=trainer")
        return sorted(pods, key=lambda pod: int(pod["metadata"]["labels"]["finetune.dev/attempt"]))

    def losses(self, *names: str) -> dict[str, list[tuple[int, float]]]:
        """Return step and loss of every logged training step, from the jobs' artifacts."""
        return {
            name: [(row["step"], row["loss"]) for row in rows if "loss" in row]
            for name, rows in self.logged(*names).items()
        }

    def logged(self, *names: str) -> dict[str, list[dict[str, Any]]]:
        """Return all that was logged, from the jobs' artifacts."""
        script = "; ".join(f"cat /claim/{name}/metrics.jsonl; echo ---" for name in names)
        text = install.read_claim(self.kubectl, MODELS, self.images["trainer"], script)
        blocks = zip(names, text.split("---\n"), strict=False)
        return {name: [json.loads(line) for line in block.splitlines()] for name, block in blocks}

    def kill_container(self, pod: str, namespace: str) -> None:
        """SIGKILL all processes of a pod's containers, as the kernel does when memory runs out."""
        kubectl = Kubectl(self.kubectl.binary, self.kubectl.kubeconfig, namespace)
        uid = kubectl.get("pod", pod)["metadata"]["uid"]
        victims = [pid for pid in _processes(uid) if "pause" not in _command(pid)]
        assert victims, f"no process of pod {pod}"
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def operator_pod(self) -> Manifest:
        """Return the operator's pod."""
        kubectl = Kubectl(self.kubectl.binary, self.kubectl.kubeconfig, install.NAMESPACE)
        (pod,) = kubectl.list("pods", "app.kubernetes.io/name=finetune-operator")
        return pod


def _processes(pod_uid: str) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and f"pod{pod_uid}" in _read(entry / "cgroup")
    ]


def _command(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # It has just ended.


__all__ = ["CHECKPOINT_EVERY", "FINISHED", "STEPS", "KubectlError", "Site", "make_job"]
