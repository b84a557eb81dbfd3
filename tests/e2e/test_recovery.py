"""A job that is interrupted ends as if nothing had happened: same steps, same losses."""

from typing import Any

import pytest

from e2e.site import MODELS, STEPS, Site, make_job
from harness import install

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def baseline(site: Site) -> list[tuple[int, float]]:
    """Losses of a job that nothing happened to."""
    job = site.run("uninterrupted")
    assert job["status"]["phase"] == "Succeeded", job["status"]
    return site.losses("uninterrupted")["uninterrupted"]


def start(site: Site, name: str) -> str:
    """Start a job and return its trainer pod once there is a checkpoint."""
    site.kubectl.apply(make_job(name))
    return site.wait_for_checkpoint(name)


def finish(site: Site, name: str, baseline: list[tuple[int, float]]) -> dict[str, Any]:
    """Wait for success and compare with the uninterrupted job; return the status."""
    status: dict[str, Any] = site.finish(name)["status"]
    assert status["phase"] == "Succeeded", status
    assert status["progress"]["steps"] == f"{STEPS}/{STEPS}"
    losses = site.losses(name)[name]
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert losses == baseline
    return status


def test_uninterrupted_job_improves_and_hands_over(
    site: Site, baseline: list[tuple[int, float]]
) -> None:
    job = site.kubectl.get("finetunejob", "uninterrupted")
    status = job["status"]
    assert [step for step, _ in baseline] == list(range(1, STEPS + 1))
    assert status["progress"]["evalLoss"] < status["progress"]["evalLossBefore"]
    assert status["plan"]["gpus"] == 1
    assert status["plan"]["reasons"]
    assert status["observedGeneration"] == job["metadata"]["generation"]
    site.kubectl.run("wait", "finetunejob/uninterrupted", "--for=condition=Succeeded")
    files = install.read_claim(
        site.kubectl, MODELS, site.images["trainer"], "cd /claim && find . -type f"
    ).split()
    assert "./uninterrupted/adapter_model.safetensors" in files
    assert "./uninterrupted/README.md" in files
    assert not [file for file in files if ".partial" in file]


def test_operator_is_killed(site: Site, baseline: list[tuple[int, float]]) -> None:
    start(site, "operator-killed")
    before = site.operator_pod()["status"]["containerStatuses"][0]["restartCount"]
    site.kill_container(site.operator_pod()["metadata"]["name"], install.NAMESPACE)
    assert site.trainer_pods("operator-killed")[0]["status"]["phase"] == "Running"
    status = finish(site, "operator-killed", baseline)
    assert site.operator_pod()["status"]["containerStatuses"][0]["restartCount"] == before + 1
    assert [attempt["role"] for attempt in status["attempts"]] == ["prepare", "trainer"]


def test_trainer_pod_is_deleted(site: Site, baseline: list[tuple[int, float]]) -> None:
    pod = start(site, "pod-deleted")
    site.kubectl.delete("pod", pod, "--wait=false")
    status = finish(site, "pod-deleted", baseline)
    assert [attempt["state"] for attempt in status["attempts"]] == [
        "Succeeded", "Failed", "Succeeded",
    ]  # fmt: skip
    assert status.get("failures", 0) == 0


def test_trainer_is_killed(site: Site, baseline: list[tuple[int, float]]) -> None:
    pod = start(site, "trainer-killed")
    site.kill_container(pod, site.kubectl.namespace)
    status = finish(site, "trainer-killed", baseline)
    assert status["attempts"][1]["reason"] == "Killed"
    assert status["failures"] == 1


def test_api_server_is_restarted(site: Site, baseline: list[tuple[int, float]]) -> None:
    start(site, "api-restarted")
    site.cluster.kill_apiserver()
    site.cluster.start_apiserver()
    assert site.trainer_pods("api-restarted")[0]["status"]["phase"] == "Running"
    status = finish(site, "api-restarted", baseline)
    assert [attempt["role"] for attempt in status["attempts"]] == ["prepare", "trainer"]


def test_suspend_and_resume(site: Site, baseline: list[tuple[int, float]]) -> None:
    start(site, "suspended")
    site.kubectl.patch("finetunejob", "suspended", {"spec": {"runPolicy": {"suspend": True}}})
    site.wait("suspended", lambda status: status.get("phase") == "Suspended")
    running = [pod for pod in site.trainer_pods("suspended") if pod["status"]["phase"] == "Running"]
    assert not running
    site.kubectl.patch("finetunejob", "suspended", {"spec": {"runPolicy": {"suspend": False}}})
    status = finish(site, "suspended", baseline)
    assert status["attempts"][1]["state"] == "Stopped"
    assert status.get("failures", 0) == 0
