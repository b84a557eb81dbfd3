"""The shell around the state machine: reads from memory, writes to the API server."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api import names
from finetune_api.status import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.api import CLAIMS, JOBS, PODS, Api, ApiError
from finetune_operator.lifecycle import (
    Decision,
    Event,
    Job,
    Pod,
    Prices,
    accounted,
    decide,
    rejected,
)
from finetune_operator.metrics import RECONCILE_SECONDS, RECONCILES
from finetune_operator.neighbours import Neighbours, neighbours_of
from finetune_operator.observations import observe
from finetune_operator.planning import Inventory
from finetune_operator.progress import Follower, Target
from finetune_operator.status import merge_patch
from finetune_operator.store import Key, Store
from finetune_operator.workloads import TrainerSettings, children

logger = logging.getLogger(__name__)

_REFUSALS = {400, 403, 409, 422}
"""Answers that trying again at once does not change: over quota, invalid, a name that is taken."""
_INVALID = {400, 422}
"""Answers that trying again never changes."""
_NAME_TAKEN = ("Only one reference can have Controller", "pod updates may not change fields")
"""What is said, with code 422, when a pod of an earlier job of the same name is still there."""
_TAKEN = "one of the same name belongs to an earlier job and is not deleted yet."


class OutdatedError(Exception):
    """The job is not what the decision was made for; what it is now is in the store."""


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
        wake: Callable[[Key], None],
        clock: Callable[[], datetime] = _utc_now,
        prices: Prices | None = None,
        inventory: Callable[[], Inventory] = Inventory,
    ) -> None:
        self._api = api
        self._store = store
        self._follower = follower
        self._settings = settings
        self._wake = wake
        self._clock = clock
        self._prices = prices or Prices()
        self._inventory = inventory

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
            neighbours = neighbours_of(self._store, key, job)
        except ValidationError as error:
            # A CRD newer than this operator: leave the job alone and look again when it changes.
            logger.warning("job does not fit this operator", extra=labels(key, error=str(error)))
            return "error", None
        decision = await self._decide(key, job, neighbours, confirmed=False)
        if decision.confirm:
            await self._list_pods(job)
            decision = await self._decide(key, job, neighbours, confirmed=True)
        decision, refusal = await self._launch_or_tell(job, decision)
        _log(key, job, decision)
        try:
            changed = await self._execute(key, body, job, decision)
        except OutdatedError:
            return "changed", 0.0
        if refusal is not None:
            raise refusal
        return "changed" if changed else "unchanged", decision.requeue_after

    async def _decide(
        self, key: Key, job: Job, neighbours: Neighbours, *, confirmed: bool
    ) -> Decision:
        pods = [await self._without_stale_words(pod) for pod in self._pods(job)]
        return decide(
            job,
            pods,
            now=self._clock(),
            report=self._follower.report(key),
            confirmed=confirmed,
            chain=neighbours.chain,
            awaited=neighbours.awaited,
            inventory=self._inventory(),
        )

    def _pods(self, job: Job) -> list[Pod]:
        return [Pod.parse(body) for body in self._store.pods((job.namespace, job.uid))]

    async def _without_stale_words(self, pod: Pod) -> Pod:
        """Return a pod without what the scheduler said about a claim that exists by now.

        The scheduler is quiet from when it finds the claim until a volume is bound to it, which
        may take minutes.
        """
        claim = pod.missing_claim
        if claim is None or not await self._api.exists(CLAIMS, pod.namespace, claim):
            return pod
        return replace(pod, unscheduled=None)

    async def _list_pods(self, job: Job) -> None:
        selector = f"{names.JOB_UID_LABEL}={job.uid}"
        bodies, version = await self._api.list(PODS, job.namespace, selector)
        self._store.replace_pods((job.namespace, job.uid), bodies, version)

    async def _execute(self, key: Key, body: dict[str, Any], job: Job, decision: Decision) -> bool:
        """Carry out what is left of a decision: pods, then the one status write, then events."""
        # What they measured is in those that are about to go.
        pods = self._pods(job)
        for pod in decision.delete:
            await self._delete_pod(pod)
        changed = await self._write_status(body, job, decision.status, pods)
        for event in decision.events:
            await self._emit(key, job, event)
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

    async def _launch_or_tell(
        self, job: Job, decision: Decision
    ) -> tuple[Decision, ApiError | None]:
        """Launch; return the decision that is left, and the refusal if another try may help."""
        try:
            await self._launch(job, decision)
        except ApiError as error:
            if error.code not in _REFUSALS:
                raise
            launch = decision.launch
            made = [
                pod
                for pod in self._pods(job)
                if launch is not None and (pod.role, pod.attempt) == (launch.role, launch.number)
            ]
            taken = any(words in error.message for words in _NAME_TAKEN)
            final = error.code in _INVALID and not taken
            why = _TAKEN if taken else error.message
            left = rejected(job, decision, made, why, final=final, now=self._clock())
            return left, None if final else error
        return decision, None

    async def _launch(self, job: Job, decision: Decision) -> None:
        if decision.launch is None:
            return
        existing = {
            pod["metadata"]["name"]: pod["metadata"].get("annotations", {})
            for pod in self._store.pods((job.namespace, job.uid))
        }
        for child in children(
            name=job.name,
            namespace=job.namespace,
            uid=job.uid,
            spec=job.spec,
            status=decision.status,
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

    async def _emit(self, key: Key, job: Job, event: Event) -> None:
        """Create an Event; it tells people what the status holds anyway, so it may get lost."""
        try:
            await self._api.create_event(_event(job, event, self._clock()))
        except ApiError as error:
            if error.code != 409:  # Made by a try whose answer was lost.
                fields = labels(key, event=event.reason, error=str(error))
                logger.warning("an Event was not created", extra=fields)

    async def _write_status(
        self, body: dict[str, Any], job: Job, status: FineTuneJobStatus, pods: list[Pod]
    ) -> bool:
        """Write the status if it changed; return whether it did."""
        if status == job.status:
            return False
        status = accounted(job, status, pods, now=self._clock(), prices=self._prices)
        patch = merge_patch(body.get("status") or {}, status.to_json())
        # What was decided for one version is not written over another: an edit would be lost, and
        # a plan would freeze a training spec that it was not made for.
        metadata = {"uid": job.uid, "resourceVersion": job.resource_version}
        try:
            written = await self._api.patch_status(
                job.namespace, job.name, {"metadata": metadata, "status": patch}
            )
        except ApiError as error:
            if error.code not in {404, 409}:
                raise
            await self._look_again(body, job, error)
            raise OutdatedError from error
        self._store.put_job(written)
        observe(job, status)
        if status.phase is not job.status.phase:
            for dependant in self._store.dependants((job.namespace, job.name)):
                self._wake(dependant)
        return True

    async def _look_again(self, body: dict[str, Any], job: Job, conflict: ApiError) -> None:
        """Fetch a job that has changed; ApiError when it has not, so that nothing runs hot."""
        try:
            latest = await self._api.get(JOBS, job.namespace, job.name)
        except ApiError as error:
            if error.code != 404:
                raise
            self._store.forget_job(body)
            return
        if latest["metadata"]["resourceVersion"] == job.resource_version:
            raise conflict
        self._store.put_job(latest)


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
        "reason": next(
            (one.reason for one in status.conditions if one.type is ConditionType.FAILED), None
        ),
        "message": status.message,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    known["detail"] = known.pop("message")
    change = f"{job.status.phase.value} -> {status.phase.value}"
    failed = status.phase is Phase.FAILED
    logger.log(
        logging.WARNING if failed else logging.INFO, "%s", change, extra=labels(key, **known)
    )


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
