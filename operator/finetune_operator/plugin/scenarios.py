"""The plan of a job, and of the same job with something changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Plan
from finetune_api.trainer import unsupported_rollout
from finetune_operator.planning import (
    Expected,
    Inventory,
    PlanInfeasibleError,
    expected_time,
    make_plan,
)
from finetune_operator.planning.inventory import gpu_memory
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.facts import Basis, Known, basis
from finetune_operator.plugin.manifests import Job, Manifest, first_source
from finetune_operator.plugin.overrides import overridden
from finetune_operator.plugin.rules import accepted


@dataclass(frozen=True)
class Scenario:
    """One job with its plan, or with why there is none."""

    change: str
    """What was changed, as on the command line; empty for the job as it is."""
    job: Job
    basis: Basis
    plan: Plan | None
    refusal: str = ""

    @property
    def gpu_memory(self) -> float:
        """Memory of one GPU in GiB, as the planner takes it to be."""
        return gpu_memory(self.job.spec, Inventory())

    @property
    def unsupported(self) -> str | None:
        """Why the trainer of this version cannot run it although it is planned."""
        return unsupported_rollout(self.job.spec) if self.plan else None

    @property
    def expected(self) -> Expected | None:
        """GPU-hours of the training; None where nothing tells them."""
        if self.plan is None:
            return None
        return expected_time(self.job.spec, self.basis.preparation, self.plan)

    def cost(self, price: float) -> dict[str, float]:
        """Return what the GPUs cost at a price of one GPU-hour: perHour, and if known, expected."""
        if self.plan is None:
            return {}
        gpus = self.plan.gpus + (self.plan.rollout.gpus if self.plan.rollout else 0)
        cost, time = {"perHour": round(gpus * price, 4)}, self.expected
        return cost if time is None else cost | {"expected": round(time.gpu_hours * price, 4)}

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """Return what `-o json` prints of it."""
        outcome: dict[str, Any] = (
            {"plan": self.plan.to_json()} if self.plan else {"refusal": self.refusal}
        )
        if self.expected is not None:
            outcome["expectedGpuHours"] = round(self.expected.gpu_hours, 4)
            outcome["expectedBasis"] = self.expected.basis
        if price is not None and self.plan:
            outcome["cost"] = self.cost(price)
        return {
            "name": self.job.name,
            **({"whatIf": self.change} if self.change else {}),
            **outcome,
            **({"unsupported": self.unsupported} if self.unsupported else {}),
            "preparation": self.basis.preparation.to_json(),
            "notes": list(self.basis.notes),
        }


def scenarios(
    manifest: Manifest, changes: Sequence[str], known: Known, sources: Mapping[str, str]
) -> list[Scenario]:
    """Return the job as it is, then with each change made; PluginError when one is no job."""
    return [planned(manifest, change, known, sources) for change in ("", *changes)]


def planned(
    manifest: Manifest, change: str, known: Known, sources: Mapping[str, str] | None = None
) -> Scenario:
    """Return a job with one change made, and its plan.

    Sources are those of other jobs' models, by job://NAME.
    """
    job = _changed(manifest, change) if change else accepted(manifest)
    facts = basis(_on_first_model(job.spec, sources or {}), known)
    if facts.refusal:
        return Scenario(change, job, facts, None, facts.refusal)
    try:
        plan = make_plan(job.spec, facts.preparation, Inventory())
    except PlanInfeasibleError as error:
        return Scenario(change, job, facts, None, str(error))
    return Scenario(change, job, facts, plan)


def _on_first_model(spec: FineTuneJobSpec, sources: Mapping[str, str]) -> FineTuneJobSpec:
    source = first_source(spec.model.source, sources)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"source": source})})


def _changed(manifest: Manifest, change: str) -> Job:
    changed = overridden(manifest, change)
    try:
        return accepted(changed)
    except PluginError as error:
        raise PluginError(f"with {change}: {error}") from error
