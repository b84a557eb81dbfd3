"""Jobs that start from the models of other jobs, against a real API server."""

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.trainer import TrainerConfig
from finetune_operator.lifecycle import Pod
from integration.operator_process import Operator
from integration.results import failed, trained
from integration.server import Kubelet, Server, wait_for
from integration.stages import attempts, finish, start_training

pytestmark = pytest.mark.integration

BASE = "hf://Qwen/Qwen3-0.6B"


def chained(server: Server, name: str, other: str, **parts: Any) -> None:
    """Create a job that starts from the model of another."""
    server.create_job(name, model={"source": f"job://{other}", **parts})


def sources(server: Server, job: str) -> str | None:
    """Return the reason of the SourcesReady condition."""
    conditions = server.job(job).get("status", {}).get("conditions", [])
    return next((one["reason"] for one in conditions if one["type"] == "SourcesReady"), None)


def wait_for_sources(server: Server, job: str, reason: str) -> None:
    wait_for(lambda: sources(server, job) == reason, what=lambda: server.job(job).get("status"))


def config_of(server: Server, pod: str) -> TrainerConfig:
    return Pod.parse(server.wait_for_pod(pod)).config


def complete(server: Server, kubelet: Kubelet, job: str) -> None:
    """Take a job that can start to its end."""
    start_training(server, kubelet, job)
    finish(server, kubelet, f"{job}-trainer-1-0", job, trained(job))


@pytest.mark.parametrize("order", [("one", "two", "three"), ("three", "two", "one")])
def test_three_jobs_in_any_order(
    server: Server, kubelet: Kubelet, operator: Operator, order: tuple[str, ...]
) -> None:
    apply = {
        "one": lambda: server.create_job("one"),
        "two": lambda: chained(server, "two", "one"),
        "three": lambda: chained(server, "three", "two", jobAdapter="continue"),
    }
    for name in order:
        apply[name]()
    wait_for_sources(server, "three", "WaitingForJob")
    complete(server, kubelet, "one")
    assert server.pod("three-prepare-1") is None
    complete(server, kubelet, "two")
    complete(server, kubelet, "three")

    assert config_of(server, "two-prepare-1").starts["job://one"].merge == ["pvc://models/one"]
    for pod in ("three-prepare-1", "three-trainer-1-0"):
        start = config_of(server, pod).starts["job://two"]
        assert (start.base, start.merge) == (BASE, ["pvc://models/one"])
        assert start.adapter == "pvc://models/two"
    events = server.events("three")
    assert events.count("WaitingForJob") == 1
    assert events.index("WaitingForJob") < events.index("SourcesReady") < events.index("Planned")


def test_a_failed_job_is_applied_again(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    chained(server, "two", "one")
    wait_for_sources(server, "two", "JobNotFound")
    server.create_job("one")
    server.wait_for_pod("one-prepare-1")
    kubelet.end("one-prepare-1", 65, failed(Reason.DATA_INVALID, "No such column."))
    wait_for_sources(server, "two", "JobFailed")
    status = server.job("two")["status"]
    assert status["phase"] == "Pending"
    assert "job one (Failed)" in status["message"]
    stalled = [one["status"] for one in status["conditions"] if one["type"] == "Stalled"]
    assert stalled == ["True"]

    server.delete_job("one")
    kubelet.remove("one-prepare-1")
    wait_for_sources(server, "two", "JobNotFound")
    server.create_job("one")
    complete(server, kubelet, "one")
    complete(server, kubelet, "two")


def test_a_retry_starts_from_the_same_although_the_other_job_is_gone(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("one", runPolicy={"ttlSecondsAfterFinished": 0})
    chained(server, "two", "one")
    complete_and_expire(server, kubelet)
    server.wait_for_pod("two-prepare-1")
    kubelet.end("two-prepare-1", 69, failed(Reason.SOURCE_UNAVAILABLE))
    operator.kill()
    operator.start()
    assert config_of(server, "two-prepare-2").starts["job://one"].base == BASE
    assert attempts(server, "two")[0] == ("prepare", 1, "Failed", "SourceUnavailable")


def complete_and_expire(server: Server, kubelet: Kubelet) -> None:
    """Let job one succeed; it is deleted, but not before job two has looked its model up."""
    start_training(server, kubelet, "one")
    kubelet.end("one-trainer-1-0", 0, trained("one"))
    wait_for(lambda: server.job_or_none("one") is None)
    assert sources(server, "two") == "Found"


def test_a_circle_is_refused_until_it_is_broken(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    for name, other in {"a": "b", "b": "c", "c": "a"}.items():
        chained(server, name, other)
    for name in ("a", "b", "c"):
        status = server.wait_for_phase(name, "Failed")
        reasons = [one["reason"] for one in status["conditions"] if one["type"] == "Failed"]
        assert reasons == ["ConfigInvalid"]
    wait_for(lambda: "a -> b -> c -> a" in server.message("a"), what=lambda: server.message("a"))
    assert server.objects("pods") == []
    server.edit_job("c", {"model": {"source": BASE}})
    complete(server, kubelet, "c")
    complete(server, kubelet, "b")
    complete(server, kubelet, "a")
