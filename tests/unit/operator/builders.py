"""Jobs and pods as the API server would send them, with only what a test cares about."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import (
    Artifact,
    DatasetFacts,
    ModelFacts,
    Plan,
    Preparation,
)
from finetune_api.trainer import ProgressReport, Result, TrainerConfig
from finetune_operator.lifecycle import Decision, Job, Pod, decide
from finetune_operator.planning import Inventory, make_plan

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
UID = "0f3c1d52-9d7e-4c5e-8b13-6a2f7d1e4b90"
OWNER = ("team", UID)

SPEC: dict[str, Any] = {
    "method": "sft",
    "model": {"source": "hf://Qwen/Qwen3-8B"},
    "dataset": {"source": "hf://acme/support-chats"},
    "output": {"claim": "models"},
}


def at(seconds: float) -> datetime:
    """Return a time after the start of the test."""
    return NOW + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_spec(**parts: Any) -> FineTuneJobSpec:
    """Return a spec; parts are wire names, such as runPolicy={"suspend": True}."""
    return FineTuneJobSpec.model_validate({**SPEC, **parts})


def make_preparation(**model: Any) -> Preparation:
    """Return the facts of an 8B model and a small chat dataset."""
    facts: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "parameters": 8_030_261_248,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "vocabulary": 128256,
        "max_positions": 8192,
        "tied_embeddings": False,
        "weights_bytes": 16_060_522_496,
        "dtype": "bfloat16",
    }
    return Preparation(
        model=ModelFacts.model_validate(facts | model),
        dataset=DatasetFacts(
            format="chat", rows=1000, eval_rows=0, tokens=200_000, max_tokens=900,
            mean_tokens=200.0, p95_tokens=600,
        ),
    )  # fmt: skip


def make_plan_of(**parts: Any) -> Plan:
    """Return the plan of a spec with these parts."""
    return make_plan(make_spec(**parts), make_preparation(), Inventory())


def make_job_body(
    *,
    status: dict[str, Any] | None = None,
    generation: int = 1,
    version: int = 100,
    name: str = "job",
    uid: str = UID,
    deleting: bool = False,
    **parts: Any,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "generation": generation,
        "resourceVersion": str(version),
        "creationTimestamp": stamp(0),
    }
    if deleting:
        metadata["deletionTimestamp"] = stamp(0)
    spec = make_spec(**parts).to_json()
    return {"metadata": metadata, "spec": spec} | ({"status": status} if status else {})


def make_job(**options: Any) -> Job:
    """Return a job; options as for make_job_body."""
    return Job.parse(make_job_body(**options))


def make_pod_body(
    role: str = "trainer",
    attempt: int = 1,
    *,
    rank: int = 0,
    phase: str = "Pending",
    exit_code: int | None = None,
    result: Result | str | None = None,
    running: bool = False,
    reason: str = "",
    container_reason: str = "",
    waiting: tuple[str, str] | None = None,
    unschedulable: str | None = None,
    gated: bool = False,
    disruption: str | None = None,
    deleting: bool = False,
    deleted_by: float | None = None,
    node: str = "",
    created: float = 0,
    placed: float | None = None,
    finished: float = 60,
    version: int = 200,
    uid: str = "",
    config: TrainerConfig | None = None,
    **parts: Any,
) -> dict[str, Any]:
    name = f"job-{role}-{attempt}" + (f"-{rank}" if role == "trainer" else "")
    config = config or TrainerConfig(
        name="job", namespace="team", uid=UID, attempt=attempt, spec=make_spec(**parts)
    )
    state: dict[str, Any] = {}
    if running:
        phase, state = "Running", {"running": {"startedAt": stamp(created + 1)}}
    if exit_code is not None:
        phase = "Succeeded" if exit_code == 0 else "Failed"
        state = _terminated(exit_code, result, container_reason, finished)
    if waiting:
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "team",
        "uid": uid or f"pod-{role}-{attempt}-{rank}",
        "resourceVersion": str(version),
        "creationTimestamp": stamp(created),
        "labels": {
            names.MANAGED_BY_LABEL: names.MANAGER,
            names.JOB_LABEL: "job",
            names.JOB_UID_LABEL: UID,
            names.ROLE_LABEL: role,
            names.ATTEMPT_LABEL: str(attempt),
            names.RANK_LABEL: str(rank),
        },
        "annotations": {names.CONFIG_ANNOTATION: json.dumps(config.to_json())},
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": "job",
                "uid": UID,
                "controller": True,
            }
        ],
    }
    if deleting or deleted_by is not None:
        # Far away unless it matters: the pod is in its grace period.
        metadata["deletionTimestamp"] = stamp(3600 if deleted_by is None else deleted_by)
    return {
        "metadata": metadata,
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            "reason": reason,
            "podIP": "10.0.0.1" if running else None,
            "conditions": [
                *_conditions(created, unschedulable, disruption, gated=gated),
                *_placed(placed),
            ],
            "containerStatuses": [{"name": names.CONTAINER, "state": state}] if state else [],
        },
    }


def _terminated(
    exit_code: int, result: Result | str | None, reason: str, finished: float
) -> dict[str, Any]:
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": result.to_message() if isinstance(result, Result) else result or "",
            "finishedAt": stamp(finished),
        }
    }


def _conditions(
    created: float, unschedulable: str | None, disruption: str | None, *, gated: bool
) -> list[dict[str, Any]]:
    conditions = []
    if unschedulable is not None or gated:
        conditions.append(
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated" if gated else "Unschedulable",
                "message": unschedulable or "",
                "lastTransitionTime": stamp(created),
            }
        )
    if disruption:
        conditions.append({"type": "DisruptionTarget", "status": "True", "reason": disruption})
    return conditions


def _placed(placed: float | None) -> list[dict[str, Any]]:
    if placed is None:
        return []
    return [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(placed)}]


def make_pod(*arguments: Any, **options: Any) -> Pod:
    """Return a pod; arguments as for make_pod_body."""
    return Pod.parse(make_pod_body(*arguments, **options))


def prepared_pod(attempt: int = 1, **options: Any) -> Pod:
    """Return a prepare pod that has done its work."""
    result = Result.succeeded(preparation=make_preparation())
    return make_pod("prepare", attempt, exit_code=0, result=result, **options)


def trained() -> Result:
    """Return the result of a trainer that has done its work."""
    return Result.succeeded(
        step=63,
        metrics={"train_loss": 1.5, "eval_loss": 1.25, "eval_loss_before": 3.5, "epoch": 1.0},
        artifact=Artifact(uri="pvc://models/job", kind="adapter", size_bytes=1000),
    )


def failure(reason: Reason, message: str = "It broke.", **fields: Any) -> Result:
    return Result.failed(reason, message, **fields)


class Life:
    """A job whose status lives on from decision to decision, as it would in the cluster."""

    def __init__(self, **parts: Any) -> None:
        self.body = make_job_body(**parts)
        self.pods: list[Pod] = []
        self.writes = 0
        self.events: list[str] = []

    def edit(self, **parts: Any) -> None:
        """Change the spec, as kubectl apply does."""
        self.body["spec"] = make_spec(**{**self.body["spec"], **parts}).to_json()
        self.body["metadata"]["generation"] += 1

    def step(
        self,
        seconds: float = 0,
        *pods: Pod,
        confirmed: bool = True,
        report: ProgressReport | None = None,
        **others: Any,
    ) -> Decision:
        """Decide with these pods at this time, and write the status."""
        job = Job.parse(self.body)
        decision = decide(job, pods, now=at(seconds), confirmed=confirmed, report=report, **others)
        if decision.status != job.status:
            self.body["status"] = decision.status.to_json()
            self.writes += 1
        self.events += [event.reason for event in decision.events]
        return decision

    @property
    def phase(self) -> str:
        return str(self.body.get("status", {}).get("phase", "Pending"))

    @property
    def message(self) -> str:
        return str(self.body["status"]["message"])

    def condition(self, kind: str) -> dict[str, Any]:
        """Return a condition; empty when there is none."""
        found = [
            condition
            for condition in self.body["status"]["conditions"]
            if condition["type"] == kind
        ]
        return found[0] if found else {}

    def attempts(self) -> list[tuple[str, int, str, str | None]]:
        """Return role, number, state and reason of each attempt."""
        return [
            (one["role"], one["number"], one["state"], one.get("reason"))
            for one in self.body["status"]["attempts"]
        ]


def started(**parts: Any) -> Life:
    """Return a job whose first trainer pod was made at second 10."""
    life = Life(**parts)
    life.step(0)
    life.step(10, prepared_pod(**parts))
    return life
