"""Where the time of a step goes: every part of it, once, and nothing that is no step."""

import gzip
import json
from time import perf_counter
from typing import Any

import pytest

from finetune_api.metrics import PARTS, SECONDS
from finetune_trainer.callbacks import timing
from finetune_trainer.callbacks.profile import OPERATORS, TRACE
from finetune_trainer.callbacks.timing import StepClock
from finetune_trainer.report.page import render
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import run_trainer
from unit.trainer.test_grpo import grpo_job
from unit.trainer.test_preferences import job as pairs_job
from unit.trainer.test_report import Page, make_data


class _Times:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> _Times:
    times = _Times()
    monkeypatch.setattr(timing, "perf_counter", times)
    return times


def _step(clock: StepClock, times: _Times) -> None:
    """Take 1 s to read and, in each of 2 micro-batches, 2 s forward, 4 s backward; then 8 s."""
    with clock.part("data"):
        times.now += 1
    for _ in range(2):
        with clock.part("other"):
            clock.enter("forward")
            times.now += 2
            clock.enter("backward")
            times.now += 4
    clock.enter("optimizer")
    times.now += 8
    clock.end_step()


_SPLIT = {
    "seconds/data": 1,
    "seconds/forward": 4,
    "seconds/backward": 8,
    "seconds/sync": 0,
    "seconds/optimizer": 8,
    "seconds/logging": 0,
    "seconds/other": 0,
}
"""What `_step` takes."""


def test_every_second_of_a_step_is_in_one_part(times: _Times) -> None:
    clock = StepClock()
    _step(clock, times)
    assert clock.take() == {}, "the first step of a process warms up"
    for _ in range(2):
        times.now += 16
        clock.enter("other")
        _step(clock, times)
    assert clock.take() == _SPLIT | {"seconds/logging": 16}


def test_what_was_logged_is_not_counted_again(times: _Times) -> None:
    clock = StepClock()
    _step(clock, times)
    clock.take()
    _step(clock, times)
    first = clock.take()
    times.now += 3
    _step(clock, times)
    assert clock.take() == first | {"seconds/logging": 3}


def test_evaluations_and_checkpoints_belong_to_no_step(times: _Times) -> None:
    clock = StepClock()
    _step(clock, times)
    with clock.part(None):
        _step_within_an_evaluation(clock, times)
    _step(clock, times)
    assert sum(clock.take().values()) == 1 + 2 * (2 + 4) + 8


def _step_within_an_evaluation(clock: StepClock, times: _Times) -> None:
    clock.enter("forward")
    times.now += 100
    with clock.part("rollout"):
        times.now += 100


def test_sampling_within_preparing_a_batch_is_rollout_alone(times: _Times) -> None:
    clock = StepClock()
    clock.end_step()
    with clock.part("data"):
        times.now += 1
        with clock.part("rollout"):
            times.now += 7
        times.now += 1
    clock.end_step()
    logged = clock.take()
    assert (logged["seconds/data"], logged["seconds/rollout"]) == (2, 7)


class _GpuEvent:
    """A CUDA event, on a GPU that is a given time behind."""

    times = _Times()
    behind = 30
    waited = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = self.times.now + self.behind

    def query(self) -> bool:
        return self.at <= self.times.now

    def synchronize(self) -> None:
        _GpuEvent.waited += 1
        self.times.now = max(self.at, self.times.now)

    def elapsed_time(self, later: "_GpuEvent") -> float:
        assert self.query()
        assert later.query()
        return 1000 * (later.at - self.at)


def test_on_a_gpu_only_a_log_waits(times: _Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", _GpuEvent)
    monkeypatch.setattr(_GpuEvent, "times", times)
    monkeypatch.setattr(_GpuEvent, "waited", 0)
    clock = StepClock(cuda=True)
    for _ in range(9):
        _step(clock, times)
    assert _GpuEvent.waited == 0
    assert clock.take() == _SPLIT
    assert _GpuEvent.waited == 1


def test_the_report_shows_the_mean_of_all_steps_and_no_curves() -> None:
    entries = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "seconds/data": 0.1, "seconds/forward": 0.3},
        {"step": 3, "seconds/data": 0.1, "seconds/forward": 0.5},
    ]
    page = Page(render(make_data(entries=entries)))
    assert "A step took 0.5 seconds" in page.text
    assert "forward 0.4 s, 80.0 %" in page.text
    assert SECONDS not in page.text
    assert "A step took" not in Page(render(make_data())).text


# What a clock must see at least in each step of a real run.
_BUSY = {"data", "forward", "backward", "sync", "optimizer", "logging", "other"}


def _check(site: Site, seconds: float, parts: set[str]) -> None:
    logged = [entry for entry in site.logged() if f"{SECONDS}forward" in entry]
    assert logged[0]["step"] == 2
    for entry in logged:
        found = {part for part in PARTS if entry.get(f"{SECONDS}{part}")}
        assert found == parts
    total = sum(value for entry in logged for name, value in entry.items() if SECONDS in name)
    assert 0 < total < seconds
    assert "A step took" in (site.artifact / "report.html").read_text()
    assert not any(name.startswith(SECONDS) for name in site.result().metrics)


def _run(site: Site, config: Any) -> float:
    start = perf_counter()
    assert site.run(config) == 0, site.result().message
    return perf_counter() - start


def test_supervised_steps_are_split(site: Site) -> None:
    _check(site, _run(site, site.job(make_plan())), _BUSY)


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward"])
def test_preference_steps_are_split(site: Site, method: str) -> None:
    config = pairs_job(site, method, training={"maxSteps": 3, "logEverySteps": 1, "extra": {}})
    _check(site, _run(site, config), _BUSY)


def test_steps_that_sample_have_a_rollout(site: Site) -> None:
    config = grpo_job(site, training={"maxSteps": 3, "batchSize": 16, "learningRate": 0.01})
    _check(site, _run(site, config), _BUSY | {"rollout"})


@pytest.mark.parametrize(("steps", "profiled"), [(8, "Steps 4 to 6"), (2, "Steps 1 to 2")])
def test_a_profile_lies_beside_the_report(site: Site, steps: int, profiled: str) -> None:
    training = {"maxSteps": steps, "batchSize": 4, "learningRate": 0.01}
    arguments = site.arguments("run", site.job(make_plan(), training=training))
    assert run_trainer([*arguments, "--profile"]) == 0
    folder = site.artifact / "profile"
    table = (folder / OPERATORS).read_text()
    assert table.startswith(f"{profiled}, by self_cpu_time_total.\n")
    assert "aten::mm" in table
    trace = json.loads(gzip.decompress((folder / TRACE).read_bytes()))
    assert "aten::mm" in {event.get("name") for event in trace["traceEvents"]}


def test_no_profile_unless_asked(site: Site) -> None:
    assert site.run(site.job(make_plan())) == 0
    assert not (site.artifact / "profile").exists()
