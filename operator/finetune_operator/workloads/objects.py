"""Names, labels and metadata of the objects that belong to a job."""

import hashlib
import json
from typing import Any

from finetune_api import names

Object = dict[str, Any]


def pod_name(job: str, role: str, attempt: int, rank: int = 0) -> str:
    """Return the name of a pod: JOB-prepare-N, or JOB-trainer-N-RANK."""
    name = f"{job}-{role}-{attempt}"
    return name if role == names.PREPARE_ROLE else f"{name}-{rank}"


def service_name(job: str, uid: str) -> str:
    """Return the name of the headless Service through which the pods of an attempt meet.

    It carries the start of the job's UID: server-side apply would otherwise take over, and garbage
    collection later delete, a Service of the same name that a person or an earlier job made.
    """
    return f"{job}-trainer-{uid[:8]}"


def workspace_claim_name(job: str, uid: str) -> str:
    """Return the name of the claim made for a job; with the start of its UID, as service_name."""
    return f"{job}-workspace-{uid[:8]}"


def labels(job: str, uid: str, role: str) -> dict[str, str]:
    """Return the labels of a child; the job's own labels are not passed on: GitOps reads them."""
    return {
        names.MANAGED_BY_LABEL: names.MANAGER,
        names.JOB_LABEL: job,
        names.JOB_UID_LABEL: uid,
        names.ROLE_LABEL: role,
    }


def metadata(job: str, uid: str, namespace: str, name: str, role: str) -> Object:
    """Return the metadata of a child; garbage collection deletes it with the job."""
    return {
        "name": name,
        "namespace": namespace,
        "labels": labels(job, uid, role),
        "annotations": {},
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": job,
                "uid": uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def desired_hash(body: Object) -> str:
    """Return the hash of a desired body; equal hash, no write."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_hash(body: Object) -> Object:
    """Return the body with the annotation that carries its hash."""
    digest = desired_hash(body)
    annotations = body["metadata"]["annotations"] | {names.HASH_ANNOTATION: digest}
    return body | {"metadata": body["metadata"] | {"annotations": annotations}}
