"""Objects that every cluster holds from the start."""

from __future__ import annotations

from typing import Any

from devcluster.control_plane import BENCH_USER

Manifest = dict[str, Any]
GPU = "nvidia.com/gpu"
STORAGE_CLASS = "host-folder"
PROVISIONER = "finetune.dev/host-folder"
GPU_LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
}
"""What NVIDIA's feature discovery would say (memory in MiB): a planner reads it."""


def list_of(items: list[Manifest]) -> Manifest:
    return {"apiVersion": "v1", "kind": "List", "items": items}


def bench_user_binding() -> Manifest:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{BENCH_USER}-is-cluster-admin"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": BENCH_USER}],
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
    }


def storage_class() -> Manifest:
    """The default class: a folder of the host for every claim, made when a pod needs it."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def gpu_patch(gpus: int) -> list[Manifest]:
    """A JSON patch of a node's status: what NVIDIA's device plugin would announce."""
    path = f"/status/capacity/{GPU.replace('/', '~1')}"
    return [{"op": "add", "path": path, "value": str(gpus)}]


def fake_node(index: int, gpus: int) -> Manifest:
    """A node for KWOK to play."""
    resources = {"cpu": "64", "memory": "512Gi", "pods": "110", GPU: str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"fake-{index:03d}",
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": f"fake-{index:03d}",
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "type": "kwok",
                **(GPU_LABELS if gpus else {}),
            },
        },
        "status": {"allocatable": resources, "capacity": resources},
    }
