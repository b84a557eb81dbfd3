"""Attempts of several pods: all of them or none."""

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.trainer import Result
from unit.operator.builders import Life, failure, make_pod, prepared_pod, started, trained

NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
RESOURCES = {
    "gpu": {"count": 2},
    "nodes": 2,
    "workspace": {"accessMode": "ReadWriteMany"},
}


def two_pods() -> tuple[Life, Any]:
    """Return a job whose attempt has two pods, and its prepare pod."""
    life = started(resources=RESOURCES)
    assert life.body["status"]["plan"]["nodes"] == 2
    return life, prepared_pod(resources=RESOURCES)


def test_the_rest_of_an_attempt_goes_with_its_first_failure_and_all_pods_start_anew() -> None:
    life, prepared = two_pods()
    pods = make_pod(running=True), make_pod(rank=1, running=True)
    life.step(20, prepared, *pods)
    assert life.phase == "Running"
    killed = make_pod(rank=1, exit_code=137)
    decision = life.step(60, prepared, make_pod(running=True), killed)
    assert [pod.name for pod in decision.delete] == ["job-trainer-1-0"]
    assert life.attempts()[-1] == ("trainer", 1, "Failed", "Killed")
    assert decision.launch is None
    decision = life.step(62, prepared, make_pod(running=True, deleting=True), killed)
    assert decision.launch is None
    assert "job-trainer-1-0" in life.message
    decision = life.step(64, prepared, make_pod(exit_code=75, deleting=True), killed)
    assert decision.launch is not None
    assert decision.launch.number == 2


OUT_OF_MEMORY = failure(Reason.GPU_OUT_OF_MEMORY)
LOST_PEER = failure(Reason.INTERNAL_ERROR, "Connection closed by peer")


@pytest.mark.parametrize("ended", [59, 60, 61])
def test_the_pod_that_knows_why_is_believed(ended: float) -> None:
    life, prepared = two_pods()
    lost = make_pod(exit_code=70, result=LOST_PEER, finished=60)
    cause = make_pod(rank=1, exit_code=80, result=OUT_OF_MEMORY, finished=ended)
    life.step(61, prepared, lost, cause)
    assert life.attempts()[-1][3] == "GpuOutOfMemory"
    assert life.body["status"]["plan"]["microBatchSize"] == 4


def test_a_lost_peer_is_waited_for_in_short() -> None:
    life, prepared = two_pods()
    lost = make_pod(exit_code=70, result=LOST_PEER, finished=60)
    decision = life.step(61, prepared, lost, make_pod(rank=1, running=True))
    assert life.attempts()[-1][2] == "Active"
    assert decision.requeue_after == pytest.approx(4)
    decision = life.step(65, prepared, lost, make_pod(rank=1, running=True))
    assert life.attempts()[-1][3] == "InternalError"
    assert [pod.name for pod in decision.delete] == ["job-trainer-1-1"]


def test_a_pod_without_a_node_is_told_while_the_others_run() -> None:
    life, prepared = two_pods()
    life.step(40, prepared, make_pod(running=True), make_pod(rank=1, unschedulable=NO_NODE))
    problem = life.condition("PodProblem")
    assert (problem["status"], problem["reason"]) == ("True", "Unschedulable")
    assert "job-trainer-1-1" in problem["message"]
    assert life.phase == "Starting"
    life.step(50, prepared, make_pod(running=True), make_pod(rank=1, running=True))
    assert (life.phase, life.condition("PodProblem")["status"]) == ("Running", "False")


@pytest.mark.parametrize("words", [Result.succeeded(), None])
def test_the_first_pod_says_what_was_made(words: Result | None) -> None:
    life, prepared = two_pods()
    first = make_pod(exit_code=0, result=trained(), finished=61)
    life.step(70, prepared, make_pod(rank=1, exit_code=0, result=words), first)
    assert (life.phase, life.events[-1]) == ("Succeeded", "Succeeded")
    assert life.body["status"]["artifact"]["uri"] == "pvc://models/job"
    assert life.body["status"]["progress"]["steps"] == "63/63"


def test_an_attempt_whose_first_pod_says_nothing_has_failed() -> None:
    life, prepared = two_pods()
    peer = make_pod(rank=1, exit_code=0, result=Result.succeeded())
    life.step(70, prepared, make_pod(exit_code=0), peer)
    assert life.attempts()[-1] == ("trainer", 1, "Failed", "InternalError")


def test_a_pod_that_is_gone_ends_its_attempt() -> None:
    life, prepared = two_pods()
    decision = life.step(60, prepared, make_pod(running=True))
    assert life.attempts()[-1] == ("trainer", 1, "Failed", "PodDeleted")
    assert [pod.name for pod in decision.delete] == ["job-trainer-1-0"]
