"""A job's mounts in a temporary folder, with a tiny model that every test shares."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.metrics import SECONDS
from finetune_api.status import Plan
from finetune_api.trainer import Result, TrainerConfig
from finetune_trainer.paths import Paths
from unit.trainer.builders import chat_rows, make_config, make_plan, save_model, write_rows
from unit.trainer.processes import Interruption, run_trainer

# Read when torch is imported, here and in the fork server.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


@dataclass
class Site:
    """One job's mounts."""

    root: Path

    @property
    def paths(self) -> Paths:
        return Paths(self.root / "workspace", self.root / "output", self.root / "sources")

    @property
    def model(self) -> Path:
        return self.paths.sources / "pvc/models/tiny"

    @property
    def artifact(self) -> Path:
        return self.paths.output / "tiny"

    def write_data(self, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        return write_rows(self.paths.sources / "pvc/data" / name, rows)

    def write_reward(self, code: str) -> None:
        """Put a reward function where the ConfigMap `rewards` is mounted."""
        folder = self.paths.sources / "configmap/rewards"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rewards.py").write_text(code)

    def clear(self) -> None:
        """Forget all that was prepared and made."""
        for folder in (self.paths.workspace, self.paths.output):
            shutil.rmtree(folder)
            folder.mkdir()

    def arguments(self, command: str, config: TrainerConfig) -> list[str]:
        job = self.root / "job.json"
        job.write_text(json.dumps(config.to_json()))
        return [
            command,
            f"--config={job}",
            f"--workspace={self.paths.workspace}",
            f"--output={self.paths.output}",
            f"--sources={self.paths.sources}",
            f"--termination-log={self.root / 'termination-log'}",
            "--port=0",
        ]

    def result(self) -> Result:
        return Result.model_validate_json((self.root / "termination-log").read_text())

    def prepare(self, config: TrainerConfig) -> Result:
        """Run prepare in this process. Raises JobFailure."""
        from finetune_trainer.prepare import prepare

        return prepare(config, self.paths)

    def run(
        self,
        config: TrainerConfig,
        interruption: Interruption | None = None,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Run `run` in a process of its own and return its exit code."""
        return run_trainer(self.arguments("run", config), interruption, environment)

    def job(self, plan: Plan | None = None, **spec: Any) -> TrainerConfig:
        """Prepare a job in this process and return its config for run."""
        config = make_config(plan or make_plan(), **spec)
        self.prepare(config)
        return config

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged steps without their seconds: all that a second run must repeat."""
        return [
            {name: value for name, value in entry.items() if not name.startswith(SECONDS)}
            for entry in self.logged()
        ]

    def logged(self) -> list[dict[str, Any]]:
        """Return the logged steps."""
        return [json.loads(line) for line in self.paths.metrics.read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder)
    return folder


@pytest.fixture
def site(tmp_path: Path, tiny_model: Path) -> Site:
    """Mounts with the tiny model and 40 short chats."""
    site = Site(tmp_path)
    site.paths.workspace.mkdir()
    site.paths.output.mkdir()
    shutil.copytree(tiny_model, site.model)
    site.write_data(chat_rows(40))
    return site
