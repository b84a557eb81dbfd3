"""The shell: what is sent to the API server, in which order, and what its refusals lead to."""

import copy
import logging
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api.trainer import Result
from finetune_operator.api import ApiError, Resource
from finetune_operator.lifecycle import Pod, Prices
from finetune_operator.metrics import REGISTRY
from finetune_operator.progress import Follower
from finetune_operator.reconcile import Reconciler
from finetune_operator.store import Key, Store
from finetune_operator.workloads import TrainerSettings
from unit.operator.builders import (
    NOW,
    UID,
    Life,
    make_job_body,
    make_pod_body,
    make_preparation,
    prepared_pod,
    started,
    trained,
)

pytestmark = pytest.mark.asyncio

KEY = ("team", "job")


def merged(body: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return a document with a JSON merge patch (RFC 7386) applied."""
    result = dict(body)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before = result.get(key)
            result[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            result[key] = value
    return result


class FakeApi:
    """Notes what it is asked, and answers like an API server with one job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job: dict[str, Any] | None = copy.deepcopy(job)
        self.calls: list[tuple[str, str]] = []
        self.patches: list[dict[str, Any]] = []
        self.refuse: dict[str, int] = {}
        """Code by verb, or by verb and name."""
        self.message = "refused by the test"
        self.live_pods: list[dict[str, Any]] = []
        self.claims: set[str] = set()
        self.version = 1000

    def _note(self, verb: str, what: str) -> str:
        self.calls.append((verb, what))
        code = self.refuse.get(f"{verb} {what}", self.refuse.get(verb))
        if code is not None:
            raise ApiError(verb, what, code, self.message)
        self.version += 1
        return str(self.version)

    def edit(self, **parts: Any) -> None:
        """Change the spec behind the operator's back, as kubectl does."""
        self.version += 1
        assert self.job is not None
        metadata = self.job["metadata"]
        metadata |= {"generation": metadata["generation"] + 1, "resourceVersion": str(self.version)}
        self.job["spec"] |= parts

    async def get(self, _resource: Resource, _namespace: str, name: str) -> dict[str, Any]:
        self._note("get", name)
        if self.job is None:
            raise ApiError("get", name, 404, "not found")
        return copy.deepcopy(self.job)

    async def exists(self, _resource: Resource, _namespace: str, name: str) -> bool:
        self._note("exists", name)
        return name in self.claims

    async def list(self, _resource: Resource, _namespace: str, selector: str) -> Any:
        return self.live_pods, self._note("list", selector)

    async def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        version = self._note("apply", name)
        extra = {
            "uid": f"uid-of-{name}",
            "resourceVersion": version,
            "creationTimestamp": "2026-11-24T12:00:00Z",
        }
        applied: dict[str, Any] = body | {"metadata": body["metadata"] | extra}
        if body["kind"] == "Pod":
            self.live_pods.append(applied)
        return applied

    async def patch_status(
        self, _namespace: str, name: str, patch: dict[str, Any]
    ) -> dict[str, Any]:
        version = self._note("patch", name)
        if self.job is None:
            raise ApiError("patch", name, 404, "not found")
        for field, value in patch["metadata"].items():
            if self.job["metadata"][field] != value:
                raise ApiError("patch", name, 409, f"{field} is another")
        self.patches.append(patch)
        self.job = merged(self.job, {"status": patch["status"]})
        self.job["metadata"] = self.job["metadata"] | {"resourceVersion": version}
        return copy.deepcopy(self.job)

    async def delete(self, _resource: Resource, _namespace: str, name: str, _: Any) -> None:
        self._note("delete", name)
        self.live_pods = [pod for pod in self.live_pods if pod["metadata"]["name"] != name]

    async def create_event(self, body: dict[str, Any]) -> None:
        self._note("event", body["reason"])


class Shell:
    """A reconciler over a fake API server."""

    def __init__(self, body: dict[str, Any], *pods: dict[str, Any], now: datetime = NOW) -> None:
        self.api = FakeApi(body)
        self.api.live_pods = list(pods)
        self.store = Store()
        self.store.put_job(body)
        for pod in pods:
            self.store.put_pod(pod)
        api: Any = self.api
        self.follower = Follower(api, lambda _: None)
        settings = TrainerSettings(image="trainer:1")
        self.woken: list[Key] = []
        self._reconcile = Reconciler(
            api,
            self.store,
            self.follower,
            settings,
            self.woken.append,
            lambda: now,
            Prices("EUR", {"NVIDIA-L40S": 2.0}),
        )

    async def run(self) -> float | None:
        return await self._reconcile(KEY)

    @property
    def status(self) -> dict[str, Any]:
        """The job's status on the API server."""
        assert self.api.job is not None
        status: dict[str, Any] = self.api.job["status"]
        return status

    def condition(self, kind: str) -> dict[str, Any]:
        """Return a condition; empty when there is none."""
        found = [one for one in self.status["conditions"] if one["type"] == kind]
        return found[0] if found else {}


async def test_children_then_status() -> None:
    shell = Shell(make_job_body())
    assert await shell.run() is None
    assert shell.api.calls == [
        ("apply", "job-workspace-0f3c1d52"),
        ("apply", "job-prepare-1"),
        ("patch", "job"),
    ]
    assert shell.api.patches[0]["metadata"] == {"uid": UID, "resourceVersion": "100"}


async def test_our_own_writes_are_known_without_waiting_for_the_watch() -> None:
    shell = Shell(make_job_body())
    await shell.run()
    shell.api.calls.clear()
    await shell.run()
    assert shell.api.calls == []


@pytest.mark.parametrize(("claims", "phase"), [({"models"}, None), (set(), "Failed")])
async def test_a_claim_is_missing_only_if_the_api_server_says_so(
    claims: set[str], phase: str | None
) -> None:
    life = Life()
    life.step(0)
    words = '0/1 nodes are available: persistentvolumeclaim "models" not found.'
    pod = make_pod_body("prepare", unschedulable=words)
    life.step(2, Pod.parse(pod))
    shell = Shell(life.body, pod, now=NOW + timedelta(seconds=60))
    shell.api.claims = claims
    await shell.run()
    assert shell.api.calls[0] == ("exists", "models")
    assert shell.api.patches[0]["status"].get("phase") == phase
    assert [one["status"] for one in shell.api.patches[0]["status"]["conditions"]
            if one["type"] == "PodProblem"] == ["False"]  # fmt: skip


async def test_status_then_events() -> None:
    life = started()
    pod = make_pod_body(exit_code=0, result=trained())
    shell = Shell(life.body, pod)
    await shell.run()
    assert shell.api.calls == [("patch", "job"), ("event", "Succeeded")]


async def test_gpu_hours_and_cost_go_with_the_write_that_is_made_anyway() -> None:
    parts: dict[str, Any] = {"resources": {"gpu": {"product": "NVIDIA-L40S"}}}
    pod = make_pod_body(exit_code=0, result=trained(), placed=0, finished=5400, **parts)
    shell = Shell(started(**parts).body, pod, now=NOW + timedelta(hours=2))
    labels = {"method": "sft", "product": "NVIDIA-L40S"}
    name = "finetune_operator_gpu_hours_total"
    before = REGISTRY.get_sample_value(name, labels) or 0.0
    shell.api.refuse["patch"] = 503
    for _ in range(2):
        with pytest.raises(ApiError):
            await shell.run()
    assert (REGISTRY.get_sample_value(name, labels) or 0.0) == before, "nothing is recorded yet"
    del shell.api.refuse["patch"]
    for _ in range(2):
        await shell.run()
    assert [call for call in shell.api.calls if call[0] != "patch"] == [("event", "Succeeded")]
    usage = shell.status["usage"]
    assert (usage["gpuHours"], usage["cost"], usage["currency"]) == (1.5, 3.0, "EUR")
    assert usage["expectedBasis"] == "Arithmetic"
    assert REGISTRY.get_sample_value(name, labels) == before + 1.5


async def test_a_new_phase_wakes_the_jobs_that_name_the_job() -> None:
    shell = Shell(make_job_body())
    second = make_job_body(name="second", uid="second", model={"source": "job://job"})
    shell.store.put_job(second)
    await shell.run()
    assert shell.woken == [("team", "second")]
    await shell.run()
    assert shell.woken == [("team", "second")]


async def test_a_chained_job_costs_no_request_beyond_its_own() -> None:
    shell = Shell(make_job_body(model={"source": "job://first"}))
    artifact = {"uri": "pvc://models/first", "kind": "model"}
    first = make_job_body(name="first", uid="first", status={"artifact": artifact})
    shell.store.put_job(first)
    await shell.run()
    assert [verb for verb, _ in shell.api.calls] == ["apply", "apply", "patch", "event"]
    pod = shell.api.live_pods[0]
    config = Pod.parse(pod).config
    assert config.starts["job://first"].base == "pvc://models/first"


async def test_no_event_for_a_status_that_was_not_written() -> None:
    shell = Shell(started().body, make_pod_body(exit_code=0, result=trained()))
    shell.api.refuse["patch"] = 503
    with pytest.raises(ApiError):
        await shell.run()
    assert shell.api.calls == [("patch", "job")]


async def test_an_edit_that_overtakes_our_write_is_reconciled_at_once() -> None:
    shell = Shell(make_job_body())
    shell.api.edit(runPolicy={"suspend": True})
    assert await shell.run() == 0
    assert shell.api.patches == []
    assert shell.api.calls[-1] == ("get", "job")
    await shell.run()
    assert ("delete", "job-prepare-1") in shell.api.calls
    assert shell.status["observedGeneration"] == 2
    assert shell.status["message"].startswith("Stopping")


async def test_no_event_for_a_decision_that_was_overtaken() -> None:
    shell = Shell(started().body, make_pod_body(exit_code=0, result=trained()))
    shell.api.edit(runPolicy={"suspend": True})
    assert await shell.run() == 0
    assert not any(verb == "event" for verb, _ in shell.api.calls)


async def test_a_conflict_without_a_change_is_no_hot_loop() -> None:
    shell = Shell(make_job_body())
    shell.api.refuse["patch"] = 409
    with pytest.raises(ApiError):
        await shell.run()


async def test_a_job_that_is_gone_at_the_write_is_forgotten() -> None:
    shell = Shell(make_job_body())
    shell.api.job = None
    assert await shell.run() == 0
    assert shell.store.job(KEY) is None
    assert await shell.run() is None


async def test_absence_is_confirmed_by_a_list() -> None:
    life = started()
    shell = Shell(life.body)
    shell.api.live_pods = [make_pod_body(running=True, version=500)]
    await shell.run()
    assert shell.api.calls[0][0] == "list"
    assert ("patch", "job") in shell.api.calls
    assert shell.api.patches[0]["status"]["phase"] == "Running", "the pod was there all along"


async def test_absence_that_is_confirmed_leads_to_recovery() -> None:
    shell = Shell(started().body)
    again = await shell.run()
    assert shell.api.patches[0]["status"]["phase"] == "Recovering"
    assert again is not None


async def test_a_refused_child_is_told_in_the_status() -> None:
    shell = Shell(make_job_body())
    shell.api.refuse["apply"] = 403
    with pytest.raises(ApiError):
        await shell.run()
    assert "refused by the test" in shell.status["message"]
    assert shell.status["phase"] == "Pending"


async def test_a_refused_launch_keeps_the_plan_and_the_preparation() -> None:
    life = Life()
    life.step(0)
    shell = Shell(life.body, make_pod_body("prepare", exit_code=0, result=_prepared()))
    shell.api.refuse["apply"] = 403
    for _ in range(2):
        with pytest.raises(ApiError):
            await shell.run()
    assert len(shell.api.patches) == 1, "the second refusal says nothing new"
    assert shell.status["phase"] == "Planned"
    assert shell.status["plan"]["gpus"] == 1
    assert [(one["role"], one["state"]) for one in shell.status["attempts"]] == [
        ("prepare", "Succeeded")
    ]
    assert shell.condition("PodProblem")["reason"] == "Rejected"
    assert [call for call in shell.api.calls if call[0] == "event"] == [("event", "Planned")]
    del shell.api.refuse["apply"]
    await shell.run()
    assert shell.status["phase"] == "Starting"
    assert shell.status["attempts"][-1]["number"] == 1


async def test_half_of_a_set_of_pods_is_taken_back() -> None:
    life = Life()
    life.step(0)
    life.step(10, prepared_pod())
    life.body["status"]["plan"] |= {"gpus": 2, "nodes": 2, "gpusPerNode": 1}
    life.body["status"]["attempts"].pop()
    shell = Shell(life.body, make_pod_body("prepare", exit_code=0, result=_prepared()))
    shell.api.refuse["apply job-trainer-1-1"] = 403
    with pytest.raises(ApiError):
        await shell.run()
    assert shell.api.calls[-2:] == [("delete", "job-trainer-1-0"), ("patch", "job")]
    assert "refused by the test" in shell.status["message"]
    assert len(shell.status["attempts"]) == 1


@pytest.mark.parametrize("code", [400, 422])
async def test_an_object_that_is_never_valid_fails_the_job(code: int) -> None:
    shell = Shell(make_job_body(resources={"nodeSelector": {"a b": "c"}}))
    shell.api.refuse["apply job-prepare-1"] = code
    shell.api.message = 'spec.nodeSelector: Invalid value: "a b"'
    assert await shell.run() is None
    assert shell.condition("Failed")["reason"] == "ConfigInvalid"
    assert 'spec.nodeSelector: Invalid value: "a b"' in shell.status["message"]
    assert shell.api.calls[-1] == ("event", "ConfigInvalid")
    shell.api.edit(resources={})
    assert shell.api.job is not None
    shell.store.put_job(shell.api.job)
    shell.api.refuse.clear()
    await shell.run()
    assert shell.status["phase"] == "Preparing"


@pytest.mark.parametrize(
    "words",
    ["Only one reference can have Controller set to true.", "pod updates may not change fields"],
)
async def test_a_name_that_an_earlier_job_still_holds_is_waited_for(words: str) -> None:
    shell = Shell(make_job_body())
    shell.api.refuse["apply job-prepare-1"] = 422
    shell.api.message = words
    with pytest.raises(ApiError):
        await shell.run()
    assert shell.status["phase"] == "Pending"
    assert "belongs to an earlier job" in shell.status["message"]


@pytest.mark.parametrize(("code", "words"), [(409, []), (403, ["an Event was not created"])])
async def test_an_event_that_is_refused_loses_nothing_else(
    code: int, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    shell = Shell(started().body, make_pod_body(running=True))
    shell.api.refuse["event"] = code
    with caplog.at_level(logging.WARNING):
        await shell.run()
    assert [record.message for record in caplog.records] == words
    assert shell.follower.following(KEY) == "job-trainer-1-0"


@pytest.mark.parametrize("code", [404, 409])
async def test_a_pod_that_is_gone_already_is_deleted(code: int) -> None:
    life = started()
    life.edit(runPolicy={"suspend": True})
    shell = Shell(life.body, make_pod_body(running=True))
    shell.api.refuse["delete"] = code
    await shell.run()
    assert ("delete", "job-trainer-1-0") in shell.api.calls


async def test_a_running_pod_is_followed_and_an_ended_one_is_not() -> None:
    shell = Shell(started().body, make_pod_body(running=True))
    await shell.run()
    assert shell.follower.following(KEY) == "job-trainer-1-0"
    shell.store.put_pod(make_pod_body(exit_code=0, result=trained(), version=999))
    await shell.run()
    assert shell.follower.following(KEY) is None


async def test_a_job_that_is_gone_is_let_go() -> None:
    shell = Shell(make_job_body())
    shell.store.forget_job(make_job_body())
    assert await shell.run() is None
    assert shell.api.calls == []


async def test_a_job_that_this_operator_does_not_understand_is_left_alone() -> None:
    body = make_job_body()
    body["spec"]["method"] = "telepathy"
    shell = Shell(body)
    assert await shell.run() is None
    assert shell.api.calls == []


def _prepared() -> Any:
    return Result.succeeded(preparation=make_preparation())
