"""One control plane for all tests of the operator, and one operator for each test."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from devcluster import Cluster
from integration.operator_process import Operator
from integration.server import Kubelet, Server

CHART = Path(__file__).parents[2] / "helm/finetune-operator"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A control plane that knows FineTuneJobs; nothing schedules or runs pods."""
    with Cluster.control_plane("operator") as control_plane:
        crds = CHART / "files/crds"
        control_plane.kubectl("apply", "--server-side", "-f", str(crds))
        control_plane.kubectl("wait", "--for=condition=Established", "-f", str(crds))
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
    kubeconfig = _restricted_kubeconfig(cluster, namespace, tmp_path)
    process = Operator(kubeconfig, namespace, tmp_path)
    process.start()
    yield process
    if process.running:
        process.kill()


def _restricted_kubeconfig(cluster: Cluster, namespace: str, folder: Path) -> Path:
    """Install the chart's ServiceAccount and roles, and return a kubeconfig of that account."""
    rendered = subprocess.run(
        [
            *(cluster.bin("helm"), "template", "finetune-operator", CHART, "--kube-version=1.34.4"),
            *(f"--namespace={namespace}", f"--set=watchNamespaces={{{namespace}}}"),
            *("--show-only=templates/serviceaccount.yaml", "--show-only=templates/rbac.yaml"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=rendered)
    account = ("--namespace", namespace, "create", "token", "finetune-operator")
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": cluster.kubectl(*account).strip()}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path
