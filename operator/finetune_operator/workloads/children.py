"""All objects of one attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_api.trainer import TrainerConfig
from finetune_operator.workloads.objects import (
    Object,
    labels,
    metadata,
    service_name,
    with_hash,
    workspace_claim_name,
)
from finetune_operator.workloads.pods import prepare_pod, trainer_pod


@dataclass(frozen=True)
class TrainerSettings:
    """What the operator's configuration says about trainer pods."""

    image: str
    """Trainer image, unless the job names its own."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Extra environment variables of all trainer pods."""
    pull_secrets: Sequence[str] = ()
    """Image pull secrets of all trainer pods, by their names in the job's namespace."""


@dataclass(frozen=True)
class Launch:
    """The attempt that is to be started."""

    role: Literal["prepare", "trainer"]
    number: int
    memory: str
    """Memory request and limit of each pod."""


def children(
    *,
    name: str,
    namespace: str,
    uid: str,
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    launch: Launch,
    settings: TrainerSettings,
) -> list[Object]:
    """Return the objects of an attempt in the order in which they are to be applied.

    Of the status count the plan, the preparation, the starts and the rollbacks.
    """
    training = launch.role == names.TRAINER_ROLE
    plan = status.plan if training else None
    config = TrainerConfig(
        name=name,
        namespace=namespace,
        uid=uid,
        attempt=launch.number,
        spec=spec,
        plan=plan,
        preparation=status.preparation if training else None,
        starts=status.starts,
        rollbacks=status.rollbacks,
    )
    image = spec.resources.image or settings.image
    if not training:
        pod = prepare_pod(config, image=image, env=settings.env, memory=launch.memory)
        claim = [] if spec.resources.workspace.claim else [_workspace_claim(config)]
        return [with_hash(body) for body in (*claim, _pullable(pod, settings))]
    if plan is None:
        raise ValueError(f"job {namespace}/{name} has no plan: there is nothing to train by")
    pods = [
        _pullable(trainer_pod(config, plan, rank=rank, image=image, env=settings.env), settings)
        for rank in range(plan.nodes)
    ]
    service = [_service(config)] if plan.nodes > 1 else []
    return [with_hash(body) for body in (*service, *pods)]


def _pullable(pod: Object, settings: TrainerSettings) -> Object:
    if not settings.pull_secrets:
        return pod
    secrets = [{"name": secret} for secret in settings.pull_secrets]
    return pod | {"spec": pod["spec"] | {"imagePullSecrets": secrets}}


def _workspace_claim(config: TrainerConfig) -> Object:
    workspace = config.spec.resources.workspace
    spec: Object = {
        "accessModes": [workspace.access_mode],
        "resources": {"requests": {"storage": workspace.size}},
    }
    if workspace.storage_class_name is not None:
        spec["storageClassName"] = workspace.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(
            config.name,
            config.uid,
            config.namespace,
            workspace_claim_name(config.name, config.uid),
            "workspace",
        ),
        "spec": spec,
    }


def _service(config: TrainerConfig) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(
            config.name,
            config.uid,
            config.namespace,
            service_name(config.name, config.uid),
            names.TRAINER_ROLE,
        ),
        "spec": {
            "clusterIP": "None",
            # Ranks look each other up before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": labels(config.name, config.uid, names.TRAINER_ROLE),
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT}],
        },
    }
