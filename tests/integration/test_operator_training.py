"""What the operator does about training itself: rollbacks, smaller plans, attempts of two pods."""

import pytest

from finetune_api.failures import Reason
from finetune_api.status import Finding, Rollback, Stability
from finetune_api.trainer import Result
from finetune_operator.lifecycle import Pod
from integration.operator_process import Operator
from integration.results import PREPARED, failed
from integration.server import Kubelet, Server, wait_for
from integration.stages import attempts, finish, start_training

pytestmark = pytest.mark.integration


def test_rollback(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job", stability={"policy": "Rollback"}, runPolicy={"backoffLimit": 0})
    start_training(server, kubelet)
    finding = Finding(
        rule="loss-spike", severity="Critical", step=50, message="Loss 9.", advice="Look."
    )
    rollback = Rollback(rule="loss-spike", step=50, to_step=40, learning_rate_factor=0.5)
    stability = Stability(verdict="Unstable", findings=[finding])
    said = failed(Reason.ROLLED_BACK, "Loss 9 at step 50.", rollback=rollback, stability=stability)
    kubelet.end("job-trainer-1-0", 82, said)
    pod = Pod.parse(server.wait_for_pod("job-trainer-2-0"))
    assert pod.config.rollbacks == [rollback]
    finish(server, kubelet, "job-trainer-2-0")
    status = server.job("job")["status"]
    assert [one["toStep"] for one in status["rollbacks"]] == [40]
    assert attempts(server)[1] == ("trainer", 1, "Failed", "RolledBack")
    assert {"RolledBack", "StabilityCritical"} <= set(server.events("job"))


def test_out_of_gpu_memory(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job", training={"batchSize": 2})
    start_training(server, kubelet)
    kubelet.end("job-trainer-1-0", 80, failed(Reason.GPU_OUT_OF_MEMORY))
    server.wait_for_pod("job-trainer-2-0")
    kubelet.end("job-trainer-2-0", 80, failed(Reason.GPU_OUT_OF_MEMORY))
    finish(server, kubelet, "job-trainer-3-0")
    tried = [one.get("plan") for one in server.job("job")["status"]["attempts"]]
    assert tried == [
        None,
        "1 x 80 GiB GPU, lora, micro-batch 2 x 1",
        "1 x 80 GiB GPU, lora, micro-batch 1 x 2",
        "1 x 80 GiB GPU, lora, micro-batch 1 x 2, checkpointing selective",
    ]
    plan = Pod.parse(server.wait_for_pod("job-trainer-3-0")).config.plan
    assert plan is not None
    assert plan.gradient_checkpointing == "selective"


def test_two_pods_are_one_attempt(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job(
        "job",
        resources={
            "gpu": {"count": 2},
            "nodes": 2,
            "workspace": {"accessMode": "ReadWriteMany"},
        },
    )
    server.wait_for_pod("job-prepare-1")
    kubelet.end("job-prepare-1", 0, PREPARED)
    for rank in (0, 1):
        server.wait_for_pod(f"job-trainer-1-{rank}")
        kubelet.run(f"job-trainer-1-{rank}")
    server.wait_for_phase("job", "Running")
    services = [one["metadata"]["name"] for one in server.objects("services", "job")]
    assert len(services) == 1

    kubelet.end("job-trainer-1-1", 137)
    wait_for(lambda: server.pod("job-trainer-1-0") is None)
    for rank in (0, 1):
        server.wait_for_pod(f"job-trainer-2-{rank}")
        kubelet.run(f"job-trainer-2-{rank}")
    assert attempts(server)[1] == ("trainer", 1, "Failed", "Killed")
    kubelet.end("job-trainer-2-1", 0, Result.succeeded().to_message())
    finish(server, kubelet, "job-trainer-2-0")
    assert len(attempts(server)) == 3
