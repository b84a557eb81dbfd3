"""The shell: what is sent to the API server, in which order, and what its refusals lead to."""

from datetime import datetime
from typing import Any

import pytest

from finetune_api.trainer import Result
from finetune_operator.api import ApiError, Resource
from finetune_operator.progress import Follower
from finetune_operator.reconcile import Reconciler
from finetune_operator.store import Store
from finetune_operator.workloads import TrainerSettings
from unit.operator.builders import (
    NOW,
    UID,
    Life,
    make_job_body,
    make_pod_body,
    make_preparation,
    started,
    trained,
)

pytestmark = pytest.mark.asyncio

KEY = ("team", "job")


class FakeApi:
    """Notes what it is asked, and answers like an API server."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.patches: list[dict[str, Any]] = []
        self.refuse: dict[str, int] = {}
        self.live_pods: list[dict[str, Any]] = []
        self.version = 1000

    def _note(self, verb: str, what: str) -> str:
        self.calls.append((verb, what))
        if verb in self.refuse:
            raise ApiError(verb, what, self.refuse[verb], "refused by the test")
        self.version += 1
        return str(self.version)

    async def get(self, _resource: Resource, _namespace: str, name: str) -> dict[str, Any]:
        return make_job_body(version=int(self._note("get", name)), generation=2)

    async def list(self, _resource: Resource, _namespace: str, selector: str) -> Any:
        return self.live_pods, self._note("list", selector)

    async def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        version = self._note("apply", body["metadata"]["name"])
        extra = {
            "uid": "uid",
            "resourceVersion": version,
            "creationTimestamp": "2026-11-24T12:00:00Z",
        }
        return body | {"metadata": body["metadata"] | extra}

    async def patch_status(
        self, _namespace: str, name: str, patch: dict[str, Any]
    ) -> dict[str, Any]:
        version = self._note("patch", name)
        self.patches.append(patch)
        return make_job_body(version=int(version), status=patch["status"])

    async def delete(self, _resource: Resource, _namespace: str, name: str, _: Any) -> None:
        self._note("delete", name)

    async def create_event(self, body: dict[str, Any]) -> None:
        self._note("event", body["reason"])


class Shell:
    """A reconciler over a fake API server."""

    def __init__(self, body: dict[str, Any], *pods: dict[str, Any], now: datetime = NOW) -> None:
        self.api = FakeApi()
        self.store = Store()
        self.store.put_job(body)
        for pod in pods:
            self.store.put_pod(pod)
        api: Any = self.api
        self.follower = Follower(api, lambda _: None)
        settings = TrainerSettings(image="trainer:1")
        self._reconcile = Reconciler(api, self.store, self.follower, settings, lambda: now)

    async def run(self) -> float | None:
        return await self._reconcile(KEY)


async def test_children_then_status() -> None:
    shell = Shell(make_job_body())
    assert await shell.run() is None
    assert shell.api.calls == [
        ("apply", "job-workspace-0f3c1d52"),
        ("apply", "job-prepare-1"),
        ("patch", "job"),
    ]
    assert shell.api.patches[0]["metadata"] == {"uid": UID}


async def test_our_own_writes_are_known_without_waiting_for_the_watch() -> None:
    shell = Shell(make_job_body())
    await shell.run()
    shell.api.calls.clear()
    await shell.run()
    assert shell.api.calls == []


async def test_status_then_events() -> None:
    life = started()
    pod = make_pod_body(exit_code=0, result=trained())
    shell = Shell(life.body, pod)
    await shell.run()
    assert shell.api.calls == [("patch", "job"), ("event", "Succeeded")]


async def test_no_event_for_a_status_that_was_not_written() -> None:
    shell = Shell(started().body, make_pod_body(exit_code=0, result=trained()))
    shell.api.refuse["patch"] = 503
    with pytest.raises(ApiError):
        await shell.run()
    assert shell.api.calls == [("patch", "job")]


async def test_the_first_plan_is_written_only_for_the_version_it_was_made_for() -> None:
    life = Life(version=77)
    life.step(0)
    prepared = make_pod_body("prepare", exit_code=0, result=_prepared())
    shell = Shell(life.body, prepared)
    await shell.run()
    assert shell.api.patches[0]["metadata"] == {"uid": UID, "resourceVersion": "77"}


async def test_a_conflict_fetches_the_job_anew() -> None:
    shell = Shell(make_job_body())
    shell.api.refuse["patch"] = 409
    with pytest.raises(ApiError):
        await shell.run()
    assert shell.api.calls[-1] == ("get", "job")
    job = shell.store.job(KEY)
    assert job is not None
    assert job["metadata"]["generation"] == 2


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
    assert "refused by the test" in shell.api.patches[0]["status"]["message"]


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
