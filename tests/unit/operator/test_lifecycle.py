"""The state machine, one decision after the other."""

import json
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import FAILURES, Reason, RetryClass
from finetune_api.status import Plan, Progress, Stability
from finetune_api.trainer import ProgressReport, Result
from finetune_operator.lifecycle import Pod
from unit.operator.builders import (
    Life,
    failure,
    make_pod,
    make_pod_body,
    make_spec,
    prepared_pod,
    started,
    trained,
)


def test_clean_life() -> None:
    life = Life()

    decision = life.step(0)
    assert decision.launch is not None
    assert (decision.launch.role, decision.launch.number) == ("prepare", 1)
    assert life.phase == "Preparing"

    assert life.step(5, make_pod("prepare", running=True)).launch is None

    decision = life.step(10, prepared_pod())
    assert decision.launch is not None
    assert (decision.launch.role, decision.launch.number) == ("trainer", 1)
    assert life.phase == "Starting"
    assert life.condition("Planned")["status"] == "True"

    decision = life.step(20, prepared_pod(), make_pod(running=True))
    assert life.phase == "Running"
    assert decision.follow is not None

    decision = life.step(90, prepared_pod(), make_pod(exit_code=0, result=trained()))
    assert life.phase == "Succeeded"
    assert decision.delete == ()
    assert life.message == "The adapter is at pvc://models/job."
    assert life.condition("Ready")["status"] == "True"
    assert life.condition("Reconciling")["status"] == "False"
    assert life.body["status"]["progress"]["evalLoss"] == 1.25
    assert life.body["status"]["progress"]["steps"] == "63/63"

    assert life.writes == 4
    assert life.events == ["Planned", "Started", "Succeeded"]


@pytest.mark.parametrize(
    "pods",
    [
        (),
        (make_pod("prepare"),),
        (make_pod("prepare", running=True),),
    ],
)
def test_nothing_new_writes_nothing(pods: tuple[Any, ...]) -> None:
    life = Life()
    life.step(0)
    before = life.writes
    life.step(5, *(pods or (make_pod("prepare"),)))
    assert life.writes == before


def test_observed_generation_follows_a_change_of_the_run_policy() -> None:
    life = started()
    life.edit(runPolicy={"backoffLimit": 7})
    decision = life.step(20, prepared_pod(), make_pod(running=True))
    assert decision.delete == ()
    assert life.body["status"]["observedGeneration"] == 2
    assert life.phase == "Running"


def test_deleted_job_is_left_to_garbage_collection() -> None:
    life = Life(deleting=True)
    decision = life.step(0, make_pod(running=True))
    assert (decision.launch, decision.delete, life.writes) == (None, (), 0)


@pytest.mark.parametrize(
    ("role", "pod"),
    [("prepare", make_pod("prepare", running=True)), ("trainer", make_pod(running=True))],
)
def test_pods_without_a_record_are_adopted(role: str, pod: Any) -> None:
    """The operator died between making the pods and writing the status."""
    life = Life()
    if role == "trainer":
        life.step(0)
        decision = life.step(20, prepared_pod(), pod)
        assert life.body["status"]["plan"]["gpus"] == 1
    else:
        decision = life.step(20, pod)
    assert decision.launch is None
    assert life.attempts()[-1][:3] == (role, 1, "Active")


def test_an_adopted_attempt_tells_the_plan_that_it_runs_with() -> None:
    """The operator died before it wrote the smaller plan that it had made the pods with."""
    life = started(training={"batchSize": 2})
    parts: dict[str, Any] = {"training": {"batchSize": 2}}
    plan = Plan.model_validate(life.body["status"]["plan"])
    smaller = plan.model_copy(update={"summary": "smaller"})
    plain = make_pod(attempt=2, **parts)
    config = plain.config.model_copy(update={"plan": smaller})
    first = make_pod(exit_code=80, result=failure(Reason.GPU_OUT_OF_MEMORY))
    life.step(70, prepared_pod(**parts), first, make_pod(attempt=2, running=True, config=config))
    assert [one.get("plan") for one in life.body["status"]["attempts"]][1:] == [
        plan.summary,
        "smaller",
    ]


@pytest.mark.parametrize("reason", [r for r in Reason if FAILURES[r].retry is RetryClass.USER])
def test_user_failure_ends_the_job_at_once(reason: Reason) -> None:
    life = Life()
    life.step(0)
    result = failure(reason, "Found a, expected b.")
    decision = life.step(10, make_pod("prepare", exit_code=65, result=result))
    assert life.phase == "Failed"
    assert decision.launch is None
    failed = life.condition("Failed")
    assert failed["reason"] == reason.value
    assert failed["message"] == "Found a, expected b."
    assert life.condition("Stalled")["status"] == "True"
    assert life.events == [reason.value]


@pytest.mark.parametrize("reason", [r for r in Reason if FAILURES[r].retry is RetryClass.TRANSIENT])
def test_transient_failure_is_tried_again_with_back_off(reason: Reason) -> None:
    life = started()
    pods = [prepared_pod()]
    finished = 60.0
    for number, delay in enumerate((1, 10, 20), start=1):
        pods.append(make_pod(attempt=number, exit_code=1, result=failure(reason)))
        decision = life.step(finished, *pods)
        assert (life.phase, decision.launch) == ("Recovering", None)
        assert decision.requeue_after == pytest.approx(delay)
        decision = life.step(finished + delay, *pods)
        assert decision.launch is not None
        assert decision.launch.number == number + 1
        finished += 60
    life.step(finished, *pods, make_pod(attempt=4, exit_code=1, result=failure(reason)))
    assert life.phase == "Failed"
    assert life.condition("Failed")["reason"] == reason.value
    assert "after 4 attempts" in life.message
    assert life.body["status"]["failures"] == 4


def test_backoff_limit_of_zero_allows_one_attempt() -> None:
    life = started(runPolicy={"backoffLimit": 0})
    life.step(60, prepared_pod(), make_pod(exit_code=70))
    assert life.phase == "Failed"
    assert "after 1 attempt " in life.message


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (make_pod(exit_code=75, result=failure(Reason.PREEMPTED, step=12)), Reason.PREEMPTED),
        (make_pod(exit_code=143), Reason.PREEMPTED),
        (make_pod(phase="Failed", reason="Evicted"), Reason.PREEMPTED),
        (make_pod(phase="Failed", reason="UnexpectedAdmissionError"), Reason.PREEMPTED),
        (make_pod(exit_code=137, disruption="PreemptionByScheduler"), Reason.PREEMPTED),
        (make_pod(exit_code=137, disruption="DeletionByTaintManager"), Reason.NODE_LOST),
        (make_pod(phase="Failed", reason="NodeLost"), Reason.NODE_LOST),
        (make_pod(exit_code=137, deleting=True), Reason.POD_DELETED),
        (None, Reason.POD_DELETED),
    ],
)
def test_preemption_does_not_count(pod: Any, reason: Reason) -> None:
    life = started(runPolicy={"backoffLimit": 0})
    pods = [prepared_pod(), *([pod] if pod else [])]
    decision = life.step(60, *pods)
    assert life.attempts()[-1] == ("trainer", 1, "Failed", reason.value)
    assert life.body["status"].get("failures", 0) == 0
    assert decision.requeue_after == pytest.approx(1)
    decision = life.step(61, *pods)
    assert decision.launch is not None
    assert decision.launch.number == 2


def preempt(life: Life, steps: list[int | None]) -> list[float]:
    """Let an attempt live for 11 seconds up to each step; return the pauses after them."""
    pods, now, pauses = [prepared_pod()], 11.0, []
    for number, step in enumerate(steps, start=1):
        result = failure(Reason.PREEMPTED, step=step)
        pods.append(make_pod(attempt=number, exit_code=75, result=result))
        decision = life.step(now, *pods)
        if decision.requeue_after is None:
            break
        pauses.append(decision.requeue_after)
        now += decision.requeue_after
        assert life.step(now, *pods).launch is not None
        now += 11
    return pauses


def test_preempted_attempts_without_progress_come_to_an_end() -> None:
    life = started(runPolicy={"backoffLimit": 0})
    pauses = preempt(life, [None] * 12)
    assert pauses == [1, 10, 20, 40, 80, 160, 300, 300, 300]
    assert life.condition("Failed")["reason"] == "Preempted"
    assert "Gave up after 10 attempts in a row that got no further" in life.message
    assert "continues" not in life.message


def test_preempted_attempts_with_progress_go_on() -> None:
    life = started()
    assert preempt(life, [5, 5, 5, 12, 12, 13]) == [1, 1, 10, 1, 1, 1]
    assert preempt(started(), list(range(1, 30))) == [1] * 29


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (make_pod(exit_code=137, container_reason="OOMKilled"), "HostOutOfMemory"),
        (make_pod(exit_code=137), "Killed"),
        (make_pod(exit_code=1, result="Traceback:\nValueError: no\n"), "InternalError"),
        (make_pod(exit_code=74), "StorageFull"),
        (make_pod(exit_code=0), "InternalError"),
        (make_pod(exit_code=0, result="not json"), "InternalError"),
    ],
)
def test_reason_without_a_result(pod: Any, reason: str) -> None:
    life = started()
    life.step(60, prepared_pod(), pod)
    assert life.attempts()[-1][2:] == ("Failed", reason)


def test_last_line_of_the_log_is_told() -> None:
    life = started()
    life.step(60, prepared_pod(), make_pod(exit_code=1, result="Traceback:\nValueError: no\n"))
    assert "ValueError: no" in life.message


def test_a_log_line_that_the_kubelet_cut_is_not_told() -> None:
    life = started()
    log = '99, "entropy": 1.5}\n{"level": "INFO", "message": "step"}\n'
    life.step(60, prepared_pod(), make_pod(exit_code=137, result=log))
    message = life.body["status"]["attempts"][-1]["message"]
    assert message == "Pod job-trainer-1-0 ended with exit code 137."


def test_the_jobs_own_fault_stays_its_fault_when_its_pod_is_evicted() -> None:
    life = started()
    pod = make_pod(exit_code=81, result=failure(Reason.TRAINING_UNSTABLE), reason="Evicted")
    life.step(60, prepared_pod(), pod)
    assert life.condition("Failed")["reason"] == "TrainingUnstable"


def test_out_of_gpu_memory_makes_the_plan_smaller_until_there_is_no_room() -> None:
    parts: dict[str, Any] = {
        "training": {"batchSize": 2},
        "resources": {"gpu": {"count": 1}},
        "runPolicy": {"backoffLimit": 9},
    }
    life = started(**parts)
    pods, now = [prepared_pod(**parts)], 60.0
    for number in range(1, 5):
        pods.append(
            make_pod(attempt=number, exit_code=80, result=failure(Reason.GPU_OUT_OF_MEMORY))
        )
        life.step(now, *pods)
        life.step(now + 30, *pods)
        now += 60
    assert [one.get("plan") for one in life.body["status"]["attempts"]] == [
        None,
        "1 x 80 GiB GPU, lora, micro-batch 2 x 1",
        "1 x 80 GiB GPU, lora, micro-batch 1 x 2",
        "1 x 80 GiB GPU, lora, micro-batch 1 x 2, checkpointing selective",
        "1 x 80 GiB GPU, lora, micro-batch 1 x 2, checkpointing full",
    ]
    assert life.phase == "Failed"
    assert life.condition("Failed")["reason"] == "GpuOutOfMemory"


@pytest.mark.parametrize("checkpoint", [None, 20])
def test_more_gpus_are_taken_only_while_there_is_no_checkpoint(checkpoint: int | None) -> None:
    training = {"microBatchSize": 4, "gradientCheckpointing": "full"}
    life = started(training=training)
    pods = prepared_pod(training=training), make_pod(running=True)
    life.step(20, *pods, report=report(checkpoint_step=checkpoint))
    pod = make_pod(exit_code=80, result=failure(Reason.GPU_OUT_OF_MEMORY))
    life.step(60, prepared_pod(training=training), pod)
    assert life.phase == ("Recovering" if checkpoint is None else "Failed")
    assert life.body["status"]["plan"]["gpus"] == (2 if checkpoint is None else 1)


def test_a_given_micro_batch_is_kept() -> None:
    training = {"microBatchSize": 4, "gradientCheckpointing": "none"}
    life = started(training=training, resources={"gpu": {"count": 1}})
    pod = make_pod(exit_code=80, result=failure(Reason.GPU_OUT_OF_MEMORY))
    life.step(60, prepared_pod(training=training, resources={"gpu": {"count": 1}}), pod)
    assert life.phase == "Failed"


@pytest.mark.parametrize(("memory", "phase"), [(None, "Recovering"), ("20Gi", "Failed")])
def test_out_of_host_memory(memory: str | None, phase: str) -> None:
    resources = {"memory": memory} if memory else {}
    life = started(resources=resources)
    before = life.body["status"]["plan"]["hostMemory"]
    pod = make_pod(exit_code=137, container_reason="OOMKilled")
    life.step(60, prepared_pod(resources=resources), pod)
    assert life.phase == phase
    if memory is None:
        after = life.body["status"]["plan"]["hostMemory"]
        assert int(after[:-2]) == pytest.approx(1.5 * int(before[:-2]), abs=1)


@pytest.mark.parametrize("resources", [{}, {"memory": "400Gi"}])
def test_preparation_out_of_memory_gets_more(resources: dict[str, Any]) -> None:
    life = Life(resources=resources)
    first = life.step(0).launch
    pod = make_pod("prepare", exit_code=137, container_reason="OOMKilled", resources=resources)
    life.step(10, pod)
    second = life.step(11, pod).launch
    assert first is not None
    assert second is not None
    assert (first.memory, second.memory) == ("4Gi", "6Gi")


def test_no_new_attempt_while_an_old_pod_may_still_write() -> None:
    life = started()
    failed = make_pod(exit_code=137)
    late = make_pod(attempt=1, rank=1, running=True, deleting=True)
    life.step(60, prepared_pod(), failed, late)
    decision = life.step(120, prepared_pod(), failed, late)
    assert decision.launch is None
    assert decision.delete == ()
    assert "job-trainer-1-1" in life.message
    decision = life.step(121, prepared_pod(), failed)
    assert decision.launch is not None


def test_a_failed_pod_takes_its_attempt_along() -> None:
    life = started()
    peer = make_pod(rank=1, running=True)
    decision = life.step(60, prepared_pod(), make_pod(exit_code=137), peer)
    assert [pod.name for pod in decision.delete] == ["job-trainer-1-1"]


def test_absence_is_confirmed_before_anything_follows_from_it() -> None:
    life = started()
    before = dict(life.body["status"])
    decision = life.step(60, prepared_pod(), confirmed=False)
    assert decision.confirm
    assert (decision.launch, decision.delete, decision.events) == (None, (), ())
    assert life.body["status"] == before
    life.step(60, prepared_pod(), confirmed=True)
    assert life.attempts()[-1][3] == "PodDeleted"


def test_a_pod_that_is_being_deleted_is_waited_for() -> None:
    life = started()
    decision = life.step(60, prepared_pod(), make_pod(running=True, deleting=True))
    assert (life.phase, decision.launch) == ("Recovering", None)


def test_suspend_before_the_start_makes_nothing() -> None:
    life = Life(runPolicy={"suspend": True})
    decision = life.step(0)
    assert decision.launch is None
    assert life.phase == "Suspended"
    assert life.condition("Suspended")["status"] == "True"
    assert "startTime" not in life.body["status"]


def test_suspend_stops_and_resume_continues() -> None:
    life = started(runPolicy={"backoffLimit": 0})
    life.step(20, prepared_pod(), make_pod(running=True))
    life.edit(runPolicy={"suspend": True, "backoffLimit": 0})

    decision = life.step(30, prepared_pod(), make_pod(running=True))
    assert [pod.name for pod in decision.delete] == ["job-trainer-1-0"]
    assert life.phase == "Running"
    decision = life.step(31, prepared_pod(), make_pod(running=True, deleting=True))
    assert decision.delete == ()

    words = failure(Reason.PREEMPTED, step=12, checkpoint_step=12)
    stopped = make_pod(exit_code=75, result=words, deleting=True)
    life.step(40, prepared_pod(), stopped)
    assert life.phase == "Suspended"
    assert life.attempts()[-1][2] == "Stopped"
    assert life.body["status"]["attempts"][-1]["step"] == 12
    assert life.body["status"]["checkpoint"] == {"step": 12}
    assert life.body["status"]["message"].startswith("Suspended at step 12")
    assert "startTime" not in life.body["status"]

    life.edit(runPolicy={"suspend": False, "backoffLimit": 0})
    decision = life.step(50, prepared_pod())
    assert decision.launch is not None
    assert (decision.launch.role, decision.launch.number) == ("trainer", 2)
    assert life.condition("Suspended")["status"] == "False"
    assert life.body["status"]["startTime"].endswith("12:00:50Z")
    assert "failures" not in life.body["status"] or life.body["status"]["failures"] == 0


def test_a_stop_before_the_first_step_leaves_no_checkpoint() -> None:
    life = started()
    pod = make_pod(exit_code=75, result=failure(Reason.PREEMPTED, step=0))
    life.step(40, prepared_pod(), pod)
    assert "checkpoint" not in life.body["status"]


def test_the_checkpoint_of_a_drained_pod_is_one_that_exists() -> None:
    life = started()
    words = failure(Reason.GPU_OUT_OF_MEMORY, step=55, checkpoint_step=50)
    pod = make_pod(exit_code=80, result=words, disruption="EvictionByEvictionAPI")
    life.step(60, prepared_pod(), pod)
    assert life.attempts()[-1] == ("trainer", 1, "Failed", "Preempted")
    assert life.body["status"]["attempts"][-1]["step"] == 55
    assert life.body["status"]["checkpoint"] == {"step": 50}


def test_suspended_pod_that_vanishes_is_no_failure() -> None:
    life = started()
    life.edit(runPolicy={"suspend": True})
    life.step(20, prepared_pod(), make_pod(running=True, deleting=True))
    life.step(30, prepared_pod())
    assert (life.phase, life.attempts()[-1][2]) == ("Suspended", "Stopped")


def test_success_wins_over_suspension() -> None:
    life = started()
    life.edit(runPolicy={"suspend": True})
    life.step(30, prepared_pod(), make_pod(exit_code=0, result=trained(), deleting=True))
    assert life.phase == "Succeeded"


def test_preparation_that_succeeds_during_suspension_is_kept() -> None:
    life = Life()
    life.step(0)
    life.edit(runPolicy={"suspend": True})
    decision = life.step(10, prepared_pod())
    assert decision.launch is None
    assert life.phase == "Suspended"
    assert "plan" in life.body["status"]


def test_deadline() -> None:
    life = started(runPolicy={"activeDeadlineSeconds": 100})
    decision = life.step(20, prepared_pod(), make_pod(running=True))
    assert decision.requeue_after == pytest.approx(80)
    decision = life.step(100, prepared_pod(), make_pod(running=True))
    assert life.phase == "Failed"
    assert life.condition("Failed")["reason"] == "DeadlineExceeded"
    assert [pod.name for pod in decision.delete] == ["job-trainer-1-0"]
    assert life.attempts()[-1][2:] == ("Failed", "DeadlineExceeded")


def test_ttl() -> None:
    life = started(runPolicy={"ttlSecondsAfterFinished": 30})
    pods = prepared_pod(), make_pod(exit_code=0, result=trained())
    assert life.step(60, *pods).requeue_after == pytest.approx(30)
    assert not life.step(89, *pods).delete_job
    assert life.step(90, *pods).delete_job


def test_finished_job_keeps_its_ended_pods_and_deletes_others() -> None:
    life = started()
    life.step(60, prepared_pod(), make_pod(exit_code=0, result=trained()))
    stray = make_pod(attempt=2, running=True)
    decision = life.step(70, prepared_pod(), make_pod(exit_code=0, result=trained()), stray)
    assert [pod.name for pod in decision.delete] == ["job-trainer-2-0"]
    assert life.phase == "Succeeded"


def test_spec_changed_during_preparation() -> None:
    life = Life()
    life.step(0)
    life.edit(method="dpo")
    old = {"method": "sft"}
    decision = life.step(5, make_pod("prepare", running=True, **old))
    assert [pod.name for pod in decision.delete] == ["job-prepare-1"]
    decision = life.step(10, make_pod("prepare", exit_code=143, **old))
    assert life.attempts()[0][2] == "Stopped"
    assert decision.launch is not None
    assert (decision.launch.role, decision.launch.number) == ("prepare", 2)
    assert life.events == []


def test_preparation_of_an_old_spec_makes_no_plan() -> None:
    life = Life()
    life.step(0)
    life.edit(method="dpo")
    decision = life.step(10, prepared_pod(method="sft"))
    assert decision.launch is not None
    assert decision.launch.role == "prepare"
    assert "plan" not in life.body["status"]


def test_failed_preparation_is_tried_again_when_the_spec_is_corrected() -> None:
    life = Life()
    life.step(0)
    bad = make_pod("prepare", exit_code=66, result=failure(Reason.MODEL_NOT_FOUND))
    life.step(10, bad)
    assert life.phase == "Failed"
    life.edit(model={"source": "hf://Qwen/Qwen3-4B"})
    decision = life.step(20, bad)
    assert decision.launch is not None
    assert (decision.launch.role, decision.launch.number) == ("prepare", 2)
    assert life.phase == "Preparing"
    assert life.condition("Failed")["status"] == "False"
    assert "finishTime" not in life.body["status"]
    new = make_pod("prepare", 2, running=True, model={"source": "hf://Qwen/Qwen3-4B"})
    life.step(30, bad, new)
    assert life.phase == "Preparing"


@pytest.mark.parametrize("policy", [{"ttlSecondsAfterFinished": 60}, {"backoffLimit": 9}])
def test_a_change_of_the_run_policy_corrects_nothing(policy: dict[str, Any]) -> None:
    life = Life()
    life.step(0)
    bad = make_pod("prepare", exit_code=66, result=failure(Reason.MODEL_NOT_FOUND))
    life.step(10, bad)
    life.edit(runPolicy=policy)
    assert life.step(20, bad).launch is None
    assert life.phase == "Failed"
    life.edit(model={"source": "hf://Qwen/Qwen3-4B"})
    assert life.step(30, bad).launch is not None


def test_a_default_of_a_newer_operator_is_no_change_of_the_spec() -> None:
    life = Life()
    life.step(0)
    body = make_pod_body("prepare", running=True)
    config = json.loads(body["metadata"]["annotations"][names.CONFIG_ANNOTATION])
    del config["spec"]["training"]
    body["metadata"]["annotations"][names.CONFIG_ANNOTATION] = json.dumps(config)
    assert life.step(5, Pod.parse(body)).delete == ()


def test_a_pod_whose_config_cannot_be_read_is_replaced() -> None:
    life = Life()
    life.step(0)
    body = make_pod_body("prepare", running=True)
    body["metadata"]["annotations"] = {}
    assert [pod.name for pod in life.step(5, Pod.parse(body)).delete] == ["job-prepare-1"]


def test_infeasible_plan_fails_before_any_gpu() -> None:
    resources = {"gpu": {"count": 1, "memory": "8Gi"}}
    life = Life(resources=resources)
    life.step(0)
    decision = life.step(10, prepared_pod(resources=resources))
    assert decision.launch is None
    assert life.condition("Failed")["reason"] == "PlanInfeasible"
    assert "qlora" in life.message


def test_a_gpu_that_cannot_train_the_job_is_told_before_anything_is_fetched() -> None:
    precision = {"training": {"precision": "float8"}}
    life = Life(resources={"gpu": {"product": "NVIDIA-A100-SXM4-80GB"}}, **precision)
    assert life.step(0).launch is None
    assert life.condition("Failed")["reason"] == "PlanInfeasible"
    assert "NVIDIA-A100-SXM4-80GB, which cannot multiply in float8" in life.message
    assert life.step(10).launch is None
    assert life.events.count("PlanInfeasible") == 1
    life.edit(resources={"gpu": {"product": "NVIDIA-H100-80GB-HBM3"}})
    launch = life.step(20).launch
    assert launch is not None
    assert launch.role == "prepare"


@pytest.mark.parametrize(
    "gpu",
    [{"product": "NVIDIA-A100-SXM4-80GB", "count": 0}, {"product": "H100"}, {"product": "new"}],
)
def test_a_gpu_of_which_the_spec_alone_tells_nothing_holds_no_preparation_up(gpu: Any) -> None:
    training = {"precision": "auto" if "count" in gpu else "float8"}
    assert Life(resources={"gpu": gpu}, training=training).step(0).launch is not None


def test_a_job_may_go_back_to_a_gpu_that_it_was_prepared_for() -> None:
    precision = {"training": {"precision": "float8"}}
    able = {"gpu": {"product": "NVIDIA-H100-80GB-HBM3"}}
    life = Life(resources=able, **precision)
    life.step(0)
    failed = make_pod(
        "prepare",
        exit_code=70,
        result=failure(Reason.INTERNAL_ERROR),
        resources=able,
        **precision,
    )
    life.step(10, failed)
    life.edit(resources={"gpu": {"product": "NVIDIA-A100-SXM4-80GB"}})
    life.step(11, failed)
    assert life.phase == "Failed"
    life.edit(resources=able)
    assert life.step(12, failed).launch is not None


NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (make_pod(unschedulable=NO_NODE), "Unschedulable", NO_NODE),
        (
            make_pod(waiting=("ImagePullBackOff", "Back-off pulling x")),
            "ImagePullBackOff",
            "pulling x",
        ),
        (make_pod(waiting=("ErrImagePull", "not found")), "ErrImagePull", "not found"),
        (
            make_pod(waiting=("CreateContainerConfigError", "bad")),
            "CreateContainerConfigError",
            "bad",
        ),
    ],
)
def test_pod_problem_is_told_and_taken_back(pod: Any, reason: str, words: str) -> None:
    life = started()
    life.step(25, prepared_pod(), pod)
    problem = life.condition("PodProblem")
    assert (problem["status"], problem["reason"]) == ("True", reason)
    assert words in problem["message"]
    assert words in life.message
    assert life.phase == "Starting"
    life.step(60, prepared_pod(), make_pod(running=True))
    assert life.condition("PodProblem")["status"] == "False"


def test_a_problem_that_is_over_is_taken_back_though_another_may_follow() -> None:
    """A pod that has found its node is still made for a while, which is no problem yet."""
    life = started()
    life.step(25, prepared_pod(), make_pod(unschedulable=NO_NODE))
    placed = make_pod(waiting=("ContainerCreating", ""), created=10)
    decision = life.step(30, prepared_pod(), placed)
    assert life.condition("PodProblem")["status"] == "False"
    assert decision.requeue_after == pytest.approx(40)


def test_a_pod_may_be_unschedulable_for_a_moment() -> None:
    life = started()
    before = life.writes
    pod = make_pod(unschedulable=NO_NODE, created=10)
    decision = life.step(12, prepared_pod(), pod)
    assert decision.requeue_after == pytest.approx(8)
    assert life.writes == before
    life.step(20, prepared_pod(), pod)
    assert life.condition("PodProblem")["status"] == "True"


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (
            make_pod(
                "prepare", unschedulable='0/1 nodes: persistentvolumeclaim "models" not found.'
            ),
            "ClaimNotFound",
        ),
        (
            make_pod("prepare", waiting=("CreateContainerConfigError", 'secret "hub" not found')),
            "SecretNotFound",
        ),
    ],
)
def test_what_is_missing_for_long_fails_the_job(pod: Any, reason: str) -> None:
    life = Life()
    life.step(0)
    decision = life.step(2, pod)
    assert life.condition("PodProblem")["reason"] == reason
    assert decision.requeue_after == pytest.approx(20)
    assert life.step(21, pod).delete == ()
    decision = life.step(22, pod)
    assert life.condition("Failed")["reason"] == reason
    assert [one.name for one in decision.delete] == ["job-prepare-1"]


def test_the_patience_for_a_missing_secret_starts_with_that_problem() -> None:
    life = Life()
    life.step(0)
    life.step(5, make_pod("prepare", waiting=("ErrImagePull", "slow registry")))
    missing = make_pod("prepare", waiting=("CreateContainerConfigError", 'secret "hub" not found'))
    life.step(60, missing)
    assert life.phase == "Preparing"
    life.step(80, missing)
    assert life.phase == "Failed"


STUCK = (
    "Pod job-trainer-1-0 on node gpu-7 was to end by 12:02:00 UTC and has not. Make sure that the"
    " node is off, then: kubectl delete pod job-trainer-1-0 -n team --force"
)


@pytest.mark.parametrize("suspend", [False, True])
def test_a_deleted_pod_that_does_not_end_is_told(suspend: bool) -> None:
    life = started()
    life.edit(runPolicy={"suspend": suspend})
    pods = prepared_pod(), make_pod(running=True, deleted_by=120, node="gpu-7")
    decision = life.step(50, *pods)
    assert decision.requeue_after == pytest.approx(130)
    assert life.condition("PodProblem") == {}
    life.step(180, *pods)
    problem = life.condition("PodProblem")
    assert (problem["status"], problem["reason"]) == ("True", "PodStuck")
    assert life.message == problem["message"] == STUCK
    life.step(200, prepared_pod())
    life.step(210, prepared_pod(), make_pod(attempt=2, running=True))
    assert life.condition("PodProblem")["status"] == "False"


def test_a_pod_of_an_ended_attempt_that_does_not_end_is_told() -> None:
    life = started()
    late = make_pod(rank=1, running=True, deleted_by=120)
    pods = prepared_pod(), make_pod(exit_code=137), late
    life.step(60, *pods)
    assert life.step(70, *pods).requeue_after == pytest.approx(110)
    life.step(180, *pods)
    assert life.phase == "Recovering"
    assert "kubectl delete pod job-trainer-1-1 -n team --force" in life.message
    assert life.step(190, *pods[:2]).launch is not None
    assert life.condition("PodProblem")["status"] == "False"


def test_pods_that_a_queue_holds_back() -> None:
    life = started(runPolicy={"queue": "gpus"})
    life.step(20, prepared_pod(), make_pod(gated=True))
    assert (life.phase, life.message) == ("Queued", "Waiting for admission by queue gpus.")


def report(**progress: Any) -> ProgressReport:
    return ProgressReport(
        progress=Progress.model_validate({"activity": "Training", "step": 3, **progress}),
        stability=Stability(verdict="Stable"),
    )


def test_progress_is_shown_and_export_has_its_phase() -> None:
    life = started()
    pods = prepared_pod(), make_pod(running=True)
    life.step(20, *pods, report=report(loss=2.5, checkpoint_step=2))
    assert life.body["status"]["progress"]["loss"] == 2.5
    assert life.body["status"]["checkpoint"] == {"step": 2}
    life.step(50, *pods, report=report(activity="Exporting"))
    assert life.phase == "Exporting"
    assert life.body["status"]["checkpoint"] == {"step": 2}


def test_multi_node_attempt_succeeds_when_all_its_pods_have() -> None:
    life = started()
    life.body["status"]["plan"] |= {"gpus": 2, "nodes": 2, "gpusPerNode": 1}
    done = make_pod(exit_code=0, result=trained())
    prepared = prepared_pod()
    life.step(50, prepared, done, make_pod(rank=1, running=True))
    assert life.phase == "Running"
    peer = make_pod(rank=1, exit_code=0, result=Result.succeeded())
    life.step(60, prepared, done, peer)
    assert life.phase == "Succeeded"


def test_default_spec_is_what_the_builders_say() -> None:
    assert make_spec().run_policy.backoff_limit == 3


def test_a_pod_that_is_made_for_long_is_told() -> None:
    life = Life()
    life.step(0)
    pod = make_pod("prepare", waiting=("ContainerCreating", ""))
    life.step(30, pod)
    assert life.condition("PodProblem").get("status") != "True"
    life.step(61, pod)
    assert life.condition("PodProblem")["reason"] == "ContainerCreating"
    assert "waits for a volume" in life.body["status"]["message"]
