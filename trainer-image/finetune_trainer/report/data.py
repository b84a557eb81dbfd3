"""All that report and model card tell of one training run."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from finetune_api.methods import Dpo, Ebft, Generation, Grpo, Kto, Orpo, Reward
from finetune_api.spec import DatasetPart, FineTuneJobSpec, Lora, Method
from finetune_api.status import DatasetFacts, ModelStart, Plan, Stability
from finetune_api.trainer import TrainerConfig
from finetune_trainer.report.measures import ONLINE, Measure, held_out
from finetune_trainer.sources.models import start_of
from finetune_trainer.sources.uri import Source

_LIBRARIES = ("trl", "transformers", "peft", "torch", "datasets")

_OPTIONS: dict[Method, dict[str, Any]] = {
    Method.SFT: {},
    Method.DPO: {"dpo": Dpo},
    Method.KTO: {"kto": Kto},
    Method.ORPO: {"orpo": Orpo},
    Method.REWARD: {"reward": Reward},
    Method.GRPO: {"grpo": Grpo, "generation": Generation},
    Method.EBFT: {"ebft": Ebft, "grpo": Grpo, "generation": Generation},
}
"""The parts of the spec that each method reads, and their defaults."""


def group_size(spec: FineTuneJobSpec) -> int:
    """Return how many sequences of a batch belong to one row of the data."""
    return (spec.generation or Generation()).group_size if spec.method in ONLINE else 1


def rows_seen(steps: int, epochs: float, *, rows: int, of_a_step: int) -> int:
    """Return the rows of all steps; an epoch's last step may have fewer than the others."""
    if not epochs:
        return 0
    complete, rest = divmod(steps, max(1, round(steps / epochs)))
    return complete * rows + min(rest * of_a_step, rows)


@dataclass(frozen=True)
class Trained:
    """What training came to, wherever the plan meant it to run."""

    metrics: dict[str, float]
    """Newest value of each metric, and the held-out ones before training (..._before)."""
    learning_rate: float
    """Peak learning rate."""
    steps: int
    batch: int
    """Rows (grpo, ebft: completions) of one step, over all processes."""
    epochs: float
    rows_seen: int
    """Rows of all steps, packed ones with packing; a row counts each time that it was seen."""
    device: str
    dtype: str
    tokens_per_second: float | None
    """Of the last process's steps; None when it had no more than one."""


@dataclass(frozen=True)
class Sample:
    """One prompt, and the model's answers before and after training."""

    prompt: str
    before: str
    after: str


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class ReportData:
    """One training run, from what was asked for to what came out."""

    config: TrainerConfig
    plan: Plan
    parts: list[DatasetPart]
    facts: DatasetFacts
    trained: Trained
    entries: list[dict[str, Any]]
    """Every logged step: step, and metrics by their TRL names."""
    measured: dict[str, float]
    """Peaks in GiB and speed, as Result.measured."""
    stability: Stability | None
    """None: no guard watched this run."""
    samples: list[Sample]
    made: datetime = field(default_factory=lambda: datetime.now(UTC))
    versions: dict[str, str] = field(default_factory=_versions)

    @property
    def spec(self) -> FineTuneJobSpec:
        """The job's spec."""
        return self.config.spec

    @property
    def is_adapter(self) -> bool:
        """Whether the artifact is an adapter, which needs its base model."""
        return self.spec.adapter.type != "full"

    @property
    def start(self) -> ModelStart:
        """The model that training started from, with the adapters that were merged into it."""
        return start_of(self.spec.model.source, self.config.starts, "model.source")

    @property
    def base(self) -> str:
        """The base model's name as libraries know it."""
        return Source.parse(self.start.base, "model.source").model_name

    @property
    def measures(self) -> list[Measure]:
        """Held-out metrics before and after, the method's headline first."""
        return held_out(self.trained.metrics, self.spec.method)

    @property
    def training_sentence(self) -> str:
        """What was done, where and how fast."""
        trained = self.trained
        online = self.spec.method in ONLINE
        unit, seen = ("completions", "prompts") if online else ("rows", "rows")
        speed = trained.tokens_per_second
        # A method that does not count its tokens has no speed in tokens.
        speed_text = f", {speed:.0f} tokens per second" if speed else ""
        return (
            f"{trained.steps} steps of {trained.batch} {unit}: {trained.rows_seen} {seen} seen, "
            f"{trained.epochs:.2f} epochs, on {trained.device} in {trained.dtype}{speed_text}."
        )

    @property
    def stability_sentence(self) -> str:
        """What the stability guard says, in one sentence."""
        if self.stability is None:
            return "No stability guard watched this run."
        count = len(self.stability.findings)
        found = {0: "nothing was found", 1: "1 finding"}.get(count, f"{count} findings")
        return f"Stability: {self.stability.verdict}, {found}."

    def data_rows(self) -> list[tuple[str, str]]:
        """Return what is known of the data, as names and texts."""
        facts = self.facts
        sources = [f"{part.source}, split {part.split}" for part in self.parts]
        return [
            *[("source", source) for source in sources],
            ("format", facts.format),
            ("training rows", f"{facts.rows:,}"),
            ("held-out rows", f"{facts.eval_rows:,}"),
            ("dropped rows", f"{facts.dropped:,}"),
            ("training tokens", f"{facts.tokens:,}"),
            ("tokens of a row, mean", f"{facts.mean_tokens:,.0f}"),
            ("tokens of a row, 95th percentile", f"{facts.p95_tokens:,}"),
            ("tokens of the longest row", f"{facts.max_tokens:,}"),
        ]

    def hyperparameters(self) -> dict[str, Any]:
        """Return what was trained with, defaults and planned values included."""
        spec, plan = self.spec, self.plan.to_json()
        adapter = spec.adapter.to_json()
        if self.is_adapter:
            adapter["lora"] = (spec.adapter.lora or Lora()).to_json()
        training = spec.training.to_json()
        if spec.training.max_steps is not None:
            # Steps decide, and the default of epochs says nothing.
            training.pop("epochs")
        used = {"learningRate": self.trained.learning_rate, "precision": self.trained.dtype}
        kept = ("microBatchSize", "gradientAccumulationSteps", "maxLength")
        options = {
            name: (getattr(spec, name) or kind()).to_json()
            for name, kind in _OPTIONS[spec.method].items()
        }
        if spec.rewards:
            options["rewards"] = [reward.to_json() for reward in spec.rewards]
        return {
            "adapter": adapter,
            "training": training | used,
            **options,
            "plan": {name: plan[name] for name in kept},
        }
