"""Jobs of a real small model, run by the trainer's own command, and the table of their gains."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo import prepare_demo
from finetune_api.trainer import Result, TrainerConfig
from quality import data
from unit.trainer.builders import make_config, make_plan
from unit.trainer.conftest import Site

RESULTS = pytest.StashKey[list["Gain"]]()
_MICRO_BATCH = 8
_MAX_LENGTH = 128


@dataclass(frozen=True)
class Gain:
    """One line of the table."""

    method: str
    metric: str
    before: float
    after: float
    steps: int
    seconds: float

    @property
    def line(self) -> str:
        """The line as Markdown, as docs/quality.md has it."""
        minutes = self.seconds / 60
        return (
            f"| {self.method} | {self.metric} | {self.before:.3f} | {self.after:.3f} "
            f"| {self.steps} | {minutes:.1f} |"
        )


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the table."""
    config.stash[RESULTS] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table."""
    terminalreporter.section("before and after, on held-out rows")
    terminalreporter.line("| method | metric | before | after | steps | minutes |")
    terminalreporter.line("|---|---|---|---|---|---|")
    for gain in config.stash[RESULTS]:
        terminalreporter.line(gain.line)


@dataclass
class Job:
    """A finished job."""

    site: Site
    config: TrainerConfig
    result: Result
    seconds: float
    questions: list[data.Question]
    """The held-out ones."""
    gains: list[Gain]

    def gain(self, metric: str, before: float | None = None, after: float | None = None) -> Gain:
        """Put a metric of the result, or one that the test has measured, into the table."""
        metrics = self.result.metrics
        gain = Gain(
            method=self.config.spec.method.value,
            metric=metric,
            before=metrics[f"{metric}_before"] if before is None else before,
            after=metrics[metric] if after is None else after,
            steps=self.result.step or 0,
            seconds=self.seconds,
        )
        self.gains.append(gain)
        return gain


@dataclass
class Quality:
    """Runs jobs of the real model."""

    site: Site
    questions: list[data.Question]
    """The held-out ones."""
    gains: list[Gain]

    def train(self, method: str, kind: str, training: dict[str, Any], **spec: Any) -> Job:
        """Prepare and run a job with LoRA on the data of one kind."""
        batch = training["batchSize"]
        micro_batch = min(batch, _MICRO_BATCH)
        config = make_config(
            make_plan(
                micro_batch_size=micro_batch,
                gradient_accumulation_steps=batch // micro_batch,
                max_length=_MAX_LENGTH,
                cpu=str(os.cpu_count()),
            ),
            method=method,
            dataset={
                "source": f"pvc://data/{kind}",
                "evalSplit": "test",
                # Docstrings differ from one Python to the next.
                "tooLong": "drop",
            },
            training={"maxLength": _MAX_LENGTH} | training,
            **spec,
        )
        self._run("prepare", config)
        started = time.monotonic()
        result = self._run("run", config)
        seconds = time.monotonic() - started
        return Job(self.site, config, result, seconds, self.questions, self.gains)

    def write_config_map(self, name: str, key: str, text: str) -> None:
        """Put a file where preparation finds the ConfigMap's."""
        file = self.site.paths.sources / "configmap" / name / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def _run(self, command: str, config: TrainerConfig) -> Result:
        arguments = [sys.executable, "-m", "finetune_trainer.cli"]
        # Not the one thread that the unit tests ask for.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        process = subprocess.run(
            [*arguments, *self.site.arguments(command, config)], env=environment, check=False
        )
        result = self.site.result()
        assert process.returncode == 0, result.message
        return result


@pytest.fixture(scope="session")
def sources() -> prepare_demo.Sources:
    return prepare_demo.prepare()


@pytest.fixture
def quality(
    tmp_path: Path, sources: prepare_demo.Sources, request: pytest.FixtureRequest
) -> Iterator[Quality]:
    """A job's mounts with the real model and the data of every kind."""
    site = Site(tmp_path)
    for folder in (site.paths.workspace, site.paths.output):
        folder.mkdir()
    site.model.parent.mkdir(parents=True)
    site.model.symlink_to(sources.model)
    questions = data.read_questions(sources.data)
    data.write(site.paths.sources / "pvc/data", questions)
    yield Quality(site, questions[: data.HELD_OUT], request.config.stash[RESULTS])
    # Half a gigabyte each.
    shutil.rmtree(site.paths.workspace)
