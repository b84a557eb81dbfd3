"""The operator as a process against a real API server; the tests play the kubelet."""

import pytest

from finetune_api import names
from integration.operator_process import Operator
from integration.results import PREPARED, TRAINED
from integration.server import Kubelet, Server, wait_for

pytestmark = pytest.mark.integration

MOST_REQUESTS = 10
"""Of the operator's own, for one job over the whole of a successful life."""


def live(server: Server, kubelet: Kubelet, job: str) -> None:
    """Take a job that was applied through a whole successful life."""
    server.wait_for_pod(f"{job}-prepare-1")
    kubelet.run(f"{job}-prepare-1")
    kubelet.end(f"{job}-prepare-1", 0, PREPARED)
    server.wait_for_pod(f"{job}-trainer-1-0")
    kubelet.run(f"{job}-trainer-1-0")
    server.wait_for_phase(job, "Running")
    kubelet.end(f"{job}-trainer-1-0", 0, TRAINED)
    server.wait_for_phase(job, "Succeeded")


def test_whole_life_within_the_request_budget(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    before = operator.requests()
    server.create_job("job")
    live(server, kubelet, "job")
    events = wait_for(lambda: len(server.events("job")) >= 3 and server.events("job"))
    assert events == ["Planned", "Started", "Succeeded"]

    lists = {
        "LIST finetunejobs",
        "LIST pods",
        "LIST nodes",
    }  # By the safety net, whatever the number of jobs.
    spent = {
        request: count - before.get(request, 0)
        for request, count in operator.requests().items()
        if request not in lists
    }
    assert spent == {
        "APPLY persistentvolumeclaims": 1,
        "APPLY pods": 2,
        "PATCH finetunejobs": 4,
        "POST events": 3,
    }
    assert sum(spent.values()) <= MOST_REQUESTS

    status = server.job("job")["status"]
    assert status["plan"]["summary"] == "1 x 80 GiB GPU, lora, micro-batch 8 x 2"
    assert status["progress"]["evalLoss"] == 1.25
    assert status["artifact"]["uri"] == "pvc://models/job"
    assert status["usage"]["gpuHours"] == status["attempts"][1]["gpuHours"]
    assert status["measured"]["gpuMemoryGib"] == 20
    observed = operator.metrics()[
        'finetune_operator_plan_memory_error_ratio_count{adapter="lora",method="sft",product="any"}'
    ]
    assert observed == 1
    assert operator.status("healthz") == 200
    assert operator.metrics()['finetune_operator_jobs{phase="Succeeded"}'] == 1
    assert all(line["level"] == "info" for line in operator.lines()), operator.log()


def test_children_belong_to_the_job_and_carry_none_of_its_labels(
    server: Server, operator: Operator
) -> None:
    uid = server.create_job("job")["metadata"]["uid"]
    pod = server.wait_for_pod("job-prepare-1")
    owner = pod["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (uid, True, True)
    assert set(pod["metadata"]["labels"]) == {
        names.MANAGED_BY_LABEL, names.JOB_LABEL, names.JOB_UID_LABEL,
        names.ROLE_LABEL, names.ATTEMPT_LABEL, names.RANK_LABEL,
    }  # fmt: skip
    claims = [claim["metadata"]["name"] for claim in server.objects("persistentvolumeclaims")]
    assert claims == [f"job-workspace-{uid[:8]}"]
