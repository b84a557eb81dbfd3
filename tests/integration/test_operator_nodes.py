"""Plans follow the GPUs of the cluster's nodes, with the rights that the chart gives for it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster import Cluster
from finetune_api import names
from integration.operator_process import Operator, restricted_kubeconfig
from integration.results import PREPARED
from integration.server import Kubelet, Server, wait_for

pytestmark = pytest.mark.integration

NODES = "/api/v1/nodes"
MERGE = "application/merge-patch+json"
L4, A10 = "NVIDIA-L4", "NVIDIA-A10"


@pytest.fixture
def allowed(cluster: Cluster, server: Server, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """An operator that may look at nodes, not started yet; the nodes of the test go with it."""
    kubeconfig = restricted_kubeconfig(cluster, namespace, tmp_path)
    role = f"{namespace}-nodes"
    account = f"--serviceaccount={namespace}:finetune-operator"
    cluster.kubectl("create", "clusterrole", role, "--verb=list,watch", "--resource=nodes")
    cluster.kubectl("create", "clusterrolebinding", role, f"--clusterrole={role}", account)
    process = Operator(kubeconfig, namespace, tmp_path)
    yield process
    if process.running:
        process.kill()
    server.request("DELETE", NODES)


def add_node(server: Server, name: str, product: str) -> None:
    """Make a ready node with one GPU."""
    labels = {names.GPU_PRODUCT_LABEL: product}
    node: dict[str, Any] = {"metadata": {"name": name, "labels": labels}}
    server.request("POST", NODES, {"apiVersion": "v1", "kind": "Node", **node})
    resources = {names.GPU_RESOURCE: "1"}
    status = {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    content = "application/strategic-merge-patch+json"
    server.request("PATCH", f"{NODES}/{name}/status", {"status": status}, content)
    # Set by admission; kube-controller-manager takes it off a node that is ready.
    server.request("PATCH", f"{NODES}/{name}", {"spec": {"taints": []}}, MERGE)


def product_of(server: Server, kubelet: Kubelet, job: str) -> str | None:
    """Return the product that a new job is planned on."""
    server.create_job(job)
    server.wait_for_pod(f"{job}-prepare-1")
    kubelet.end(f"{job}-prepare-1", 0, PREPARED)
    pod = server.wait_for_pod(f"{job}-trainer-1-0")
    plan = wait_for(lambda: server.job(job)["status"].get("plan"))
    product: str | None = plan.get("gpuProduct")
    assert pod["spec"].get("nodeSelector", {}).get(names.GPU_PRODUCT_LABEL) == product
    return product


def test_plans_follow_the_nodes(server: Server, kubelet: Kubelet, allowed: Operator) -> None:
    add_node(server, "listed", L4)
    allowed.start()
    assert product_of(server, kubelet, "first") == L4
    add_node(server, "watched", A10)
    jobs = (f"job-{number}" for number in itertools.count())
    wait_for(lambda: product_of(server, kubelet, next(jobs)) == A10, what=allowed.log)
    assert server.job("first")["status"]["plan"]["gpuProduct"] == L4
    assert allowed.requests()["LIST nodes"] == 1, "whatever the number of jobs"


def test_without_the_right_to_look_at_nodes_plans_do_without(
    server: Server, kubelet: Kubelet, operator: Operator
) -> None:
    add_node(server, "unseen", L4)
    try:
        assert product_of(server, kubelet, "job") is None
        assert operator.status("healthz") == 200
        assert all(line["level"] == "info" for line in operator.lines()), operator.log()
    finally:
        server.request("DELETE", NODES)
