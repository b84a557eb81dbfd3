"""What the objects of an attempt look like."""

import json
from typing import Any

import pytest

from finetune_api import names
from finetune_api.status import FineTuneJobStatus, ModelStart
from finetune_api.trainer import TrainerConfig
from finetune_operator.workloads import Launch, TrainerSettings, children, desired_hash
from unit.operator.builders import UID, make_plan_of, make_preparation, make_spec

SETTINGS = TrainerSettings(image="registry/trainer:1", env={"FINETUNE_DEVICE": "cpu"})


TWO_NODES = {"gpus": 4, "nodes": 2, "gpus_per_node": 2}
"""What a plan over two nodes says."""


def make_children(
    role: str,
    number: int = 1,
    *,
    settings: TrainerSettings = SETTINGS,
    plan: dict[str, Any] | None = None,
    starts: dict[str, ModelStart] | None = None,
    **parts: Any,
) -> list[dict[str, Any]]:
    training = role == names.TRAINER_ROLE
    return children(
        name="job",
        namespace="team",
        uid=UID,
        spec=make_spec(**parts),
        status=FineTuneJobStatus(
            plan=make_plan_of(**parts).model_copy(update=plan or {}) if training else None,
            preparation=make_preparation() if training else None,
            starts=starts or {},
        ),
        launch=Launch("trainer" if training else "prepare", number, "4Gi"),
        settings=settings,
    )


def pod_of(role: str, **parts: Any) -> dict[str, Any]:
    return make_children(role, **parts)[-1]


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def mounts_of(pod: dict[str, Any]) -> dict[str, str]:
    return {mount["mountPath"]: mount["name"] for mount in container_of(pod)["volumeMounts"]}


def volume_of(pod: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the volume that is mounted at a path."""
    wanted = mounts_of(pod)[path]
    found: dict[str, Any] = next(v for v in pod["spec"]["volumes"] if v["name"] == wanted)
    return found


@pytest.mark.parametrize("role", ["prepare", "trainer"])
def test_pods_keep_to_the_restricted_standard(role: str) -> None:
    pod = pod_of(role)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container_of(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("role", ["prepare", "trainer"])
def test_every_child_belongs_to_the_job(role: str) -> None:
    for child in make_children(role, plan=TWO_NODES):
        metadata = child["metadata"]
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == [UID]
        assert metadata["labels"][names.MANAGED_BY_LABEL] == names.MANAGER
        assert metadata["labels"][names.JOB_UID_LABEL] == UID
        assert metadata["namespace"] == "team"
        body = json.loads(json.dumps(child))
        assert body["metadata"]["annotations"].pop(names.HASH_ANNOTATION) == desired_hash(body)


def test_names_are_deterministic() -> None:
    found = [
        child["metadata"]["name"]
        for role in ("prepare", "trainer")
        for child in make_children(role, 3, plan=TWO_NODES)
    ]
    assert found == [
        "job-workspace-0f3c1d52", "job-prepare-3",
        "job-trainer-0f3c1d52", "job-trainer-3-0", "job-trainer-3-1",
    ]  # fmt: skip


def test_the_pod_is_told_everything_in_its_annotation() -> None:
    pod = pod_of("trainer")
    config = TrainerConfig.model_validate_json(
        pod["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    )
    assert (config.name, config.uid, config.attempt) == ("job", UID, 1)
    assert config.spec == make_spec()
    assert config.plan == make_plan_of()
    assert container_of(pod)["args"] == ["run", "--config", names.CONFIG_FILE]
    item = volume_of(pod, names.CONFIG_DIR)["downwardAPI"]["items"][0]
    assert item["path"] == "job.json"
    assert names.CONFIG_ANNOTATION in item["fieldRef"]["fieldPath"]


def test_prepare_asks_for_no_gpu_and_mounts_its_sources() -> None:
    pod = pod_of(
        "prepare",
        model={"source": "pvc://models/base", "secret": "hub"},
        dataset={
            "mixture": [
                {"source": "configmap://rows/train.jsonl"},
                {"source": "pvc://models/data", "secret": "hub"},
                {"source": "s3://bucket/rows", "secret": "store"},
            ]
        },
    )
    container = container_of(pod)
    assert names.GPU_RESOURCE not in container["resources"]["limits"]
    assert container["envFrom"] == [
        {"secretRef": {"name": "hub"}},
        {"secretRef": {"name": "store"}},
    ]
    assert volume_of(pod, "/sources/pvc/models")["persistentVolumeClaim"]["claimName"] == "models"
    source = volume_of(pod, "/sources/configmap/rows")["projected"]["sources"][0]["configMap"]
    assert source == {"name": "rows", "optional": True}
    read_only = {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]}
    assert read_only["/sources/pvc/models"]
    assert not read_only["/output"]


def test_prepare_mounts_what_the_models_of_other_jobs_are_made_of() -> None:
    start = ModelStart(
        base="pvc://bases/llama",
        merge=["pvc://models/first", "pvc://models/second"],
        adapter="pvc://adapters/third",
    )
    judge = ModelStart(base="hf://a/judge", secret="hub")
    pod = pod_of("prepare", starts={"job://third": start, "job://judge": judge})
    for claim in ("bases", "models", "adapters"):
        volume = volume_of(pod, f"/sources/pvc/{claim}")
        assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert container_of(pod)["envFrom"] == [{"secretRef": {"name": "hub"}}]


def test_time_to_save_is_passed_on() -> None:
    pod = pod_of("trainer", runPolicy={"terminationGracePeriodSeconds": 600})
    assert pod["spec"]["terminationGracePeriodSeconds"] == 600


def test_trainer_has_no_secrets_and_no_sources() -> None:
    pod = pod_of("trainer", model={"source": "pvc://models/base", "secret": "hub"})
    container = container_of(pod)
    assert "envFrom" not in container
    assert not any(path.startswith(names.SOURCES_DIR) for path in mounts_of(pod))
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["FINETUNE_DEVICE"] == "cpu"
    assert container["resources"]["limits"][names.GPU_RESOURCE] == "1"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 120


def test_cpu_trainer_asks_for_no_gpu() -> None:
    pod = pod_of("trainer", resources={"gpu": {"count": 0}})
    assert names.GPU_RESOURCE not in container_of(pod)["resources"]["limits"]
    assert "tolerations" not in pod["spec"]


def test_only_pods_that_ask_for_gpus_may_run_on_nodes_kept_for_them() -> None:
    assert pod_of("trainer")["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"}
    ]
    assert "tolerations" not in pod_of("prepare")["spec"]


def test_an_existing_claim_is_used_by_the_jobs_own_folder() -> None:
    resources = {"workspace": {"claim": "scratch"}}
    bodies = make_children("prepare", resources=resources)
    assert [body["kind"] for body in bodies] == ["Pod"]
    mount = next(
        mount
        for mount in container_of(bodies[0])["volumeMounts"]
        if mount["mountPath"] == names.WORKSPACE_DIR
    )
    assert mount["subPath"] == UID


def test_a_new_claim_has_what_was_asked_for() -> None:
    workspace = {"size": "9Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"}
    claim = make_children("prepare", resources={"workspace": workspace})[0]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "9Gi"}},
        "storageClassName": "fast",
    }


def test_placement_is_passed_on() -> None:
    pod = pod_of(
        "trainer",
        resources={
            "gpu": {"product": "NVIDIA-H100-80GB-HBM3"},
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "image": "mine:1",
        },
        runPolicy={"priorityClassName": "high", "schedulerName": "volcano", "queue": "gpus"},
    )
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "pool": "a"}
    assert spec["tolerations"] == [
        {"key": "gpu", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists"},
    ]
    assert (spec["priorityClassName"], spec["schedulerName"]) == ("high", "volcano")
    assert container_of(pod)["image"] == "mine:1"
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_pods_of_several_nodes_find_each_other() -> None:
    service, first, second = make_children("trainer", plan=TWO_NODES, runPolicy={"queue": "gpus"})
    assert service["spec"]["clusterIP"] == "None"
    env = {entry["name"]: entry["value"] for entry in container_of(second)["env"]}
    assert env["GROUP_RANK"] == "1"
    assert env["MASTER_ADDR"] == f"{first['spec']['hostname']}.{first['spec']['subdomain']}"
    assert env["MASTER_PORT"] == str(names.RENDEZVOUS_PORT)
    assert first["spec"]["subdomain"] == service["metadata"]["name"]
    assert container_of(first)["resources"]["limits"][names.GPU_RESOURCE] == "2"
    assert second["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"


@pytest.mark.parametrize("role", ["prepare", "trainer"])
def test_pull_secrets(role: str) -> None:
    settings = TrainerSettings(image="private/trainer:1", pull_secrets=("a", "b"))
    pod = make_children(role, settings=settings)[-1]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]


def test_one_node_needs_no_service() -> None:
    assert [body["kind"] for body in make_children("trainer")] == ["Pod"]


@pytest.mark.parametrize("role", ["prepare", "trainer"])
def test_a_claim_is_one_volume_however_often_it_is_mounted(role: str) -> None:
    pod = pod_of(
        role,
        model={"source": "pvc://shared/base"},
        dataset={"source": "pvc://shared/rows.jsonl"},
        resources={"workspace": {"claim": "shared"}},
        output={"claim": "shared"},
    )
    claims = [v for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert [v["persistentVolumeClaim"]["claimName"] for v in claims] == ["shared"]
    paths = [names.WORKSPACE_DIR, names.OUTPUT_DIR]
    paths += ["/sources/pvc/shared"] if role == "prepare" else []
    assert {mounts_of(pod)[path] for path in paths} == {claims[0]["name"]}
