"""The shell around the state machine: reads from memory, writes to the API server."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api import names
from finetune_api.status import FineTuneJobStatus
from finetune_operator.api import JOBS, PODS, Api, ApiError
from finetune_operator.lifecycle import Decision, Event, Job, Pod, decide, rejected
from finetune_operator.metrics import PHASES, RECONCILE_SECONDS, RECONCILES
from finetune_operator.progress import Follower, Target
from finetune_operator.status import merge_patch
from finetune_operator.store import Key, Store
from finetune_operator.workloads import TrainerSettings, children

logger = logging.getLogger(__name__)

_REFUSALS = {400, 403, 409, 422}
"""Answers that trying again at once does not change: over quota, invalid, a name that is taken."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Brings one job a step forward; safe to call at any time and any number of times."""

    def __init__(
        self,
        api: Api,
        store: Store,
        follower: Follower,
        settings: TrainerSettings,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._api = api
        self._store = store
        self._follower = follower
        self._settings = settings
        self._clock = clock

    async def __call__(self, key: Key) -> float | None:
        """Reconcile a job; return after how many seconds time alone would change the decision."""
        started = time.monotonic()
        outcome = "error"
        try:
            outcome, again_after = await self._reconcile(key)
        finally:
            RECONCILES.labels(outcome).inc()
            RECONCILE_SECONDS.observe(time.monotonic() - started)
        return again_after

    async def _reconcile(self, key: Key) -> tuple[str, float | None]:
        body = self._store.job(key)
        if body is None:
            self._follower.follow(key, None)
            return "unchanged", None
        try:
            job = Job.parse(body)
        except ValidationError as error:
            # A CRD newer than this operator: leave the job alone and look again when it changes.
            logger.warning("job does not fit this operator", extra=labels(key, error=str(error)))
            return "error", None
        decision = self._decide(key, job, confirmed=False)
        if decision.confirm:
            await self._list_pods(job)
            decision = self._decide(key, job, confirmed=True)
        changed = await self._execute(key, body, job, decision)
        return "changed" if changed else "unchanged", decision.requeue_after

    def _decide(self, key: Key, job: Job, *, confirmed: bool) -> Decision:
        pods = [Pod.parse(body) for body in self._store.pods(job.uid)]
        report = self._follower.report(key)
        return decide(job, pods, now=self._clock(), report=report, confirmed=confirmed)

    async def _list_pods(self, job: Job) -> None:
        selector = f"{names.JOB_UID_LABEL}={job.uid}"
        bodies, version = await self._api.list(PODS, job.namespace, selector)
        self._store.replace_pods(job.uid, bodies, version)

    async def _execute(self, key: Key, body: dict[str, Any], job: Job, decision: Decision) -> bool:
        """Carry out a decision: children, then the one status write, then events."""
        _log(key, job, decision)
        try:
            await self._launch(job, decision)
        except ApiError as error:
            if error.code in _REFUSALS:
                refused = rejected(job, _why_refused(error), now=self._clock())
                await self._write_status(body, job, refused, exact=False)
            raise
        for pod in decision.delete:
            await self._delete_pod(pod)
        changed = await self._write_status(body, job, decision.status, exact=decision.exact)
        for event in decision.events:
            await self._api.create_event(_event(job, event, self._clock()))
        follow = decision.follow
        target = (
            Target(follow.uid, follow.namespace, follow.name, follow.ip)
            if follow is not None and follow.ip is not None
            else None
        )
        self._follower.follow(key, target)
        if decision.delete_job:
            await self._delete_job(key, job)
        return changed or bool(decision.delete)

    async def _launch(self, job: Job, decision: Decision) -> None:
        if decision.launch is None:
            return
        existing = {
            pod["metadata"]["name"]: pod["metadata"].get("annotations", {})
            for pod in self._store.pods(job.uid)
        }
        for child in children(
            name=job.name,
            namespace=job.namespace,
            uid=job.uid,
            spec=job.spec,
            plan=decision.status.plan,
            preparation=decision.status.preparation,
            launch=decision.launch,
            settings=self._settings,
        ):
            metadata = child["metadata"]
            present = existing.get(metadata["name"], {}) if child["kind"] == "Pod" else {}
            wanted = metadata["annotations"][names.HASH_ANNOTATION]
            if present.get(names.HASH_ANNOTATION) == wanted:
                continue
            applied = await self._api.apply(child)
            if child["kind"] == "Pod":
                self._store.put_pod(applied)

    async def _delete_pod(self, pod: Pod) -> None:
        try:
            await self._api.delete(PODS, pod.namespace, pod.name, {"uid": pod.uid})
        except ApiError as error:
            if error.code not in {404, 409}:  # Gone, or another pod by now.
                raise

    async def _delete_job(self, key: Key, job: Job) -> None:
        version = self._store.job(key)
        seen = version["metadata"]["resourceVersion"] if version else job.resource_version
        await self._api.delete(
            JOBS, job.namespace, job.name, {"uid": job.uid, "resourceVersion": seen}
        )

    async def _write_status(
        self, body: dict[str, Any], job: Job, status: FineTuneJobStatus, *, exact: bool
    ) -> bool:
        """Write the status if it changed; return whether it did."""
        if status == job.status:
            return False
        patch = merge_patch(body.get("status") or {}, status.to_json())
        metadata = {"uid": job.uid} | ({"resourceVersion": job.resource_version} if exact else {})
        try:
            written = await self._api.patch_status(
                job.namespace, job.name, {"metadata": metadata, "status": patch}
            )
        except ApiError as error:
            if error.code == 409:
                self._store.put_job(await self._api.get(JOBS, job.namespace, job.name))
            if error.code != 404:
                raise
            self._store.forget_job(body)
            return False
        self._store.put_job(written)
        if status.phase is not job.status.phase:
            PHASES.labels(status.phase.value).inc()
        return True


def _why_refused(error: ApiError) -> str:
    if "Only one reference can have Controller" in error.message:
        return "one of the same name belongs to an earlier job and is not deleted yet."
    return error.message


def labels(key: Key, **fields: Any) -> dict[str, Any]:
    """Return a job's fields of a log line."""
    return {"namespace": key[0], "job": key[1], **fields}


def _log(key: Key, job: Job, decision: Decision) -> None:
    """Write one line for each decision that does something people care about."""
    status, launch = decision.status, decision.launch
    if status.phase is job.status.phase and not (launch or decision.delete or decision.delete_job):
        return
    facts = {
        "attempt": status.attempts[-1].number if status.attempts else None,
        "launch": f"{launch.role}-{launch.number}" if launch else None,
        "delete": [pod.name for pod in decision.delete] or None,
        "expired": decision.delete_job or None,
        "message": status.message,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    known["detail"] = known.pop("message")
    change = f"{job.status.phase.value} -> {status.phase.value}"
    logger.info("%s", change, extra=labels(key, **known))


def _event(job: Job, event: Event, now: datetime) -> dict[str, Any]:
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{job.name}.{int(now.timestamp() * 1e6):x}.{event.reason.lower()}",
            "namespace": job.namespace,
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": job.name,
            "namespace": job.namespace,
            "uid": job.uid,
            "resourceVersion": job.resource_version,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "source": {"component": names.MANAGER},
        "reportingComponent": names.MANAGER,
        "reportingInstance": names.MANAGER,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
