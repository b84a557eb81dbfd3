"""Rollbacks and the findings of the stability guard, as the operator deals with them."""

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import Finding, Progress, Rollback, Stability
from finetune_api.trainer import ProgressReport, Result
from finetune_operator.lifecycle import Decision, Pod
from finetune_operator.progress import visible
from unit.operator.builders import failure, make_pod, prepared_pod, started

BACK = {"policy": "Rollback", "maxRollbacks": 2}


def rolled_back(attempt: int, step: int = 50, disruption: str | None = None, **fields: Any) -> Pod:
    """Return a trainer pod that found training unstable at a step."""
    rollback = Rollback(
        rule="loss-spike", step=step, to_step=step - 10, learning_rate_factor=0.5**attempt
    )
    fields = {"rollback": rollback, "step": step} | fields
    result = failure(Reason.ROLLED_BACK, "The loss rose to 50 times its mean", **fields)
    return make_pod(attempt=attempt, exit_code=82, result=result, disruption=disruption)


def finding(rule: str = "loss-spike", step: int = 50, severity: Any = "Warning") -> Finding:
    return Finding(
        rule=rule, severity=severity, step=step, message="Loss 9.1.", advice="Lower the rate."
    )


def report(*findings: Finding) -> ProgressReport:
    verdict: Any = "Warning" if findings else "Stable"
    return ProgressReport(
        progress=Progress(activity="Training", step=60),
        stability=Stability(verdict=verdict, findings=list(findings)),
    )


def said(decision: Decision) -> list[tuple[str, str, str]]:
    return [(event.type, event.reason, event.message) for event in decision.events]


def test_a_rollback_starts_the_next_attempt_at_once_and_counts_as_no_failure() -> None:
    life = started(stability=BACK, runPolicy={"backoffLimit": 0})
    decision = life.step(60, prepared_pod(stability=BACK), rolled_back(1))
    status = life.body["status"]
    assert decision.launch is not None
    assert (decision.launch.role, decision.launch.number) == ("trainer", 2)
    assert status["rollbacks"] == [
        {"rule": "loss-spike", "step": 50, "toStep": 40, "learningRateFactor": 0.5}
    ]
    assert decision.status.rollbacks == [Rollback.model_validate(status["rollbacks"][0])]
    assert status["checkpoint"] == {"step": 40}
    assert status.get("failures", 0) == 0
    assert life.attempts()[-2] == ("trainer", 1, "Failed", "RolledBack")
    assert status["attempts"][-2]["message"] == "The loss rose to 50 times its mean."
    words = (
        "loss-spike at step 50: training goes on after that step from the weights of step 40,"
        " with 0.5 x the learning rate. Rollback 1 of at most 2."
    )
    assert said(decision) == [("Warning", "RolledBack", words)]


def test_a_rollback_is_kept_when_the_node_is_drained_meanwhile() -> None:
    life = started(stability=BACK)
    pod = rolled_back(1, disruption="EvictionByEvictionAPI", checkpoint_step=50)
    life.step(60, prepared_pod(stability=BACK), pod)
    assert life.attempts()[-2] == ("trainer", 1, "Failed", "RolledBack")
    assert life.body["status"]["checkpoint"] == {"step": 40}
    assert len(life.body["status"]["rollbacks"]) == 1


def test_more_rollbacks_than_allowed_fail_the_job() -> None:
    life = started(stability=BACK)
    pods = [prepared_pod(stability=BACK)]
    for attempt in (1, 2, 3):
        pods.append(rolled_back(attempt, step=50 + attempt))
        life.step(60 * attempt, *pods)
    assert life.condition("Failed")["reason"] == "TrainingUnstable"
    assert "Gave up after 2 rollbacks (stability.maxRollbacks)" in life.message
    assert len(life.body["status"]["rollbacks"]) == 2


def test_a_rollback_to_nowhere_fails_the_job() -> None:
    life = started(stability=BACK)
    life.step(60, prepared_pod(stability=BACK), rolled_back(1, rollback=None))
    assert life.condition("Failed")["reason"] == "TrainingUnstable"


def test_a_rollback_is_kept_when_the_job_is_suspended_meanwhile() -> None:
    life = started(stability=BACK)
    life.edit(runPolicy={"suspend": True})
    life.step(60, prepared_pod(stability=BACK), rolled_back(1))
    assert life.phase == "Suspended"
    life.edit(runPolicy={"suspend": False})
    decision = life.step(70, prepared_pod(stability=BACK), rolled_back(1))
    assert decision.launch is not None
    assert len(decision.status.rollbacks) == 1


def test_each_finding_is_told_once() -> None:
    life = started()
    pods = prepared_pod(), make_pod(running=True)
    life.step(20, *pods, report=report())
    first = finding()
    decision = life.step(30, *pods, report=report(first))
    assert said(decision) == [
        ("Warning", "StabilityWarning", "loss-spike at step 50: Loss 9.1. Advice: Lower the rate.")
    ]
    assert life.body["status"]["stability"]["verdict"] == "Warning"
    assert said(life.step(40, *pods, report=report(first))) == []
    later = finding(step=70, severity="Critical")
    note = finding(rule="entropy-low", severity="Info")
    decision = life.step(50, *pods, report=report(first, later, note))
    assert [(kind, reason) for kind, reason, _ in said(decision)] == [
        ("Warning", "StabilityCritical")
    ]


@pytest.mark.parametrize("exit_code", [0, 81])
def test_the_last_word_of_the_guard_is_in_the_result(exit_code: int) -> None:
    life = started()
    stability = Stability(verdict="Unstable", findings=[finding(severity="Critical")])
    result = (
        Result.failed(Reason.TRAINING_UNSTABLE, "Loss is NaN.", stability=stability)
        if exit_code
        else Result.succeeded(step=60, stability=stability)
    )
    decision = life.step(60, prepared_pod(), make_pod(exit_code=exit_code, result=result))
    assert life.body["status"]["stability"]["verdict"] == "Unstable"
    assert said(decision)[0][1] == "StabilityCritical"


def test_what_a_result_has_no_room_for_stays() -> None:
    life = started()
    pods = prepared_pod(), make_pod(running=True)
    seen = [finding(step=step) for step in (50, 60, 70)]
    life.step(20, *pods, report=report(*seen))
    cut = Stability(verdict="Warning", findings=[finding(step=80)])
    done = make_pod(exit_code=0, result=Result.succeeded(step=90, stability=cut))
    life.step(60, prepared_pod(), done)
    findings = life.body["status"]["stability"]["findings"]
    assert [one["step"] for one in findings] == [50, 60, 70, 80]


def test_what_a_run_found_before_it_went_back_does_not_stay() -> None:
    life = started()
    pods = prepared_pod(), make_pod(running=True)
    life.step(20, *pods, report=report(finding()))
    done = make_pod(exit_code=0, result=Result.succeeded(stability=Stability(verdict="Stable")))
    life.step(60, prepared_pod(), done)
    assert life.body["status"]["stability"] == {"verdict": "Stable", "findings": []}


def test_a_new_finding_is_worth_a_write() -> None:
    assert visible(report(finding())) != visible(report(finding(), finding(step=70)))
    assert visible(report(finding())) == visible(report(finding()))
