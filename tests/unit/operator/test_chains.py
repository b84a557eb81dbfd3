"""Jobs that start from the models of other jobs."""

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import ModelStart
from finetune_operator.lifecycle import Job, awaits, chain_of
from unit.operator.builders import Life, failure, make_pod, make_preparation, prepared_pod

REWARDED: dict[str, Any] = {"method": "grpo"}


class Family:
    """Jobs of one namespace, each with a life of its own."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}

    def apply(self, name: str, source: str = "hf://Qwen/Qwen3-8B", **parts: Any) -> Life:
        """Add a job that starts from a source."""
        model = {"source": source} | parts.pop("model", {})
        self.lives[name] = Life(name=name, uid=f"uid-of-{name}", model=model, **parts)
        return self.lives[name]

    def job(self, name: str) -> Job | None:
        life = self.lives.get(name)
        return None if life is None else Job.parse(life.body)

    def step(self, name: str, seconds: float = 0, *pods: Any, **options: Any) -> Any:
        """Decide about one job, knowing the others."""
        life = self.lives[name]
        chain = chain_of(Job.parse(life.body), self.job)
        return life.step(seconds, *pods, chain=chain, **options)

    def end(self, name: str, phase: str, **artifact: Any) -> None:
        """Let a job end; artifact says what is special about its model."""
        status = self.lives[name].body.setdefault("status", {})
        status |= {"phase": phase, "message": "", "finishTime": "2026-11-24T12:00:00Z"}
        if phase == "Succeeded":
            made = {"uri": f"pvc://models/{name}", "kind": "adapter"}
            status["artifact"] = made | artifact

    def sources(self, name: str) -> tuple[str, str]:
        """Return status and reason of the SourcesReady condition."""
        condition = self.lives[name].condition("SourcesReady")
        return condition["status"], condition["reason"]


def reward(source: str) -> list[dict[str, Any]]:
    return [{"name": "judge", "model": source}]


def test_a_job_waits_for_the_model_of_another_in_any_order_of_apply() -> None:
    family = Family()
    second = family.apply("second", "job://first")
    assert family.step("second").launch is None
    assert family.sources("second") == ("False", "JobNotFound")
    assert "job first" in second.message
    assert (second.phase, second.condition("Stalled")["status"]) == ("Pending", "False")

    family.apply("first")
    family.step("first")
    family.step("second", 5)
    assert family.sources("second") == ("False", "WaitingForJob")
    assert second.message == "Waiting for the model of job first (Preparing)."
    assert "startTime" not in second.body["status"]

    family.end("first", "Succeeded")
    launch = family.step("second", 60).launch
    assert launch is not None
    assert (launch.role, launch.number) == ("prepare", 1)
    assert family.sources("second") == ("True", "Found")
    assert second.body["status"]["startTime"].endswith("12:01:00Z")
    assert second.events == ["WaitingForJob", "SourcesReady"]


def test_a_job_whose_predecessor_is_done_starts_at_once_and_with_one_write() -> None:
    family = Family()
    family.apply("first")
    family.end("first", "Succeeded")
    second = family.apply("second", "job://first")
    assert family.step("second").launch is not None
    assert second.writes == 1
    assert second.phase == "Preparing"


def test_an_ordinary_job_says_nothing_of_sources() -> None:
    family = Family()
    life = family.apply("first")
    family.step("first")
    assert life.condition("SourcesReady") == {}
    assert life.body["status"]["starts"] == {}


def test_a_failed_predecessor_stalls_the_job_until_it_is_applied_again() -> None:
    family = Family()
    family.apply("first")
    second = family.apply("second", "job://first")
    family.step("second")
    family.end("first", "Failed")
    family.step("second", 5)
    assert family.sources("second") == ("False", "JobFailed")
    assert second.phase == "Pending"
    assert second.condition("Stalled")["status"] == "True"
    assert second.condition("Reconciling")["status"] == "False"
    assert "job first (Failed)" in second.message
    assert second.events == ["WaitingForJob", "JobFailed"]

    del family.lives["first"]
    family.step("second", 10)
    assert family.sources("second") == ("False", "JobNotFound")
    assert second.condition("Stalled")["status"] == "False"
    family.apply("first")
    family.end("first", "Succeeded")
    assert family.step("second", 15).launch is not None


ADAPTER = "pvc://models/first"


@pytest.mark.parametrize(
    ("artifact", "adapter", "start"),
    [
        ({"kind": "model"}, None, ModelStart(base=ADAPTER)),
        ({}, None, ModelStart(base="hf://a/b", secret="hub", merge=[ADAPTER])),
        ({}, "merge", ModelStart(base="hf://a/b", secret="hub", merge=[ADAPTER])),
        ({}, "continue", ModelStart(base="hf://a/b", secret="hub", adapter=ADAPTER)),
        ({"mergedUri": f"{ADAPTER}/merged"}, None, ModelStart(base=f"{ADAPTER}/merged")),
        (
            {"mergedUri": f"{ADAPTER}/merged"},
            "continue",
            ModelStart(base="hf://a/b", secret="hub", adapter=ADAPTER),
        ),
    ],
)
def test_what_the_model_of_another_job_is(
    artifact: dict[str, Any], adapter: str | None, start: ModelStart
) -> None:
    family = Family()
    family.apply("first", "hf://a/b", model={"secret": "hub"})
    family.end("first", "Succeeded", **artifact)
    family.apply("second", "job://first", model={"jobAdapter": adapter} if adapter else {})
    family.step("second")
    job = family.job("second")
    assert job is not None
    assert job.status.starts == {"job://first": start}


@pytest.mark.parametrize(
    ("second", "third", "start"),
    [
        ("merge", "merge", {"merge": ["pvc://models/first", "pvc://models/second"]}),
        (
            "merge",
            "continue",
            {"merge": ["pvc://models/first"], "adapter": "pvc://models/second"},
        ),
        # What goes on with an adapter makes one that replaces it.
        ("continue", "merge", {"merge": ["pvc://models/second"]}),
        ("continue", "continue", {"merge": [], "adapter": "pvc://models/second"}),
    ],
)
def test_adapters_of_three_jobs(second: str, third: str, start: dict[str, Any]) -> None:
    family = Family()
    family.apply("first", "hf://a/b")
    family.apply("second", "job://first", model={"jobAdapter": second})
    family.apply("third", "job://second", model={"jobAdapter": third})
    family.step("third")
    for name in ("first", "second"):
        family.step(name)
        family.end(name, "Succeeded")
    family.step("third", 5)
    starts = family.lives["third"].body["status"]["starts"]
    assert starts == {"job://second": {"base": "hf://a/b"} | start}


def test_what_was_found_stays_when_the_other_job_is_gone() -> None:
    family = Family()
    family.apply("first")
    family.end("first", "Succeeded")
    second = family.apply("second", "job://first")
    family.step("second")
    found = second.body["status"]["starts"]
    del family.lives["first"]
    model = second.body["spec"]["model"]
    gone = failure(Reason.SOURCE_UNAVAILABLE)
    failed = make_pod("prepare", exit_code=69, result=gone, model=model)
    family.step("second", 10, failed)
    assert family.step("second", 20, failed).launch is not None
    assert second.body["status"]["starts"] == found
    family.step("second", 30, failed, prepared_pod(2, model=model))
    assert second.phase == "Starting"


def test_starts_are_adopted_from_a_pod_whose_record_was_not_written() -> None:
    start = ModelStart(base=ADAPTER)
    family = Family()
    second = family.apply("second", "job://first")
    pod = make_pod("prepare", running=True, model={"source": "job://first"})
    config = pod.config.model_copy(update={"starts": {"job://first": start}})
    family.step("second", 5, make_pod("prepare", running=True, config=config))
    assert second.attempts()[-1][:3] == ("prepare", 1, "Active")
    assert second.body["status"]["starts"]["job://first"]["base"] == ADAPTER


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ({"a": "a"}, "a -> a"),
        ({"a": "b", "b": "a"}, "a -> b -> a"),
        ({"a": "b", "b": "c", "c": "a"}, "a -> b -> c -> a"),
    ],
)
def test_a_cycle_is_refused_and_its_correction_goes_on(edges: dict[str, str], words: str) -> None:
    family = Family()
    for name, other in edges.items():
        family.apply(name, f"job://{other}")
    for name in edges:
        family.step(name)
        assert family.lives[name].condition("Failed")["reason"] == "ConfigInvalid"
    assert words in family.lives["a"].message
    assert family.lives["a"].condition("Stalled")["status"] == "True"

    last = list(edges)[-1]
    family.lives[last].edit(model={"source": "hf://a/b"})
    assert family.step(last, 10).launch is not None
    for name in reversed(edges):
        if name != last:
            family.step(name, 20)
            assert family.lives[name].phase == "Pending"
            assert family.sources(name) == ("False", "WaitingForJob")


def test_a_job_that_waits_for_a_cycle_is_not_part_of_it() -> None:
    family = Family()
    outside = family.apply("outside", "job://a")
    family.apply("a", "job://b")
    family.apply("b", "job://a")
    family.step("outside")
    assert outside.phase == "Pending"
    family.step("a")
    family.step("outside", 5)
    assert family.sources("outside") == ("False", "JobFailed")


def test_jobs_that_have_their_models_close_no_cycle() -> None:
    family = Family()
    family.apply("a")
    family.end("a", "Succeeded")
    family.apply("b", "job://a")
    family.step("b")
    family.apply("a", "job://b")
    family.step("a")
    assert family.sources("a") == ("False", "WaitingForJob")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("sft", {**REWARDED, "rewards": reward("job://first")}, "rewards[judge].model is job://"),
        ("reward", {"model": {"source": "job://first"}}, "method sft needs the job of another"),
    ],
)
def test_a_reward_model_and_a_model_that_writes_are_not_mixed_up(
    first: str, second: dict[str, Any], words: str
) -> None:
    family = Family()
    family.apply("first", method=first)
    life = family.apply("second", **second)
    family.step("second")
    assert life.condition("Failed")["reason"] == "ConfigInvalid"
    assert words in life.message


def test_policy_and_reward_model_may_both_come_from_jobs() -> None:
    family = Family()
    family.apply("policy")
    family.apply("judge", "hf://a/judge", method="reward")
    life = family.apply(
        "both",
        "job://policy",
        model={"jobAdapter": "continue"},
        rewards=reward("job://judge"),
        **REWARDED,
    )
    family.end("policy", "Succeeded")
    family.step("both")
    assert life.message == "Waiting for the model of job judge (Pending)."
    family.end("judge", "Succeeded")
    family.step("both", 5)
    starts = life.body["status"]["starts"]
    assert starts["job://policy"]["adapter"] == "pvc://models/policy"
    assert starts["job://judge"]["merge"] == ["pvc://models/judge"]


def test_another_source_before_the_plan_is_looked_up_anew() -> None:
    family = Family()
    for name in ("first", "other"):
        family.apply(name)
        family.end(name, "Succeeded")
    second = family.apply("second", "job://first")
    family.step("second")
    second.edit(model={"source": "job://other"})
    old = make_pod("prepare", exit_code=143, model={"source": "job://first"})
    assert family.step("second", 10, old).launch is not None
    assert list(second.body["status"]["starts"]) == ["job://other"]
    second.edit(model={"source": "hf://a/b"})
    family.step("second", 20, old, make_pod("prepare", 2, model={"source": "job://other"}))
    assert second.body["status"]["starts"] == {}


def test_another_use_of_the_adapter_before_the_plan_is_looked_up_anew() -> None:
    family = Family()
    family.apply("first")
    family.end("first", "Succeeded")
    second = family.apply("second", "job://first")
    family.step("second")
    model = {"source": "job://first"}
    second.edit(model=model | {"jobAdapter": "continue"})
    old = make_pod("prepare", exit_code=143, model=model)
    assert family.step("second", 10, old).launch is not None
    assert second.body["status"]["starts"]["job://first"]["adapter"] == "pvc://models/first"


def test_preparation_that_merges_has_room_for_the_whole_model() -> None:
    family = Family()
    family.apply("first")
    facts = make_preparation(weights_bytes=10 * 2**30).to_json()
    family.lives["first"].body["status"] = {"preparation": facts}
    family.end("first", "Succeeded")
    family.apply("merged", "job://first")
    family.apply("continued", "job://first", model={"jobAdapter": "continue"})
    assert family.step("merged").launch.memory == "16Gi"
    assert family.step("continued").launch.memory == "4Gi"


def test_a_retry_that_merges_has_the_same_room_when_the_other_job_is_gone() -> None:
    family = Family()
    family.apply("first")
    facts = make_preparation(weights_bytes=10 * 2**30).to_json()
    family.lives["first"].body["status"] = {"preparation": facts}
    family.end("first", "Succeeded")
    second = family.apply("second", "job://first")
    family.step("second")
    del family.lives["first"]
    gone = failure(Reason.SOURCE_UNAVAILABLE)
    failed = make_pod("prepare", exit_code=69, result=gone, model=second.body["spec"]["model"])
    family.step("second", 10, failed)
    assert family.step("second", 20, failed).launch.memory == "16Gi"


def test_an_edit_of_something_else_keeps_the_models_that_were_found() -> None:
    family = Family()
    family.apply("first")
    family.end("first", "Succeeded")
    model = {"source": "job://first"}
    second = family.apply("second", **model)
    family.step("second")
    # Applied again, it has not made its model yet.
    family.apply("first", "hf://a/b")
    second.edit(training={"epochs": 2})
    old = make_pod("prepare", exit_code=143, model=model)
    assert family.step("second", 10, old).launch is not None
    assert second.body["status"]["starts"]["job://first"]["base"] == "hf://Qwen/Qwen3-8B"


def test_suspension_comes_before_waiting() -> None:
    family = Family()
    second = family.apply("second", "job://first", runPolicy={"suspend": True})
    family.step("second")
    assert second.phase == "Suspended"
    second.edit(runPolicy={"suspend": False, "activeDeadlineSeconds": 10})
    family.step("second", 5)
    assert second.phase == "Pending"
    # Waiting is no activity.
    family.step("second", 100)
    assert second.phase == "Pending"


def test_a_job_whose_model_is_awaited_outlives_its_ttl() -> None:
    family = Family()
    family.apply("first", runPolicy={"ttlSecondsAfterFinished": 0})
    family.end("first", "Succeeded")
    family.apply("second", "job://first")
    second = family.job("second")
    assert second is not None
    assert awaits(second, "first")
    decision = family.step("first", 5, awaited=True)
    assert not decision.delete_job
    assert decision.requeue_after == pytest.approx(10)
    family.step("second", 6)
    second = family.job("second")
    assert second is not None
    assert not awaits(second, "first")
    assert family.step("first", 15, awaited=False).delete_job


def test_a_failed_job_does_not_outlive_its_ttl() -> None:
    family = Family()
    family.apply("first", runPolicy={"ttlSecondsAfterFinished": 0})
    family.end("first", "Failed")
    assert family.step("first", 5, awaited=True).delete_job


def test_a_missing_claim_of_another_jobs_model_is_named() -> None:
    family = Family()
    family.apply("first")
    family.end("first", "Succeeded", kind="model", uri="pvc://gone/first")
    second = family.apply("second", "job://first")
    family.step("second")
    starts = {"job://first": ModelStart(base="pvc://gone/first")}
    words = '0/1 nodes: persistentvolumeclaim "gone" not found.'
    plain = make_pod("prepare", model={"source": "job://first"})
    config = plain.config.model_copy(update={"starts": starts})
    family.step("second", 2, make_pod("prepare", unschedulable=words, config=config))
    said = second.condition("PodProblem")["message"]
    assert said.startswith("The claim of pvc://gone/first is gone, but namespace team")
