"""What the API server says to good and bad manifests, and what it makes of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from devcluster import Cluster
from finetune_api import names
from finetune_api.spec import TRAINING_FIELDS, FineTuneJobSpec, Method
from finetune_api.status import FineTuneJobStatus
from integration.operator_process import install_crd
from unit.api.samples import full_status

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
CASES = Path(__file__).parent / "manifests"
CRD = ROOT / f"crds/{names.GROUP}_{names.PLURAL}.yaml"
NAMESPACE = "default"

Manifest = dict[str, Any]


def _load(file_name: str) -> list[Any]:
    entries: list[dict[str, Any]] = yaml.safe_load((CASES / file_name).read_text())
    return [pytest.param(entry, id=entry["case"]) for entry in entries]


def _merge(base: Any, change: Any) -> Any:
    """Return base with an RFC 7386 merge patch applied."""
    if not isinstance(change, dict):
        return change
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _manifest(case: dict[str, Any]) -> Manifest:
    base: Manifest = yaml.safe_load((EXAMPLES / f"{case.get('method', 'sft')}.yaml").read_text())
    change = {"spec": case.get("change", {})}
    if "name" in case:
        change["metadata"] = {"name": case["name"]}
    merged: Manifest = _merge(base, change)
    return merged


def _examples() -> list[Any]:
    return [
        pytest.param(manifest, id=f"{path.stem}:{manifest['metadata']['name']}")
        for path in sorted(EXAMPLES.glob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
        if manifest["kind"] == names.KIND
    ]


class Jobs:
    """The FineTuneJobs of one namespace on a real API server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._client = config.new_client_from_config(str(kubeconfig))
        self._api: Any = client.CustomObjectsApi(self._client)
        self._where = (names.GROUP, names.VERSION, NAMESPACE, names.PLURAL)

    def check(self, manifest: Manifest) -> Manifest:
        """Return what the API server would store; nothing is stored."""
        return self._create(manifest, dry_run="All")

    def create(self, manifest: Manifest) -> Manifest:
        return self._create(manifest)

    def _create(self, manifest: Manifest, **options: str) -> Manifest:
        created: Manifest = self._api.create_namespaced_custom_object(
            *self._where, manifest, field_validation="Strict", **options
        )
        return created

    def patch(self, name: str, change: Manifest) -> Manifest:
        patched: Manifest = self._api.patch_namespaced_custom_object(*self._where, name, change)
        return patched

    def patch_status(self, name: str, status: Manifest) -> Manifest:
        patched: Manifest = self._api.patch_namespaced_custom_object_status(
            *self._where, name, {"status": status}, field_validation="Strict"
        )
        return patched

    def delete(self, name: str) -> None:
        self._api.delete_namespaced_custom_object(*self._where, name)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def control_plane() -> Iterator[Cluster]:
    with Cluster.control_plane("manifests") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def jobs(control_plane: Cluster) -> Iterator[Jobs]:
    install_crd(control_plane)
    api = Jobs(control_plane.kubeconfig)
    yield api
    api.close()


def _causes(error: client.ApiException) -> tuple[set[str], str]:
    """Return the fields that are blamed, and everything that is said."""
    body = json.loads(error.body or "{}")
    fields = {cause["field"] for cause in body.get("details", {}).get("causes", [])}
    # Not a field: says that CEL rules wait until types and bounds are right.
    return fields - {"<nil>"}, body["message"]


@pytest.mark.parametrize("case", _load("accepted.yaml"))
def test_accepts(jobs: Jobs, case: dict[str, Any]) -> None:
    stored = jobs.check(_manifest(case))
    FineTuneJobSpec.model_validate(stored["spec"])


@pytest.mark.parametrize("case", _load("refused.yaml"))
def test_refuses(jobs: Jobs, case: dict[str, Any]) -> None:
    with pytest.raises(client.ApiException) as refusal:
        jobs.check(_manifest(case))
    fields, message = _causes(refusal.value)
    assert case["says"] in message
    assert fields == ({case["field"]} if "field" in case else set())


@pytest.mark.parametrize("manifest", _examples())
def test_accepts_example(jobs: Jobs, manifest: Manifest) -> None:
    stored = jobs.check(manifest)
    FineTuneJobSpec.model_validate(stored["spec"])


def test_there_is_an_example_for_every_method() -> None:
    assert all((EXAMPLES / f"{method}.yaml").is_file() for method in Method)


@pytest.mark.parametrize("manifest", _examples())
def test_api_server_sets_the_same_defaults_as_the_models(jobs: Jobs, manifest: Manifest) -> None:
    stored = jobs.check(manifest)["spec"]
    assert FineTuneJobSpec.model_validate(stored) == FineTuneJobSpec.model_validate(
        manifest["spec"]
    )


def test_what_is_optional_stays_away(jobs: Jobs) -> None:
    spec = jobs.check(_manifest({}))["spec"]
    assert set(spec) == {
        *("method", "model", "dataset", "adapter", "training", "evaluation"),
        *("resources", "runPolicy", "stability", "output"),
    }
    assert spec["adapter"] == {"type": "lora"}
    assert spec["resources"]["gpu"] == {"count": "auto", "product": "auto", "memory": "auto"}
    assert spec["training"]["checkpoint"] == {"everySteps": 100, "keep": 2}


def test_a_full_status_is_read_as_it_was_written(jobs: Jobs) -> None:
    jobs.create(_manifest({"name": "full-status"}))
    written = full_status().to_json()
    read = jobs.patch_status("full-status", written)["status"]
    assert read == written
    assert FineTuneJobStatus.model_validate(read) == full_status()
    jobs.delete("full-status")


def test_an_empty_status_gets_no_defaults(jobs: Jobs) -> None:
    jobs.create(_manifest({"name": "empty-status"}))
    read = jobs.patch_status("empty-status", {"phase": "Pending"})["status"]
    assert read == {"phase": "Pending"}
    jobs.delete("empty-status")


@pytest.fixture(scope="module")
def planned(jobs: Jobs) -> Iterator[str]:
    """The name of a job that has a plan."""
    manifest = _manifest({"method": "grpo", "name": "planned"})
    manifest["spec"]["training"] = {"extra": {"adam_beta2": 0.99, "nested": {"a": [1]}}}
    jobs.create(manifest)
    jobs.patch_status("planned", full_status().to_json())
    yield "planned"
    jobs.delete("planned")


_CHANGES: dict[str, Any] = {
    "method": "ebft",
    "model": {"source": "hf://acme/other"},
    "dataset": {"maxSamples": 5},
    "adapter": {"lora": {"rank": 8}},
    "training": {"seed": 1},
    "grpo": {"beta": 0.1},
    "rewards": [{"name": "other", "builtin": "json"}],
    "generation": {"temperature": 0.5},
    "rollout": {"mode": "local"},
    "evaluation": {"sampleMaxTokens": 7},
    "resources": {"gpu": {"count": 2}},
    "stability": {"policy": "Halt"},
    "output": {"path": "elsewhere"},
}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        *_CHANGES.items(),
        # The API server does not know the types in extra, and still sees a change of them.
        pytest.param("training", {"extra": {"adam_beta2": 0.9}}, id="extra-changed"),
        pytest.param("training", {"extra": {"nested": {"a": [2]}}}, id="extra-changed-deeply"),
        pytest.param("training", {"extra": {"new": 1}}, id="extra-added"),
        pytest.param("training", {"extra": {"adam_beta2": None}}, id="extra-removed"),
        pytest.param("training", {"extra": None}, id="extra-dropped"),
    ],
)
def test_planned_job_is_immutable(jobs: Jobs, planned: str, field: str, change: Any) -> None:
    with pytest.raises(client.ApiException) as refusal:
        jobs.patch(planned, {"spec": {field: change}})
    fields, message = _causes(refusal.value)
    assert f"spec.{field}" in fields
    assert f"spec.{field} is immutable once the job is planned: make a new job" in message


def test_every_training_field_is_immutable_in_the_definition() -> None:
    schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    guarded = {
        rule["fieldPath"].removeprefix(".spec.")
        for rule in schema["x-kubernetes-validations"]
        if "oldSelf" in rule["rule"]
    }
    assert (
        guarded
        == set(TRAINING_FIELDS)
        == set(schema["properties"]["spec"]["properties"]) - {"runPolicy"}
    )


def test_run_policy_of_a_planned_job_is_mutable(jobs: Jobs, planned: str) -> None:
    change = {"suspend": True, "ttlSecondsAfterFinished": 60, "priorityClassName": "high"}
    changed = jobs.patch(planned, {"spec": {"runPolicy": change}})
    defaults = {"backoffLimit": 3, "terminationGracePeriodSeconds": 120}
    assert changed["spec"]["runPolicy"] == defaults | change


def test_a_job_without_plan_is_mutable(jobs: Jobs) -> None:
    jobs.create(_manifest({"name": "unplanned"}))
    jobs.patch_status("unplanned", {"phase": "Preparing"})
    changed = jobs.patch("unplanned", {"spec": {"training": {"seed": 1}}})
    assert changed["spec"]["training"]["seed"] == 1
    jobs.delete("unplanned")


def test_kubectl_explains_every_field(control_plane: Cluster, jobs: Jobs) -> None:
    for field in ("spec", "status"):
        text = control_plane.kubectl("explain", f"finetunejob.{field}", "--recursive")
        schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]
        properties = schema["openAPIV3Schema"]["properties"][field]["properties"]
        assert all(f"  {name}\t<" in text for name in properties)
    text = control_plane.kubectl("explain", "ftj.spec.training.batchSize")
    assert "Sequences per optimizer step" in text


def test_kubectl_shows_a_job_at_a_glance(control_plane: Cluster, jobs: Jobs, planned: str) -> None:
    head, row = control_plane.kubectl("get", "ftj", planned).splitlines()
    assert head.split() == ["NAME", "METHOD", "PHASE", "REASON", "STEP", "LOSS", "AGE"]
    # The reason of the condition Failed, which is False in this sample.
    assert row.split()[:6] == ["planned", "grpo", "Running", "AsExpected", "24/40", "1.2346"]
    wide = control_plane.kubectl("get", "finetunejobs", planned, "-o", "wide").splitlines()[0]
    assert wide.split()[6:] == [
        "STABILITY", "MODEL", "PLAN", "TOKENS/S", "ETA(S)", "MESSAGE", "AGE",
    ]  # fmt: skip


def test_jobs_are_found_by_phase_and_method(control_plane: Cluster, planned: str) -> None:
    selector = "--field-selector=status.phase=Running,spec.method=grpo"
    found = control_plane.kubectl("get", "ftj", selector, "-o", "name")
    assert found.strip() == f"finetunejob.{names.GROUP}/{planned}"


def test_the_chart_carries_the_same_definition(control_plane: Cluster) -> None:
    chart = ROOT / f"helm/finetune-operator/files/crds/{names.GROUP}_{names.PLURAL}.yaml"
    assert chart.read_text() == CRD.read_text()
