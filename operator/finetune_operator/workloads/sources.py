"""Where model, data and rewards come from: the volumes and secrets that preparation needs."""

from collections.abc import Iterator

from finetune_api import names
from finetune_api.trainer import TrainerConfig
from finetune_operator.workloads.objects import Object


def source_volumes(config: TrainerConfig) -> tuple[list[Object], list[Object]]:
    """Return volumes and read-only mounts, one for each claim and ConfigMap that is a source."""
    volumes: list[Object] = []
    mounts: list[Object] = []
    for scheme, name in sorted(set(_mounted(config))):
        volume = f"source-{len(volumes)}"
        volumes.append({"name": volume, **_volume(scheme, name)})
        mounts.append(
            {
                "name": volume,
                "mountPath": f"{names.SOURCES_DIR}/{scheme}/{name}",
                "readOnly": True,
            }
        )
    return volumes, mounts


def source_secrets(config: TrainerConfig) -> list[Object]:
    """Return envFrom entries, one for each Secret of a source."""
    found = {secret for _, secret in _sources(config) if secret is not None}
    return [{"secretRef": {"name": secret}} for secret in sorted(found)]


def _volume(scheme: str, name: str) -> Object:
    if scheme == "pvc":
        return {"persistentVolumeClaim": {"claimName": name}}
    # Optional: preparation says which ConfigMap is missing, where the kubelet would wait for ever.
    return {"projected": {"sources": [{"configMap": {"name": name, "optional": True}}]}}


def _mounted(config: TrainerConfig) -> Iterator[tuple[str, str]]:
    for source, _ in _sources(config):
        scheme, _, rest = source.partition("://")
        if scheme in {"pvc", "configmap"}:
            yield scheme, rest.partition("/")[0]


def _sources(config: TrainerConfig) -> Iterator[tuple[str, str | None]]:
    """Yield each source URI with its Secret; in place of job://NAME what it stands for."""
    spec = config.spec
    for start in config.starts.values():
        yield start.base, start.secret
        for adapter in (*start.merge, start.adapter):
            if adapter is not None:
                yield adapter, None
    yield spec.model.source, spec.model.secret
    if spec.dataset.source is not None:
        yield spec.dataset.source, spec.dataset.secret
    for part in spec.dataset.mixture or []:
        yield part.source, part.secret
    for reward in spec.rewards or []:
        if reward.function is not None:
            yield reward.function, None
        if reward.model is not None:
            yield reward.model, reward.secret
