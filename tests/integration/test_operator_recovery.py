"""What goes wrong with operator, pods and API server, and how jobs get over it."""

import signal
import time

import pytest

from devcluster import Cluster
from finetune_api import names
from finetune_api.failures import Reason
from integration.operator_process import Operator
from integration.results import PREPARED, TRAINED, failed
from integration.server import Kubelet, Server, wait_for
from integration.stages import attempts, finish, start_training

pytestmark = pytest.mark.integration


def test_operator_killed_at_every_stage(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    operator.kill()
    kubelet.end("job-prepare-1", 0, PREPARED)
    operator.start()
    server.wait_for_pod("job-trainer-1-0")
    operator.kill()
    kubelet.run("job-trainer-1-0")
    operator.start()
    server.wait_for_phase("job", "Running")
    operator.kill()
    kubelet.end("job-trainer-1-0", 0, TRAINED)
    operator.start()
    server.wait_for_phase("job", "Succeeded")
    assert len(server.objects("pods")) == 2
    assert [state for _, _, state, _ in attempts(server)] == ["Succeeded", "Succeeded"]


def test_job_applied_and_pod_deleted_while_the_operator_is_away(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job")
    start_training(server, kubelet)
    operator.kill()
    kubelet.remove("job-trainer-1-0")
    server.create_job("other")
    operator.start()
    server.wait_for_pod("other-prepare-1")
    finish(server, kubelet, "job-trainer-2-0")
    assert attempts(server)[1] == ("trainer", 1, "Failed", "PodDeleted")


def test_sigterm_ends_the_operator_cleanly(server: Server, operator: Operator) -> None:
    server.create_job("job")
    server.wait_for_phase("job", "Preparing")
    started = time.monotonic()
    assert operator.kill(signal.SIGTERM) == 0
    assert time.monotonic() - started < 10


def test_trainer_pod_deleted(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job")
    start_training(server, kubelet)
    kubelet.remove("job-trainer-1-0")
    finish(server, kubelet, "job-trainer-2-0")
    assert attempts(server)[1] == ("trainer", 1, "Failed", "PodDeleted")
    assert server.job("job")["status"].get("failures", 0) == 0
    assert "Recovering" in server.events("job")


def test_trainer_killed(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job")
    start_training(server, kubelet)
    kubelet.end("job-trainer-1-0", 137)
    finish(server, kubelet, "job-trainer-2-0")
    assert attempts(server)[1] == ("trainer", 1, "Failed", "Killed")
    assert server.job("job")["status"]["failures"] == 1


def test_failures_up_to_the_limit(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job", runPolicy={"backoffLimit": 1})
    start_training(server, kubelet)
    kubelet.end("job-trainer-1-0", 70, failed(Reason.INTERNAL_ERROR, "It broke."))
    server.wait_for_pod("job-trainer-2-0")
    kubelet.end("job-trainer-2-0", 70, failed(Reason.INTERNAL_ERROR, "It broke again."))
    status = server.wait_for_phase("job", "Failed")
    assert "It broke again. Gave up after 2 attempts" in status["message"]
    wait_for(lambda: "InternalError" in server.events("job"))


def test_users_mistake_and_its_correction(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    message = "Model Qwen/Qwen3-0.6B was not found."
    kubelet.end("job-prepare-1", 66, failed(Reason.MODEL_NOT_FOUND, message))
    status = server.wait_for_phase("job", "Failed")
    assert status["message"].startswith(message)
    server.edit_job("job", {"model": {"source": "hf://Qwen/Qwen3-1.7B"}})
    server.wait_for_pod("job-prepare-2")
    kubelet.end("job-prepare-2", 0, PREPARED)
    finish(server, kubelet, "job-trainer-1-0")


def test_suspend_and_resume(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job")
    start_training(server, kubelet)
    server.edit_job("job", {"runPolicy": {"suspend": True}})
    # Without a node the API server deletes the pod at once, as if the kubelet had.
    status = server.wait_for_phase("job", "Suspended")
    assert "startTime" not in status
    assert server.pod("job-trainer-1-0") is None
    server.edit_job("job", {"runPolicy": {"suspend": False}})
    finish(server, kubelet, "job-trainer-2-0")
    assert attempts(server)[1][:3] == ("trainer", 1, "Stopped")


def test_suspended_from_the_start(server: Server, operator: Operator) -> None:
    server.create_job("job", runPolicy={"suspend": True})
    server.wait_for_phase("job", "Suspended")
    assert server.objects("pods") == []
    assert server.objects("persistentvolumeclaims") == []
    server.edit_job("job", {"runPolicy": {"suspend": False}})
    server.wait_for_pod("job-prepare-1")


def test_spec_changed_during_preparation(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    kubelet.run("job-prepare-1")
    server.edit_job("job", {"training": {"maxSteps": 7}})
    server.wait_for_pod("job-prepare-2")
    assert attempts(server)[0][:3] == ("prepare", 1, "Stopped")


def test_deadline(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job", runPolicy={"activeDeadlineSeconds": 3})
    start_training(server, kubelet)
    status = server.wait_for_phase("job", "Failed", seconds=10)
    assert "active for 3 seconds" in status["message"]
    wait_for(lambda: server.pod("job-trainer-1-0") is None)


def test_ttl(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    server.create_job("job", runPolicy={"ttlSecondsAfterFinished": 2})
    start_training(server, kubelet)
    finish(server, kubelet, "job-trainer-1-0")
    wait_for(lambda: server.job_or_none("job") is None, seconds=10)


@pytest.mark.parametrize("missing", ["claim", "secret"])
def test_what_the_job_names_does_not_exist(
    server: Server, kubelet: Kubelet, operator: Operator, missing: str
) -> None:
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    if missing == "claim":
        words = '0/1 nodes are available: persistentvolumeclaim "models" not found.'
        kubelet.unschedulable("job-prepare-1", words)
    else:
        kubelet.wait("job-prepare-1", "CreateContainerConfigError", 'secret "hub" not found')
    wait_for(lambda: "but namespace" in server.message("job"))
    status = server.wait_for_phase("job", "Failed", seconds=60)
    reason = {"claim": "ClaimNotFound", "secret": "SecretNotFound"}[missing]
    assert [c["reason"] for c in status["conditions"] if c["type"] == "Failed"] == [reason]
    wait_for(lambda: server.pod("job-prepare-1") is None)


def test_claim_that_the_scheduler_did_not_see_at_first(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    uid = server.create_job("job")["metadata"]["uid"]
    server.wait_for_pod("job-prepare-1")
    words = f'0/1 nodes are available: persistentvolumeclaim "job-workspace-{uid[:8]}" not found.'
    # It says nothing more until a volume is bound, and a volume may take minutes.
    kubelet.unschedulable("job-prepare-1", words)
    wait_for(lambda: operator.requests().get("GET persistentvolumeclaims"))
    start_training(server, kubelet)
    finish(server, kubelet, "job-trainer-1-0")
    conditions = server.job("job")["status"]["conditions"]
    assert "PodProblem" not in {one["type"] for one in conditions}


def test_pod_that_cannot_start_is_told(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    kubelet.wait("job-prepare-1", "ErrImagePull", "registry.example: no such host")
    wait_for(lambda: "no such host" in server.message("job"))
    kubelet.run("job-prepare-1")
    wait_for(lambda: "no such host" not in server.message("job"))


def test_over_quota_is_told_and_got_over(
    cluster: Cluster, server: Server, operator: Operator
) -> None:
    quota = ("--namespace", server.namespace, "create", "quota", "none", "--hard=pods=0")
    cluster.kubectl(*quota)
    # Only kube-controller-manager computes what is used; without it the quota is not enforced yet.
    path = f"/api/v1/namespaces/{server.namespace}/resourcequotas/none"
    status = {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}
    server.request("PATCH", f"{path}/status", status, "application/merge-patch+json")
    server.create_job("job")
    wait_for(
        lambda: "exceeded quota" in server.job("job").get("status", {}).get("message", ""),
        what=operator.log,
    )
    server.request("DELETE", path)
    server.wait_for_pod("job-prepare-1")
    server.wait_for_phase("job", "Preparing")


def test_objects_that_the_api_server_never_takes(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job", resources={"gpu": {"count": 1}, "nodeSelector": {"a b": "c"}})
    status = server.wait_for_phase("job", "Failed")
    assert [c["reason"] for c in status["conditions"] if c["type"] == "Failed"] == ["ConfigInvalid"]
    assert "spec.nodeSelector" in status["message"]
    server.edit_job("job", {"resources": {"nodeSelector": {"a b": None, "a": "c"}}})
    server.wait_for_pod("job-prepare-1")
    server.wait_for_phase("job", "Preparing")


def test_a_pod_that_only_looks_like_ours(server: Server, operator: Operator) -> None:
    """It must not stop the operator, neither while it runs nor when it starts."""
    metadata = {"name": "stray", "labels": {names.MANAGED_BY_LABEL: names.MANAGER}}
    spec = {"containers": [{"name": "main", "image": "registry.example/any:1"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    server.request("POST", f"/api/v1/namespaces/{server.namespace}/pods", body)
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    operator.kill()
    operator.start()
    server.create_job("other")
    server.wait_for_pod("other-prepare-1")
    assert "Traceback" not in operator.log()


def test_new_job_under_an_old_name(server: Server, kubelet: Kubelet, operator: Operator) -> None:
    """Garbage collection takes its time: the old pod is in the way until it is gone."""
    server.create_job("job")
    server.wait_for_pod("job-prepare-1")
    server.delete_job("job")
    uid = server.create_job("job")["metadata"]["uid"]
    wait_for(lambda: "refused" in server.job("job").get("status", {}).get("message", ""))
    kubelet.remove("job-prepare-1")
    pod = server.wait_for_pod("job-prepare-1")
    assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == [uid]
    server.wait_for_phase("job", "Preparing")


def test_api_server_killed(
    cluster: Cluster, server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    server.create_job("job")
    start_training(server, kubelet)
    cluster.kill_apiserver()
    time.sleep(3)  # Long enough that requests and watches fail.
    cluster.start_apiserver()
    kubelet.end("job-trainer-1-0", 137)
    finish(server, kubelet, "job-trainer-2-0")
    assert operator.running
    assert operator.status("healthz") == 200
