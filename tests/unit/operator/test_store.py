"""The cache of jobs and pods."""

from typing import Any

import pytest

from finetune_api import names
from finetune_operator.handlers import job_changed, pod_changed
from finetune_operator.queue import Queue
from finetune_operator.store import Key, Store, owner_of
from unit.operator.builders import OWNER, make_job_body, make_pod_body

KEY = ("team", "job")


def test_the_newest_version_wins() -> None:
    store = Store()
    assert store.put_job(make_job_body(version=5, generation=2))
    assert not store.put_job(make_job_body(version=4, generation=1))
    assert store.job(KEY) is not None
    assert store.job(KEY)["metadata"]["generation"] == 2  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({}, False),
        ({"status": {"phase": "Running"}}, False),
        ({"generation": 2}, True),
        ({"deleting": True}, True),
        ({"uid": "another"}, True),
    ],
)
def test_what_matters_of_a_job(change: dict[str, Any], matters: bool) -> None:
    store = Store()
    store.put_job(make_job_body(version=1))
    assert store.put_job(make_job_body(version=2, **change)) is matters


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({}, False),
        ({"running": True}, True),
        ({"exit_code": 0}, True),
        ({"waiting": ("ErrImagePull", "no")}, True),
        ({"unschedulable": "no node"}, True),
        ({"disruption": "PreemptionByScheduler"}, True),
        ({"deleting": True}, True),
    ],
)
def test_what_matters_of_a_pod(change: dict[str, Any], matters: bool) -> None:
    store = Store()
    store.put_pod(make_pod_body(version=1))
    assert store.put_pod(make_pod_body(version=2, **change)) is matters


def second_job(version: int, **parts: Any) -> dict[str, Any]:
    return make_job_body(name="second", uid="second", version=version, **parts)


def test_jobs_that_name_a_job_are_known_before_and_after_it() -> None:
    store = Store()
    store.put_job(second_job(1, model={"source": "job://job"}))
    assert store.dependants(KEY) == [("team", "second")]
    rewards = [{"name": "judge", "model": "job://job"}]
    store.put_job(second_job(2, method="grpo", rewards=rewards))
    store.put_job(make_job_body(version=3))
    store.forget_job(make_job_body(version=4))
    assert store.dependants(KEY) == [("team", "second")]
    store.put_job(second_job(5))
    assert store.dependants(KEY) == []
    store.put_job(second_job(6, model={"source": "job://job"}))
    store.forget_job(second_job(7))
    assert store.dependants(KEY) == []


@pytest.mark.parametrize("kind", ["ADDED", "DELETED"])
async def test_a_job_that_comes_or_goes_wakes_those_that_name_it(kind: Any) -> None:
    store, queue = Store(), Queue[Key]()
    store.put_job(second_job(1, model={"source": "job://job"}))
    job_changed(store, queue, kind, make_job_body())
    assert queue.depth == 2


def test_managed_fields_are_not_kept() -> None:
    store = Store()
    body = make_job_body()
    body["metadata"]["managedFields"] = [{}]
    store.put_job(body)
    assert "managedFields" not in next(store.jobs())[1]["metadata"]


def test_a_late_answer_does_not_bring_a_deleted_pod_back() -> None:
    store = Store()
    store.put_pod(make_pod_body(version=1))
    store.forget_pod(make_pod_body(version=2))
    assert not store.put_pod(make_pod_body(version=1))
    assert store.pods(OWNER) == []


def test_the_deletion_of_an_earlier_job_leaves_its_successor_alone() -> None:
    store = Store()
    store.put_job(make_job_body(version=9, uid="new"))
    store.forget_job(make_job_body(version=8, uid="old"))
    assert store.job(KEY) is not None


@pytest.mark.parametrize("label", [None, names.JOB_UID_LABEL, names.JOB_LABEL, names.ROLE_LABEL])
@pytest.mark.parametrize("value", [None, "another"])
def test_a_pod_without_our_very_labels_is_ignored(label: str | None, value: str | None) -> None:
    body = make_pod_body(version=5)
    labels = body["metadata"]["labels"]
    if label is None:
        labels.clear()
    elif value is None:
        del labels[label]
    else:
        labels[label] = value
    assert_ignored(body)


@pytest.mark.parametrize(
    "owner",
    [{"kind": "ReplicaSet"}, {"apiVersion": "v1"}, {"uid": "another"}, {"controller": False}],
)
def test_a_pod_that_a_job_does_not_control_is_ignored(owner: dict[str, Any]) -> None:
    body = make_pod_body(version=5)
    body["metadata"]["ownerReferences"][0] |= owner
    assert_ignored(body)
    del body["metadata"]["ownerReferences"]
    assert_ignored(body)


def assert_ignored(body: dict[str, Any]) -> None:
    store, queue = Store(), Queue[Key]()
    assert owner_of(body) is None
    assert store.replace_all([make_job_body(version=1)], [body], ("9", "9")) == 1, "the job"
    pod_changed(store, queue, "ADDED", body)
    pod_changed(store, queue, "DELETED", body)
    assert store.pods(OWNER) == []
    assert queue.depth == 0


def test_a_pod_of_another_namespace_does_not_count() -> None:
    store = Store()
    body = make_pod_body()
    body["metadata"]["namespace"] = "elsewhere"
    store.put_pod(body)
    assert store.pods(OWNER) == []


def test_a_pod_that_is_ours_no_longer_is_forgotten() -> None:
    store = Store()
    store.put_pod(make_pod_body(version=2))
    body = make_pod_body(version=3)
    del body["metadata"]["labels"][names.JOB_UID_LABEL]
    assert store.replace_all([], [body], ("9", "9")) == 1
    assert store.pods(OWNER) == []


def test_a_list_of_one_jobs_pods_replaces_them() -> None:
    store = Store()
    store.put_pod(make_pod_body(attempt=1, version=1))
    store.put_pod(make_pod_body(attempt=2, version=9))
    store.replace_pods(OWNER, [make_pod_body(attempt=3, version=4)], "5")
    kept = sorted(pod["metadata"]["name"] for pod in store.pods(OWNER))
    assert kept == ["job-trainer-2-0", "job-trainer-3-0"], "the second is younger than the list"


def test_a_resync_finds_what_the_watches_missed() -> None:
    store = Store()
    store.put_job(make_job_body(version=1))
    store.put_pod(make_pod_body(attempt=1, version=2))
    store.put_pod(make_pod_body(attempt=2, version=3))
    jobs = [make_job_body(version=1)]
    pods = [make_pod_body(attempt=2, version=7, running=True)]
    assert store.replace_all(jobs, pods, ("9", "9")) == 2
    assert store.replace_all(jobs, pods, ("9", "9")) == 0
    assert store.replace_all([], [], ("9", "9")) == 2
    assert store.job(KEY) is None


@pytest.mark.asyncio
async def test_handlers_queue_what_matters() -> None:
    store, queue = Store(), Queue[Key]()
    job_changed(store, queue, None, make_job_body(version=1))
    assert queue.depth == 1
    queue = Queue()
    job_changed(store, queue, "MODIFIED", make_job_body(version=2, status={"phase": "Running"}))
    assert queue.depth == 0, "the echo of our own write"
    pod_changed(store, queue, "ADDED", make_pod_body(version=3))
    assert queue.depth == 1
    queue = Queue()
    pod_changed(store, queue, "DELETED", make_pod_body(version=4))
    assert queue.depth == 1
    assert store.pods(OWNER) == []
    queue = Queue()
    job_changed(store, queue, "DELETED", make_job_body(version=5))
    assert queue.depth == 1
    assert store.job(KEY) is None
