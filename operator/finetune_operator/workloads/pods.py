"""Prepare and trainer pods, under the restricted pod security standard."""

import json
from collections.abc import Mapping
from typing import Any, Final

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan
from finetune_api.trainer import TrainerConfig
from finetune_operator.workloads.objects import (
    Object,
    metadata,
    pod_name,
    service_name,
    workspace_claim_name,
)
from finetune_operator.workloads.sources import source_secrets, source_volumes

_USER: Final = 10001
_TMP: Final = "/tmp"  # noqa: S108 - a volume of the pod, not a folder of this host
_SHM: Final = "/dev/shm"  # noqa: S108 - the same
_PREPARE_CPU: Final = "500m"
_PREPARE_GRACE_SECONDS: Final = 10

_GPU_TOLERATION: Final = {"key": names.GPU_RESOURCE, "operator": "Exists"}

_QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
_POD_GROUP_LABEL: Final = "kueue.x-k8s.io/pod-group-name"
_POD_GROUP_SIZE: Final = "kueue.x-k8s.io/pod-group-total-count"


def prepare_pod(
    config: TrainerConfig, *, image: str, env: Mapping[str, str], memory: str
) -> Object:
    """Return the pod that fetches and checks model and data; it asks for no GPU."""
    volumes, mounts = source_volumes(config)
    container = _container("prepare", image, env)
    container["envFrom"] = source_secrets(config)
    container["volumeMounts"] += [*_storage_mounts(config), *mounts]
    container["resources"] = _resources(_PREPARE_CPU, memory, gpus=0)
    volumes = [*_scratch_volumes(), *_storage_volumes(config), *volumes]
    return _pod(
        config,
        names.PREPARE_ROLE,
        rank=0,
        spec={
            "terminationGracePeriodSeconds": _PREPARE_GRACE_SECONDS,
            "containers": [container],
            "volumes": _one_volume_per_claim(volumes, container),
        },
    )


def trainer_pod(
    config: TrainerConfig, plan: Plan, *, rank: int, image: str, env: Mapping[str, str]
) -> Object:
    """Return the pod of one node of a training attempt; it has no secrets and needs no network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    rendezvous = _rendezvous(config, rank) if plan.nodes > 1 else {}
    container = _container("run", image, {**offline, **rendezvous, **env})
    container["volumeMounts"] += _storage_mounts(config)
    container["resources"] = _resources(plan.cpu, plan.host_memory, gpus=plan.gpus_per_node)
    container["ports"] = [{"name": "metrics", "containerPort": names.METRICS_PORT}]
    spec: Object = {
        "terminationGracePeriodSeconds": config.spec.run_policy.termination_grace_period_seconds,
        "containers": [container],
        "volumes": _one_volume_per_claim(
            [*_scratch_volumes(), *_storage_volumes(config)], container
        ),
    }
    if plan.nodes > 1:
        spec["hostname"] = pod_name(config.name, names.TRAINER_ROLE, config.attempt, rank)
        spec["subdomain"] = service_name(config.name, config.uid)
    pod = _pod(config, names.TRAINER_ROLE, rank=rank, spec=spec)
    if plan.gpu_product is not None:
        pod["spec"]["nodeSelector"] = {
            names.GPU_PRODUCT_LABEL: plan.gpu_product,
            **pod["spec"].get("nodeSelector", {}),
        }
    if plan.gpus:
        # As the admission plugin ExtendedResourceToleration would, which few clusters switch on.
        tolerations = [*pod["spec"].get("tolerations", []), _GPU_TOLERATION]
        pod["spec"]["tolerations"] = tolerations
    _queue(pod, config, plan)
    return pod


def _rendezvous(config: TrainerConfig, rank: int) -> dict[str, str]:
    """Return what the trainer's launcher reads to find the other nodes of the attempt."""
    master = pod_name(config.name, names.TRAINER_ROLE, config.attempt, 0)
    return {
        "GROUP_RANK": str(rank),
        "MASTER_ADDR": f"{master}.{service_name(config.name, config.uid)}",
        "MASTER_PORT": str(names.RENDEZVOUS_PORT),
    }


def _queue(pod: Object, config: TrainerConfig, plan: Plan) -> None:
    """Label the pod for Kueue, which holds it back until the quota allows the whole attempt."""
    queue = config.spec.run_policy.queue
    if queue is None:
        return
    pod["metadata"]["labels"][_QUEUE_LABEL] = queue
    if plan.nodes > 1:
        group = f"{config.name}-trainer-{config.attempt}"
        pod["metadata"]["labels"][_POD_GROUP_LABEL] = group
        pod["metadata"]["annotations"][_POD_GROUP_SIZE] = str(plan.nodes)


def _pod(config: TrainerConfig, role: str, *, rank: int, spec: Object) -> Object:
    meta = metadata(
        config.name,
        config.uid,
        config.namespace,
        pod_name(config.name, role, config.attempt, rank),
        role,
    )
    meta["labels"] |= {names.ATTEMPT_LABEL: str(config.attempt), names.RANK_LABEL: str(rank)}
    meta["annotations"] = {
        names.CONFIG_ANNOTATION: json.dumps(config.to_json(), separators=(",", ":"))
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_placement(config.spec),
            **spec,
        },
    }


def _placement(spec: FineTuneJobSpec) -> Object:
    wanted: dict[str, Any] = {
        "nodeSelector": spec.resources.node_selector,
        "tolerations": [toleration.to_json() for toleration in spec.resources.tolerations],
        "priorityClassName": spec.run_policy.priority_class_name,
        "schedulerName": spec.run_policy.scheduler_name,
    }
    return {field: value for field, value in wanted.items() if value}


def _container(command: str, image: str, env: Mapping[str, str]) -> Object:
    return {
        "name": names.CONTAINER,
        "image": image,
        "args": [command, "--config", names.CONFIG_FILE],
        "env": [{"name": name, "value": value} for name, value in {"HOME": _TMP, **env}.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": names.TERMINATION_MESSAGE_FILE,
        # Where the process died without a word of its own, the end of its log helps people.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": _TMP},
            {"name": "shm", "mountPath": _SHM},
            {"name": "config", "mountPath": names.CONFIG_DIR, "readOnly": True},
        ],
    }


def _resources(cpu: str, memory: str, *, gpus: int) -> Object:
    requests = {"cpu": cpu, "memory": memory}
    limits = {"memory": memory}
    if gpus:
        limits[names.GPU_RESOURCE] = requests[names.GPU_RESOURCE] = str(gpus)
    return {"requests": requests, "limits": limits}


def _scratch_volumes() -> list[Object]:
    config = {
        "path": names.CONFIG_FILE.rpartition("/")[2],
        "fieldRef": {"fieldPath": f"metadata.annotations['{names.CONFIG_ANNOTATION}']"},
    }
    return [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "config", "downwardAPI": {"items": [config]}},
    ]


def _one_volume_per_claim(volumes: list[Object], container: Object) -> list[Object]:
    """Return the volumes with each claim once, and point the container's mounts at them.

    A claim may be source, workspace and output at once; the kubelet waits for ever for a pod that
    has it as two volumes.
    """
    kept: dict[str, Object] = {}
    renamed: dict[str, str] = {}
    for volume in volumes:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        first = kept.setdefault(f"claim {claim}" if claim else volume["name"], volume)
        renamed[volume["name"]] = first["name"]
    container["volumeMounts"] = [
        mount | {"name": renamed[mount["name"]]} for mount in container["volumeMounts"]
    ]
    return list(kept.values())


def _storage_volumes(config: TrainerConfig) -> list[Object]:
    workspace = config.spec.resources.workspace.claim or workspace_claim_name(
        config.name, config.uid
    )
    claims = {"workspace": workspace, "output": config.spec.output.claim}
    return [
        {"name": volume, "persistentVolumeClaim": {"claimName": claim}}
        for volume, claim in claims.items()
    ]


def _storage_mounts(config: TrainerConfig) -> list[Object]:
    workspace: Object = {"name": "workspace", "mountPath": names.WORKSPACE_DIR}
    if config.spec.resources.workspace.claim is not None:
        # A claim that outlives the job: each job has its own folder.
        workspace["subPath"] = config.uid
    return [workspace, {"name": "output", "mountPath": names.OUTPUT_DIR}]
