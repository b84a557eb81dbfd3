"""Dynamic volumes of the default StorageClass: one folder of the host for each claim.

A claim gets its folder once a pod that uses it has a node; deleting the claim deletes the folder.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from kubernetes import client

from devcluster.manifests import PROVISIONER
from devcluster.watching import connect, follow, run_together

_SELECTED_NODE = "volume.kubernetes.io/selected-node"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"


def volume_name(claim: Any) -> str:
    """Named after the claim's uid: a second attempt meets the first one's volume."""
    return f"pvc-{claim.metadata.uid}"


def wants_volume(claim: Any) -> bool:
    """Whether a claim (V1PersistentVolumeClaim) waits for us, and a pod for it."""
    annotations = claim.metadata.annotations or {}
    return (
        claim.metadata.deletion_timestamp is None
        and annotations.get(_STORAGE_PROVISIONER) == PROVISIONER
        and _SELECTED_NODE in annotations
        and not claim.spec.volume_name
    )


def is_released(volume: Any) -> bool:
    """Whether a volume (V1PersistentVolume) of ours has lost its claim for good."""
    return (
        (volume.metadata.annotations or {}).get(_PROVISIONED_BY) == PROVISIONER
        and volume.status.phase == "Released"
        and volume.spec.persistent_volume_reclaim_policy == "Delete"
        and volume.metadata.deletion_timestamp is None
    )


def volume_of(claim: Any, folder: Path, *, shared: bool) -> client.V1PersistentVolume:
    """The volume of a claim.

    `local` volumes belong to one node, and the kubelet gives them the pod's fsGroup. With
    `shared` the folder stands for a file system that every (fake) node reaches.
    """
    spec = client.V1PersistentVolumeSpec(
        capacity={"storage": claim.spec.resources.requests["storage"]},
        access_modes=claim.spec.access_modes,
        storage_class_name=claim.spec.storage_class_name,
        persistent_volume_reclaim_policy="Delete",
        claim_ref=client.V1ObjectReference(
            api_version="v1",
            kind="PersistentVolumeClaim",
            namespace=claim.metadata.namespace,
            name=claim.metadata.name,
            uid=claim.metadata.uid,
        ),
    )
    if shared:
        spec.host_path = client.V1HostPathVolumeSource(path=str(folder))
    else:
        spec.local = client.V1LocalVolumeSource(path=str(folder))
        spec.node_affinity = _only_on(claim.metadata.annotations[_SELECTED_NODE])
    metadata = client.V1ObjectMeta(
        name=volume_name(claim), annotations={_PROVISIONED_BY: PROVISIONER}
    )
    return client.V1PersistentVolume(
        api_version="v1", kind="PersistentVolume", metadata=metadata, spec=spec
    )


def _only_on(node: str) -> client.V1VolumeNodeAffinity:
    name = client.V1NodeSelectorRequirement(
        key="kubernetes.io/hostname", operator="In", values=[node]
    )
    term = client.V1NodeSelectorTerm(match_expressions=[name])
    return client.V1VolumeNodeAffinity(required=client.V1NodeSelector(node_selector_terms=[term]))


class Provisioner:
    """Follows claims and volumes; `folder` holds one sub-folder for each volume."""

    def __init__(self, api: client.CoreV1Api, folder: Path, *, shared: bool) -> None:
        self._api = api
        self._folder = folder
        self._shared = shared

    def follow_claims(self) -> None:
        listing = self._api.list_persistent_volume_claim_for_all_namespaces
        follow(listing, _nothing_to_forget, self._on_claim)

    def follow_volumes(self) -> None:
        follow(self._api.list_persistent_volume, _nothing_to_forget, self._on_volume)

    def _on_claim(self, change: str, claim: Any) -> None:
        if change == "DELETED" or not wants_volume(claim):
            return
        folder = self._folder / volume_name(claim)
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever a pod runs as may write, also without an fsGroup.
        folder.chmod(0o777)
        try:
            self._api.create_persistent_volume(volume_of(claim, folder, shared=self._shared))
        except client.ApiException as error:
            if error.status != 409:  # Ours, from before a restart.
                raise

    def _on_volume(self, change: str, volume: Any) -> None:
        if change == "DELETED" or not is_released(volume):
            return
        folder = self._folder / volume.metadata.name
        if folder.exists():
            shutil.rmtree(folder)
        try:
            self._api.delete_persistent_volume(volume.metadata.name)
        except client.ApiException as error:
            if error.status != 404:  # Gone meanwhile.
                raise


def _nothing_to_forget() -> None:
    return


def main() -> None:
    parser = argparse.ArgumentParser(prog="devcluster.provisioner", description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shared", action="store_true")
    arguments = parser.parse_args()
    api = client.CoreV1Api(connect(arguments.kubeconfig))
    provisioner = Provisioner(api, arguments.folder, shared=arguments.shared)
    run_together(provisioner.follow_claims, provisioner.follow_volumes)


if __name__ == "__main__":
    main()
