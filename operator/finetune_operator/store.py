"""The last known state of jobs and pods: fed by watches, by our own writes and by resyncs.

It answers without a request. It may be behind, so nothing destructive follows from what is absent
here: the reconciler asks the API server first.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from finetune_api import names
from finetune_api.sources import JOB_SCHEME

logger = logging.getLogger(__name__)

Body = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a job."""
Owner = tuple[str, str]
"""Namespace and UID of the job that a pod belongs to."""

_REMEMBERED_DELETIONS: Final = 10_000
_NUMBERS: Final = (names.ATTEMPT_LABEL, names.RANK_LABEL)


class Store:
    """Jobs by key and their pods by owner; the newest resourceVersion wins."""

    def __init__(self) -> None:
        self._jobs: dict[Key, Body] = {}
        self._pods: dict[Owner, dict[str, Body]] = {}
        self._dependants: dict[Key, set[Key]] = {}
        """The jobs that name each job, which need not exist, as a source."""
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def job(self, key: Key) -> Body | None:
        """Return a job."""
        return self._jobs.get(key)

    def jobs(self) -> Iterator[tuple[Key, Body]]:
        """Yield all jobs."""
        yield from list(self._jobs.items())

    def dependants(self, key: Key) -> list[Key]:
        """Return the jobs that start from the model of a job."""
        return sorted(self._dependants.get(key, ()))

    def pods(self, owner: Owner) -> list[Body]:
        """Return the pods of a job."""
        return list(self._pods.get(owner, {}).values())

    def put_job(self, body: Body) -> bool:
        """Store a job; return whether it changed in a way that matters to a decision."""
        key = job_key(body)
        before = self._jobs.get(key)
        if not self._newer(before, body):
            return False
        self._jobs[key] = _slim(body)
        self._relate(key, before, body)
        return before is None or _job_signature(before) != _job_signature(body)

    def put_pod(self, body: Body) -> bool:
        """Store a job's pod; return whether it changed in a way that matters to a decision."""
        owner = owner_of(body)
        if owner is None:
            _ignore(body)
            return False
        siblings = self._pods.setdefault(owner, {})
        before = siblings.get(body["metadata"]["name"])
        if not self._newer(before, body):
            return False
        siblings[body["metadata"]["name"]] = _slim(body)
        return before is None or _pod_signature(before) != _pod_signature(body)

    def forget_job(self, body: Body) -> None:
        """Remove a job that was deleted, with its pods."""
        self._remember_deletion(body)
        key, uid = job_key(body), body["metadata"]["uid"]
        if key in self._jobs and self._jobs[key]["metadata"]["uid"] == uid:
            self._relate(key, self._jobs.pop(key), None)
        self._pods.pop((key[0], uid), None)

    def forget_pod(self, body: Body) -> bool:
        """Remove a pod that was deleted; return whether it was a job's."""
        owner = owner_of(body)
        if owner is None:
            _ignore(body)
            return False
        self._remember_deletion(body)
        siblings = self._pods.get(owner, {})
        known = siblings.get(body["metadata"]["name"])
        if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
            del siblings[body["metadata"]["name"]]
            if not siblings:
                del self._pods[owner]
        return True

    def replace_pods(self, owner: Owner, bodies: Iterable[Body], version: str) -> None:
        """Make the pods of one job what a list at a resourceVersion says."""
        listed = {body["metadata"]["uid"]: body for body in bodies}
        for known in self.pods(owner):
            if known["metadata"]["uid"] not in listed and _version(known) <= int(version):
                self.forget_pod(known)
        for body in listed.values():
            self.put_pod(body)

    def replace_all(self, jobs: list[Body], pods: list[Body], versions: tuple[str, str]) -> int:
        """Make everything what two lists say; return how many changes had been missed."""
        missed = self._drop_absent(jobs, pods, versions)
        for body in jobs:
            missed += self.put_job(body)
        for body in pods:
            missed += self.put_pod(body)
        return missed

    def _drop_absent(self, jobs: list[Body], pods: list[Body], versions: tuple[str, str]) -> int:
        ours = [body for body in pods if owner_of(body) is not None]
        present = {body["metadata"]["uid"] for body in (*jobs, *ours)}
        gone_pods = [
            body
            for siblings in self._pods.values()
            for body in siblings.values()
            if body["metadata"]["uid"] not in present and _version(body) <= int(versions[1])
        ]
        gone_jobs = [
            body
            for body in self._jobs.values()
            if body["metadata"]["uid"] not in present and _version(body) <= int(versions[0])
        ]
        for body in gone_pods:
            self.forget_pod(body)
        for body in gone_jobs:
            self.forget_job(body)
        return len(gone_pods) + len(gone_jobs)

    def _relate(self, key: Key, before: Body | None, body: Body | None) -> None:
        for named in _named(before):
            self._dependants[named].discard(key)
            if not self._dependants[named]:
                del self._dependants[named]
        for named in _named(body):
            self._dependants.setdefault(named, set()).add(key)

    def _newer(self, before: Body | None, body: Body) -> bool:
        if body["metadata"]["uid"] in self._deleted:
            # A late event, or the answer to a write that the deletion has overtaken.
            return False
        return before is None or _version(body) > _version(before)

    def _remember_deletion(self, body: Body) -> None:
        self._deleted[body["metadata"]["uid"]] = None
        while len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)


def job_key(body: Body) -> Key:
    """Return the key of a job."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def pod_job_key(body: Body) -> Key:
    """Return the key of the job that a pod belongs to."""
    return body["metadata"]["namespace"], body["metadata"]["labels"][names.JOB_LABEL]


def owner_of(pod: Body) -> Owner | None:
    """Return the job that controls a pod; None when this operator did not make the pod.

    Anybody may give a pod our labels: what counts is the controller, in the pod's own namespace.
    """
    metadata = pod["metadata"]
    found = metadata.get("labels", {})
    for reference in metadata.get("ownerReferences", []):
        job = {
            names.MANAGED_BY_LABEL: names.MANAGER,
            names.JOB_LABEL: reference["name"],
            names.JOB_UID_LABEL: reference["uid"],
        }
        if (
            reference.get("controller")
            and (reference["apiVersion"], reference["kind"]) == (names.API_VERSION, names.KIND)
            and job.items() <= found.items()
            and found.get(names.ROLE_LABEL) in {names.PREPARE_ROLE, names.TRAINER_ROLE}
            and all(found.get(label, "").isdecimal() for label in _NUMBERS)
        ):
            return metadata["namespace"], reference["uid"]
    return None


def _ignore(pod: Body) -> None:
    place = {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]}
    logger.debug("ignored a pod that has our label and is not ours", extra=place)


def _named(body: Body | None) -> set[Key]:
    """Return the jobs that a job names as sources."""
    if body is None:
        return set()
    spec, namespace = body["spec"], body["metadata"]["namespace"]
    sources = [spec["model"]["source"], *(one.get("model", "") for one in spec.get("rewards", []))]
    jobs = [source for source in sources if source.startswith(JOB_SCHEME)]
    return {(namespace, source.removeprefix(JOB_SCHEME)) for source in jobs}


def _version(body: Body) -> int:
    """Return the resourceVersion, which orders the states of the objects of one resource."""
    return int(body["metadata"]["resourceVersion"])


def _slim(body: Body) -> Body:
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {**body, "metadata": metadata}


def _job_signature(body: Body) -> tuple[Any, ...]:
    """Return what a decision looks at, without status: our own writes must not wake us."""
    metadata = body["metadata"]
    return metadata["uid"], metadata["generation"], metadata.get("deletionTimestamp")


def _pod_signature(body: Body) -> tuple[Any, ...]:
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = [
        (condition["type"], condition["status"], condition.get("reason"), condition.get("message"))
        for condition in status.get("conditions", [])
        if (condition["type"], condition["status"])
        in {("PodScheduled", "False"), ("DisruptionTarget", "True")}
    ]
    states = [container.get("state") for container in status.get("containerStatuses", [])]
    return (
        metadata["uid"],
        metadata.get("deletionTimestamp"),
        status.get("phase"),
        status.get("reason"),
        status.get("podIP"),
        states,
        conditions,
    )
