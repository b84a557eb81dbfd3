"""GPU-hours, cost, and what was measured beside what was planned."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Plan
from finetune_api.trainer import Result, TrainerConfig
from finetune_operator.lifecycle import Job, Pod, Prices, accounted, decide
from finetune_operator.metrics import REGISTRY
from finetune_operator.observations import observe
from unit.operator.builders import (
    UID,
    at,
    failure,
    make_job_body,
    make_pod,
    make_spec,
    prepared_pod,
    trained,
)

H100: dict[str, Any] = {"resources": {"gpu": {"product": "NVIDIA-H100-80GB-HBM3"}}}
CPU: dict[str, Any] = {"resources": {"gpu": {"count": 0}}}
PRICES = Prices("EUR", {"NVIDIA-H100-80GB-HBM3": 3.0})
HOUR = 3600


class Account:
    """A job whose status is decided, accounted for and written, as by the reconciler."""

    def __init__(self, prices: Prices = PRICES, **parts: Any) -> None:
        self.parts = parts or H100
        self.body = make_job_body(**self.parts)
        self.prices = prices
        self.writes = 0
        self.step(0)
        self.step(10, prepared_pod(**self.parts))

    def step(self, seconds: float, *pods: Pod) -> None:
        job = Job.parse(self.body)
        status = decide(job, pods, now=at(seconds), confirmed=True).status
        if status == job.status:
            return
        status = accounted(job, status, pods, now=at(seconds), prices=self.prices)
        observe(job, status)
        self.body["status"] = status.to_json()
        self.writes += 1

    def edit(self, **parts: Any) -> None:
        self.body["spec"] = make_spec(**{**self.body["spec"], **parts}).to_json()
        self.body["metadata"]["generation"] += 1

    def pod(self, attempt: int = 1, **options: Any) -> Pod:
        """Return a trainer pod with the job's plan."""
        config = TrainerConfig(
            name="job", namespace="team", uid=UID, attempt=attempt,
            spec=make_spec(**self.parts), plan=self.status.plan,
        )  # fmt: skip
        return make_pod(attempt=attempt, config=config, **options)

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.model_validate(self.body["status"])

    @property
    def plan(self) -> Plan:
        plan = self.status.plan
        assert plan is not None
        return plan

    @property
    def used(self) -> tuple[float, float | None]:
        """GPU-hours and cost."""
        usage = self.status.usage
        assert usage is not None
        return usage.gpu_hours, usage.cost


def with_peaks(result: Result, **measured: float) -> Result:
    return result.model_copy(update={"measured": measured})


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_gpus_count_from_their_node_to_the_end_of_their_pods() -> None:
    """Neither the wait for a node counts, nor that the operator saw the end an hour late."""
    account = Account()
    ended = account.pod(exit_code=0, result=trained(), placed=HOUR, finished=3 * HOUR)
    account.step(4 * HOUR, prepared_pod(**H100), ended)
    assert account.status.phase == "Succeeded"
    assert account.used == (2.0, 6.0)
    assert account.status.attempts[-1].gpus == 1
    assert account.status.attempts[-1].gpu_hours == 2.0
    assert account.status.attempts[-1].placed_time == at(HOUR)


def test_pods_that_wait_hold_nothing() -> None:
    account = Account()
    account.step(2 * HOUR, account.pod(unschedulable="0/3 nodes are available."))
    assert account.status.phase == "Starting"
    assert account.used == (0.0, 0.0)


def test_hours_count_also_where_the_plan_is_given_up() -> None:
    account = Account()
    running = account.pod(placed=0)
    account.step(HOUR, running)
    job = Job.parse(account.body)
    ended = [one.model_copy(update={"finish_time": at(3 * HOUR)}) for one in job.status.attempts]
    anew = job.status.model_copy(update={"attempts": ended, "plan": None, "preparation": None})
    written = accounted(job, anew, [running], now=at(3 * HOUR), prices=PRICES)
    assert written.usage is not None
    assert written.usage.gpu_hours == 3.0


def test_while_pods_run_the_newest_status_counts() -> None:
    account = Account()
    account.step(HOUR, account.pod(running=True, placed=0))
    assert account.used == (1.0, 3.0)


def test_time_alone_is_no_reason_to_write() -> None:
    account = Account()
    running = account.pod(running=True, placed=0)
    account.step(HOUR, running)
    before = account.writes
    account.step(2 * HOUR, running)
    assert account.writes == before


def test_every_gpu_counts() -> None:
    account = Account(resources={"gpu": {"product": "NVIDIA-H100-80GB-HBM3", "count": 4}})
    ended = account.pod(exit_code=0, result=trained(), placed=0, finished=HOUR)
    account.step(HOUR, ended)
    assert account.used == (4.0, 12.0)


def test_attempts_add_up_however_many_there_were() -> None:
    """The list of attempts has room for 64; a pod that is gone counts from when it was placed."""
    account = Account(runPolicy={"backoffLimit": 100}, **H100)
    tries = 70
    for number in range(1, tries + 1):
        start = number * 10 * HOUR
        account.step(start, account.pod(number, running=True, placed=start, created=start))
        preempted = account.pod(
            number, exit_code=75, result=failure(Reason.PREEMPTED, step=number), placed=start,
            created=start, finished=start + HOUR,
        )  # fmt: skip
        account.step(start + 2 * HOUR, preempted)
        account.step(start + 3 * HOUR, preempted)
    assert len(account.status.attempts) == 64
    assert account.used == (tries, 3 * tries)


def test_a_pod_that_vanished_counts_until_that_was_noticed() -> None:
    account = Account()
    account.step(0.5 * HOUR, account.pod(running=True, placed=0))
    account.step(HOUR)
    assert account.status.attempts[-1].reason == "PodDeleted"
    assert account.used[0] == 1.0


def test_a_suspended_job_holds_nothing_until_it_goes_on() -> None:
    account = Account()
    account.step(HOUR, account.pod(running=True, placed=0))
    account.edit(runPolicy={"suspend": True})
    stopped = account.pod(
        exit_code=75, result=failure(Reason.PREEMPTED), placed=0, finished=2 * HOUR
    )
    account.step(2 * HOUR, stopped)
    account.step(9 * HOUR, stopped)
    account.edit(runPolicy={"suspend": False})
    account.step(10 * HOUR)
    account.step(12 * HOUR, account.pod(2, running=True, placed=11 * HOUR))
    assert account.used[0] == 3.0


def test_the_smaller_plan_of_the_next_attempt_does_not_change_what_this_one_held() -> None:
    account = Account(prices=Prices(), training={"batchSize": 2}, **H100)
    first = account.plan
    ran_out = with_peaks(failure(Reason.GPU_OUT_OF_MEMORY), gpu_memory_gib=78.0)
    account.step(HOUR, account.pod(exit_code=80, result=ran_out, placed=0, finished=HOUR))
    assert account.plan != first
    assert account.used == (1.0, None)
    measured = account.status.measured
    assert measured is not None
    assert measured.estimated_memory_gib == pytest.approx(
        first.memory.total - first.memory.context, abs=1e-3
    )
    assert measured.memory_error is not None
    assert measured.memory_error < 0


@pytest.mark.parametrize("product", ["auto", "NVIDIA-L4"])
def test_without_a_price_there_is_no_cost(product: str) -> None:
    account = Account(
        resources={"gpu": {"product": product}}, adapter={"type": "qlora"},
        training={"maxLength": 512},
    )  # fmt: skip
    account.step(HOUR, account.pod(running=True, placed=0))
    assert account.used == (1.0, None)


def test_the_peak_is_held_against_the_estimate_without_the_context() -> None:
    account = Account()
    estimate = account.plan.memory.total - account.plan.memory.context
    peaks = {"gpu_memory_gib": estimate / 1.25, "host_memory_gib": 9.0, "tokens_per_second": 1e4}
    account.step(HOUR, account.pod(exit_code=0, result=with_peaks(trained(), **peaks)))
    measured = account.status.measured
    assert measured is not None
    assert (measured.attempt, measured.host_memory_gib) == (1, 9.0)
    assert measured.tokens_per_second == 1e4
    assert measured.estimated_memory_gib == pytest.approx(estimate, abs=1e-3)
    assert measured.memory_error == pytest.approx(0.25, abs=1e-3)


def test_on_the_cpu_the_process_is_held_against_the_estimate() -> None:
    account = Account(**CPU)
    peaks = {"host_memory_gib": account.plan.memory.total / 0.9, "tokens_per_second": 20.0}
    account.step(HOUR, account.pod(exit_code=0, result=with_peaks(trained(), **peaks)))
    measured = account.status.measured
    assert measured is not None
    assert measured.memory_error == pytest.approx(-0.1, abs=1e-3)
    assert account.status.usage is None


def test_of_several_pods_the_fullest_counts() -> None:
    account = Account(
        resources={
            "gpu": {"product": "NVIDIA-H100-80GB-HBM3", "count": 2}, "nodes": 2,
        }
    )  # fmt: skip
    results = [
        with_peaks(trained(), gpu_memory_gib=40.0, tokens_per_second=2e4),
        with_peaks(trained(), gpu_memory_gib=41.5),
    ]
    pods = [account.pod(rank=rank, exit_code=0, result=one) for rank, one in enumerate(results)]
    account.step(HOUR, *pods)
    measured = account.status.measured
    assert measured is not None
    assert (measured.gpu_memory_gib, measured.tokens_per_second) == (41.5, 2e4)


@pytest.mark.parametrize(
    "result",
    [
        with_peaks(failure(Reason.INTERNAL_ERROR), gpu_memory_gib=16.0),
        with_peaks(failure(Reason.HOST_OUT_OF_MEMORY), host_memory_gib=3.0),
        failure(Reason.PREEMPTED),
    ],
)
def test_an_attempt_that_did_not_get_to_train_says_nothing_of_the_plan(result: Result) -> None:
    account = Account()
    account.step(HOUR, account.pod(exit_code=70, result=result))
    assert account.status.attempts[1].state == "Failed"
    assert account.status.measured is None


def test_a_plan_for_gpus_that_ran_on_a_cpu_has_no_error() -> None:
    account = Account()
    result = with_peaks(trained(), host_memory_gib=3.0, tokens_per_second=9.0)
    account.step(HOUR, account.pod(exit_code=0, result=result))
    measured = account.status.measured
    assert measured is not None
    assert measured.host_memory_gib == 3.0
    assert (measured.estimated_memory_gib, measured.memory_error) == (None, None)


def test_what_a_later_version_made_is_told_without_an_error() -> None:
    account = Account()
    result = with_peaks(trained(), gpu_memory_gib=30.0, tokens_per_second=9.0)
    ended = account.pod(exit_code=0, result=result)
    stranger = make_pod(exit_code=0, result=result)
    object.__setattr__(ended, "config_json", "{}")
    object.__setattr__(stranger, "config_json", "{}")
    account.step(HOUR, ended)
    assert account.status.measured is not None
    assert account.status.measured.memory_error is None


@pytest.mark.parametrize("left", ["its pod", "nothing"])
def test_what_was_measured_outlives_its_pods(left: str) -> None:
    """All that an operator that has started again knows is the job, and the pods that are left."""
    account = Account()
    peaks = {"gpu_memory_gib": 20.0, "tokens_per_second": 1e4}
    failed = with_peaks(failure(Reason.INTERNAL_ERROR), **peaks)
    first = account.pod(exit_code=70, result=failed, placed=0, finished=HOUR)
    # The operator was away when it ended.
    account.step(2 * HOUR, first)
    measured, count = account.status.measured, sample(f"{ERRORS}_count", **LABELS)
    assert measured is not None
    assert measured.memory_error is not None
    pods = [first] if left == "its pod" else []
    account.step(3 * HOUR, *pods)
    account.step(4 * HOUR, *pods, account.pod(2, running=True, placed=3 * HOUR))
    account.step(5 * HOUR, *pods)
    assert [one.reason for one in account.status.attempts[1:]] == ["InternalError", "PodDeleted"]
    assert account.status.measured == measured
    assert account.used == (3.0, 9.0)
    assert sample(f"{ERRORS}_count", **LABELS) == count


ERRORS = "finetune_operator_plan_memory_error_ratio"
LABELS: Mapping[str, str] = {
    "method": "sft", "adapter": "lora", "product": "NVIDIA-H100-80GB-HBM3",
}  # fmt: skip


def test_each_ended_attempt_is_observed_once() -> None:
    account = Account()
    count = sample(f"{ERRORS}_count", **LABELS)
    hours = sample("finetune_operator_gpu_hours_total", method="sft", product=LABELS["product"])
    peaks = {"gpu_memory_gib": 20.0, "tokens_per_second": 1e4}
    failed = with_peaks(failure(Reason.INTERNAL_ERROR), **peaks)
    first = account.pod(exit_code=70, result=failed, placed=0, finished=HOUR)
    account.step(0.5 * HOUR, account.pod(running=True, placed=0))
    for _ in range(3):
        account.step(HOUR, first)
    assert sample(f"{ERRORS}_count", **LABELS) == count + 1
    account.step(HOUR + 30, first)
    second = account.pod(
        2, exit_code=0, result=with_peaks(trained(), **peaks), placed=2 * HOUR, finished=4 * HOUR
    )
    for _ in range(3):
        account.step(4 * HOUR, second)
    assert account.status.phase == "Succeeded"
    assert sample(f"{ERRORS}_count", **LABELS) == count + 2
    found = sample("finetune_operator_gpu_hours_total", method="sft", product=LABELS["product"])
    assert found - hours == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("parts", "product"),
    [
        ({"resources": {"gpu": {"product": "Somebodys-GPU", "memory": "80Gi"}}}, "other"),
        ({}, "any"),
        (CPU, "cpu"),
    ],
)
def test_labels_are_of_few_values(parts: dict[str, Any], product: str) -> None:
    labels = {"method": "sft", "adapter": "lora", "product": product}
    before = sample(f"{ERRORS}_count", **labels)
    account = Account(prices=Prices(), **(parts or {"training": {"batchSize": 2}}))
    peaks = {"gpu_memory_gib": 20.0, "host_memory_gib": 5.0, "tokens_per_second": 1e4}
    account.step(HOUR, account.pod(exit_code=0, result=with_peaks(trained(), **peaks)))
    assert sample(f"{ERRORS}_count", **labels) == before + 1


def test_a_status_of_an_earlier_version_is_gone_on_with() -> None:
    """Its attempts do not say how many GPUs they have."""
    account = Account()
    for attempt in account.body["status"]["attempts"]:
        attempt.pop("gpus", None)
    account.body["status"].pop("usage")
    account.step(HOUR, account.pod(exit_code=0, result=trained(), placed=0, finished=HOUR))
    assert account.used == (0.0, 0.0)


def test_a_clock_that_is_behind_takes_nothing_back() -> None:
    account = Account()
    account.step(HOUR, account.pod(running=True, placed=0))
    ended = account.pod(exit_code=0, result=trained(), placed=0, finished=HOUR - 5)
    account.step(HOUR + 5, ended)
    assert account.used[0] == 1.0
    assert account.status.finish_time == at(HOUR) + timedelta(seconds=5)
