"""Where the demo runs: the cluster on this machine, or the user's own."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster import Cluster, images
from finetune_api.names import GPU_RESOURCE
from harness.kubectl import Kubectl

STAND_IN_GPUS = 2
"""GPUs that the cluster on one machine claims to have, so that the plan is a GPU plan."""


@dataclass(frozen=True)
class Target:
    """A cluster with everything that the demo needs."""

    kubectl: Kubectl
    helm: Path | str
    images: Mapping[str, str]
    values: tuple[str, ...]
    """Helm values that only this cluster needs."""
    about: str
    """How the user reaches the cluster."""


def own() -> Target:
    """Bring up the cluster on this machine and the images in its registry."""
    cluster = Cluster.node(gpus=STAND_IN_GPUS)
    cluster.up()
    return Target(
        kubectl=Kubectl(cluster.bin("kubectl"), cluster.kubeconfig, "demo"),
        helm=cluster.bin("helm"),
        images=images.build_and_push(),
        # The GPUs are stand-ins: the trainer may run on the CPU although its plan has GPUs.
        values=("trainer.env.FINETUNE_DEVICE=cpu",),
        about=f'export KUBECONFIG={cluster.kubeconfig} PATH="{cluster.layout.tools}:$PATH"',
    )


def current(registry: str | None) -> Target:
    """Use the context that kubectl uses now, with images in the user's registry.

    Raises:
        SystemExit: when kubectl, helm or the registry is missing.

    """
    for tool in ("kubectl", "helm"):
        if shutil.which(tool) is None:
            raise SystemExit(f"CLUSTER=current needs {tool} on the PATH")
    if registry is None:
        raise SystemExit("CLUSTER=current needs REGISTRY=host/path that the cluster pulls from")
    kubectl = Kubectl(namespace="demo")
    options = images.Options(cuda=has_gpus(kubectl))
    return Target(
        kubectl=kubectl,
        helm="helm",
        images=images.build_and_push(registry=registry, options=options),
        values=(),
        about="# kubectl's current context",
    )


def has_gpus(kubectl: Kubectl) -> bool:
    """Return whether a node offers GPUs."""
    nodes = kubectl.list("nodes")
    return any(int(node["status"]["allocatable"].get(GPU_RESOURCE, 0)) for node in nodes)
