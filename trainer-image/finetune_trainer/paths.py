"""Where things are in a pod."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.trainer import TrainerConfig


@dataclass(frozen=True)
class Paths:
    """The three mounts of a pod, and what lies where in them."""

    workspace: Path
    output: Path
    sources: Path

    @property
    def model(self) -> Path:
        """The fetched model."""
        return self.workspace / "model"

    @property
    def adapter(self) -> Path:
        """The adapter that training continues, if it continues one."""
        return self.workspace / "adapter"

    @property
    def data(self) -> Path:
        """Token rows for training and evaluation."""
        return self.workspace / "data"

    @property
    def fetched(self) -> Path:
        """Datasets as they were fetched."""
        return self.workspace / "fetched"

    @property
    def rewards(self) -> Path:
        """What rewards need, one folder each: a file of functions, or a model."""
        return self.workspace / "rewards"

    @property
    def checkpoints(self) -> Path:
        """Complete checkpoints, as checkpoint-N."""
        return self.workspace / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Every logged step once."""
        return self.workspace / "metrics.jsonl"

    @property
    def profile(self) -> Path:
        """What the profiler saw, if it was asked."""
        return self.workspace / "profile"

    @property
    def answers_before(self) -> Path:
        """What the model answered before training."""
        return self.workspace / "answers-before.json"

    def artifact(self, config: TrainerConfig) -> Path:
        """Return the folder in the output claim that receives the model."""
        return self.output / artifact_path(config)


def artifact_path(config: TrainerConfig) -> str:
    """Return output.path, or the job's name when it is unset."""
    return config.spec.output.path or config.name
