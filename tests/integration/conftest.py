"""One control plane for all tests of the operator, and one operator for each test."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Cluster
from integration.operator_process import Operator, install_crd, restricted_kubeconfig
from integration.server import Kubelet, Server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A control plane that knows FineTuneJobs; nothing schedules or runs pods."""
    with Cluster.control_plane("operator") as control_plane:
        install_crd(control_plane)
        yield control_plane


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))[:50]
    name = name.strip("-")
    cluster.kubectl("create", "namespace", name)
    # Made by kube-controller-manager elsewhere; no pod is admitted without it.
    cluster.kubectl("--namespace", name, "create", "serviceaccount", "default")
    return name


@pytest.fixture
def server(cluster: Cluster, namespace: str) -> Server:
    """The API server, as its administrator."""
    return Server(cluster.kubeconfig, namespace)


@pytest.fixture
def kubelet(server: Server) -> Kubelet:
    """What plays the pods."""
    return Kubelet(server)


@pytest.fixture
def operator(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """A running operator with the rights that the chart gives it, and no others."""
    kubeconfig = restricted_kubeconfig(cluster, namespace, tmp_path)
    process = Operator(kubeconfig, namespace, tmp_path)
    process.start()
    yield process
    if process.running:
        process.kill()
