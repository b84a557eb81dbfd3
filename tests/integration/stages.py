"""The stages of a job's life, with the test as its kubelet."""

from integration.results import PREPARED, TRAINED
from integration.server import Kubelet, Server


def start_training(server: Server, kubelet: Kubelet, job: str = "job") -> None:
    """Take a job that was applied to its first running trainer pod."""
    server.wait_for_pod(f"{job}-prepare-1")
    kubelet.end(f"{job}-prepare-1", 0, PREPARED)
    server.wait_for_pod(f"{job}-trainer-1-0")
    kubelet.run(f"{job}-trainer-1-0")
    server.wait_for_phase(job, "Running")


def finish(
    server: Server, kubelet: Kubelet, pod: str, job: str = "job", result: str = TRAINED
) -> None:
    """Let a trainer pod succeed, and its job with it."""
    server.wait_for_pod(pod)
    kubelet.run(pod)
    kubelet.end(pod, 0, result)
    server.wait_for_phase(job, "Succeeded")


def attempts(server: Server, job: str = "job") -> list[tuple[str, int, str, str | None]]:
    """Return role, number, state and reason of each attempt."""
    return [
        (one["role"], one["number"], one["state"], one.get("reason"))
        for one in server.job(job)["status"]["attempts"]
    ]
