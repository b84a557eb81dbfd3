"""How KWOK plays our pods: Running at once, later Succeeded with the message of their role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from devcluster.settings import LOOPBACK, Kwok

MESSAGE_ANNOTATION = "finetune.dev/kwok-message"
"""On a pod: its termination message, instead of its role's."""
ROLE_LABEL = "finetune.dev/role"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "finetune-operator"

_NOT_DELETED = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
_RUNNING = """
{{ $now := Now }}
conditions:
{{ range $type := list "PodReadyToStartContainers" "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  started: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}
phase: Running
startTime: {{ $now | Quote }}
"""
_SUCCEEDED = """
{{ $now := Now }}
{{ $root := . }}
{{ $annotations := or .metadata.annotations dict }}
{{ $message := or (index $annotations "ANNOTATION") MESSAGE }}
conditions:
- {type: Initialized, status: "True", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: "False", reason: PodCompleted, lastTransitionTime: {{ $now | Quote }}}
- type: ContainersReady
  status: "False"
  reason: PodCompleted
  lastTransitionTime: {{ $now | Quote }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      message: {{ $message | Quote }}
      startedAt: {{ $root.status.startTime | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
phase: Succeeded
"""


def arguments(config: Path, kubeconfig: Path) -> list[str]:
    return [
        f"--config={config}",
        f"--kubeconfig={kubeconfig}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds=40",
        "--cidr=10.128.0.1/12",
        f"--server-address={LOOPBACK}:0",
    ]


def write_stages(path: Path, kwok: Kwok) -> None:
    """The configuration file: a pod's way. Nodes go by the stages that KWOK brings along."""
    path.write_text(yaml.safe_dump_all(stages(kwok)))


def stages(kwok: Kwok) -> list[dict[str, Any]]:
    phase_running = {"key": ".status.phase", "operator": "In", "values": ["Running"]}
    no_address = {"key": ".status.podIP", "operator": "DoesNotExist"}
    deleted = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
    return [
        _stage("pod-running", [_NOT_DELETED, no_address], {"statusTemplate": _RUNNING}),
        _stage("pod-deleted", [deleted], {"finalizers": {"empty": True}, "delete": True}),
        *(
            _stage(
                f"pod-succeeded-{role}",
                [_NOT_DELETED, phase_running],
                {"statusTemplate": _succeeded(message)},
                labels={MANAGED_BY_LABEL: MANAGER, ROLE_LABEL: role},
                delay=kwok.pod_seconds,
            )
            for role, message in kwok.pod_messages.items()
        ),
    ]


def _succeeded(message: str) -> str:
    # A JSON string without escapes beyond ASCII is also a string literal of Go's templates.
    literal = json.dumps(message, ensure_ascii=False)
    return _SUCCEEDED.replace("ANNOTATION", MESSAGE_ANNOTATION).replace("MESSAGE", literal, 1)


def _stage(
    name: str,
    conditions: list[dict[str, Any]],
    action: dict[str, Any],
    *,
    labels: dict[str, str] | None = None,
    delay: float = 0,
) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {"matchLabels": labels or {}, "matchExpressions": conditions},
            "delay": {"durationMilliseconds": int(delay * 1000)},
            "next": action,
        },
    }
