"""The Helm chart, rendered by helm and accepted by the API server."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import Cluster, binaries
from finetune_api import names
from finetune_api.stability import STABILITY_RULES

pytestmark = pytest.mark.integration

CHART = Path(__file__).parents[2] / "helm/finetune-operator"

Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; its exit code is the caller's to look at."""
    program = binaries.locate(["helm"])["helm"]
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def render(*values: str) -> list[Object]:
    """Return the objects of a release `finetune-operator` in namespace `finetune-system`."""
    settings = [argument for value in values for argument in ("--set", value)]
    done = helm(
        *("template", "finetune-operator", str(CHART), "--namespace=finetune-system"),
        *("--kube-version=1.34.4", *settings),
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def the(kind: str, objects: list[Object]) -> Object:
    """Return the one object of a kind."""
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def test_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("crds.keep=false",),
        ("watchNamespaces={default,kube-public}",),
        ("image.tag=v1", "image.pullPolicy=Never", "imagePullSecrets={registry}"),
        ("trainer.env.HF_ENDPOINT=https://hub.example.org", "trainer.image=a/b:1"),
        ("nodeSelector.pool=system", "tolerations[0].operator=Exists", "logLevel=debug"),
        ("serviceAccount.annotations.team=ml",),
    ],
)
def test_the_api_server_takes_it(cluster: Cluster, values: tuple[str, ...]) -> None:
    manifests = yaml.safe_dump_all(render(*values))
    known = cluster.kubectl("get", "namespace", "finetune-system", "--ignore-not-found")
    if not known:
        cluster.kubectl("create", "namespace", "finetune-system")
    apply = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    cluster.kubectl(*apply, "-f", "-", stdin=manifests)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("trainr.image=x", "trainr"),
        ("image.tagg=1", "tagg"),
        ("workers=0", "workers"),
        ("logLevel=loud", "logLevel"),
        ("trainer.env.1A=x", "1A"),
        ("prices.perGpuHour.NVIDIA-L4=0.70", "currency"),
        ("prices.currency=EUR,prices.perGpuHour.NVIDIA-L4=-1", "NVIDIA-L4"),
        ("prices.currency=EUR,prices.perGpuHour.NVIDIA-L4=cheap", "NVIDIA-L4"),
    ],
)
def test_typos_are_refused(value: str, complaint: str) -> None:
    done = helm("template", "x", str(CHART), "--kube-version=1.34.4", "--set", value)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_crds_are_kept_unless_told_otherwise() -> None:
    policy = "helm.sh/resource-policy"
    kept = the("CustomResourceDefinition", render())
    assert kept["metadata"]["annotations"][policy] == "keep"
    assert (
        "annotations" not in the("CustomResourceDefinition", render("crds.keep=false"))["metadata"]
    )
    assert all(one["kind"] != "CustomResourceDefinition" for one in render("crds.enabled=false"))


def test_the_crd_is_the_generated_one() -> None:
    (path,) = (CHART / "files/crds").glob("*.yaml")
    rendered = the("CustomResourceDefinition", render("crds.keep=false"))
    assert rendered == yaml.safe_load(path.read_text())


def test_the_operator_is_told_what_the_values_say() -> None:
    deployment = the(
        "Deployment",
        render(
            *("trainer.image=a/b:1", "trainer.env.A=b c", "trainer.env.N=1", "watchNamespaces={x}"),
            *("trainer.imagePullSecrets={y,z}", "prices.currency=EUR"),
            "prices.perGpuHour.NVIDIA-L4=0.70",
        ),
    )
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == [
        "run", "--trainer-image=a/b:1", "--trainer-env=A=b c", "--trainer-env=N=1",
        "--trainer-pull-secret=y", "--trainer-pull-secret=z",
        "--gpu-price=NVIDIA-L4=0.70", "--currency=EUR",
        "--namespace=x", "--workers=8", "--log-level=info", "--log-format=json",
    ]  # fmt: skip
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_list_of_namespaces_needs_no_cluster_role() -> None:
    objects = render("watchNamespaces={a,b}")
    assert not any(one["kind"].startswith("ClusterRole") for one in objects)
    roles = [one["metadata"]["namespace"] for one in objects if one["kind"] == "Role"]
    assert roles == ["a", "b"]


def test_least_privilege() -> None:
    roles = [one for one in render() if one["kind"] == "ClusterRole"]
    (rules,) = [one["rules"] for one in roles if one["metadata"]["name"] == "finetune-operator"]
    granted = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    assert "secrets" not in granted, "secrets are referenced, never read"
    assert "*" not in granted
    assert granted[names.PLURAL] == {"get", "list", "watch", "delete"}, "the spec is never written"


def test_nodes_are_looked_at_unless_told_otherwise() -> None:
    def outcome(*settings: str) -> tuple[bool, bool]:
        objects = render(*settings)
        rules = [rule for one in objects for rule in one.get("rules", [])]
        (container,) = the("Deployment", objects)["spec"]["template"]["spec"]["containers"]
        granted = [rule["verbs"] for rule in rules if "nodes" in rule["resources"]]
        return granted == [["list", "watch"]], "--nodes=ignore" in container["args"]

    assert outcome() == (True, False)
    assert outcome("inventory.nodes=false") == (False, True)


def test_who_may_edit_or_view_a_namespace_may_do_so_with_its_jobs() -> None:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    granted = {
        label.removeprefix(prefix): set(one["rules"][0]["verbs"])
        for one in render()
        if one["kind"] == "ClusterRole"
        for label in one["metadata"]["labels"]
        if label.startswith(prefix)
    }
    assert granted["view"] == {"get", "list", "watch"}
    assert granted["admin"] == granted["edit"]
    assert granted["edit"] > granted["view"] | {"create", "update", "patch", "delete"}


@pytest.mark.parametrize(
    ("namespaces", "selector"), [("null", {"any": True}), ("{a,b}", {"matchNames": ["a", "b"]})]
)
def test_a_pod_monitor_of_trainers_on_request(namespaces: str, selector: dict[str, Any]) -> None:
    settings = ("metrics.podMonitor.enabled=true", f"watchNamespaces={namespaces}")
    spec = the("PodMonitor", render(*settings))["spec"]
    assert spec["namespaceSelector"] == selector
    assert spec["selector"]["matchLabels"] == {
        names.MANAGED_BY_LABEL: names.MANAGER,
        names.ROLE_LABEL: names.TRAINER_ROLE,
    }
    assert spec["podMetricsEndpoints"][0]["port"] == "metrics"


def test_a_service_monitor_on_request() -> None:
    monitor = the(
        "ServiceMonitor",
        render("metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.labels.team=ml"),
    )
    assert monitor["metadata"]["labels"]["team"] == "ml"
    assert monitor["spec"]["endpoints"][0]["path"] == "/metrics"


def test_alerts_on_request() -> None:
    rule = the(
        "PrometheusRule",
        render("metrics.prometheusRule.enabled=true", "metrics.prometheusRule.labels.team=ml"),
    )
    assert rule["metadata"]["labels"]["team"] == "ml"
    (group,) = rule["spec"]["groups"]
    assert len(group["rules"]) == len(STABILITY_RULES)
    assert "{{ $labels.finetunejob }}" in group["rules"][0]["annotations"]["summary"]
