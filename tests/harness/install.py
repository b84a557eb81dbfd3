"""What the demo and the end-to-end tests set up: the operator by its chart, files in a claim."""

import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from harness.kubectl import Kubectl, KubectlError, Manifest

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"


def install_operator(
    kubectl: Kubectl, helm: Path | str, images: Mapping[str, str], *values: str
) -> None:
    """Install or upgrade the operator and wait until it is ready.

    Args:
        kubectl: The cluster.
        helm: The helm binary.
        images: References of the images `operator` and `trainer`.
        values: Further Helm values, as KEY=VALUE.

    """
    repository, _, tag = images["operator"].rpartition(":")
    settings = [
        f"image.repository={repository}",
        f"image.tag={tag}",
        f"trainer.image={images['trainer']}",
        *values,
    ]
    subprocess.run(
        [
            *(str(helm), "upgrade", RELEASE, str(CHART), "--install", "--wait", "--timeout", "3m"),
            *("--namespace", NAMESPACE, "--create-namespace"),
            *(argument for setting in settings for argument in ("--set-string", setting)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env=kubectl.environment,
    )


def create_namespace(kubectl: Kubectl) -> None:
    """Create the namespace of kubectl."""
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": kubectl.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        }
    )


def claim(name: str, size: str) -> Manifest:
    """Return a PersistentVolumeClaim of the default storage class."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        },
    }


def fill_claim(kubectl: Kubectl, name: str, image: str, folders: Mapping[str, Path]) -> None:
    """Copy local files and folders into a claim, through a pod that mounts it."""
    pod = f"fill-{name}"
    kubectl.apply(_shell_pod(pod, name, image))
    try:
        kubectl.run("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=10m")
        unpack = ("tar", "--extract", "--no-same-owner", "--directory", "/claim")
        command = kubectl.command("exec", "--stdin", pod, "--", *unpack)
        # A stream: the archive of a model does not fit into memory twice.
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, env=kubectl.environment) as copy,
            tarfile.open(fileobj=copy.stdin, mode="w|") as tar,
        ):
            for target, source in folders.items():
                tar.add(source, arcname=target)
        if copy.returncode:
            raise KubectlError(f"copying into claim {name} ended with {copy.returncode}")
    finally:
        kubectl.delete("pod", pod, "--grace-period=1")


def read_claim(kubectl: Kubectl, name: str, image: str, script: str) -> str:
    """Run a shell script in a pod that has the claim at /claim; return what it printed."""
    pod = f"read-{name}"
    kubectl.apply(_shell_pod(pod, name, image))
    try:
        kubectl.run("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=2m")
        return kubectl.run("exec", pod, "--", "sh", "-euc", script)
    finally:
        kubectl.delete("pod", pod, "--grace-period=1")


def _shell_pod(pod: str, claim_name: str, image: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "shell",
                    "image": image,
                    "command": ["sleep", "3600"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }


__all__ = [
    "NAMESPACE",
    "RELEASE",
    "KubectlError",
    "claim",
    "create_namespace",
    "fill_claim",
    "install_operator",
    "read_claim",
]
