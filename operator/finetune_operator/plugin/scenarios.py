"""The plan of a job, and of the same job with something changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.status import Plan
from finetune_operator.planning import (
    Inventory,
    PlanInfeasibleError,
    expected_gpu_hours,
    make_plan,
)
from finetune_operator.planning.inventory import gpu_memory
from finetune_operator.plugin.facts import Basis, Known, basis
from finetune_operator.plugin.manifests import Job, Manifest, parse
from finetune_operator.plugin.overrides import overridden


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
    def gpu_hours(self) -> float | None:
        """GPU-hours of the training; None where no like run's speed was measured."""
        if self.plan is None:
            return None
        return expected_gpu_hours(self.job.spec, self.basis.preparation, self.plan)

    def cost(self, price: float) -> dict[str, float]:
        """Return what the GPUs cost at a price of one GPU-hour: perHour, and if known, expected."""
        if self.plan is None:
            return {}
        hours = self.gpu_hours
        cost = {"perHour": round(self.plan.gpus * price, 4)}
        return cost if hours is None else cost | {"expected": round(hours * price, 4)}

    def to_json(self, price: float | None = None) -> dict[str, Any]:
        """Return what `-o json` prints of it."""
        outcome: dict[str, Any] = (
            {"plan": self.plan.to_json()} if self.plan else {"refusal": self.refusal}
        )
        if self.gpu_hours is not None:
            outcome["expectedGpuHours"] = round(self.gpu_hours, 4)
        if price is not None and self.plan:
            outcome["cost"] = self.cost(price)
        return {
            "name": self.job.name,
            **({"whatIf": self.change} if self.change else {}),
            **outcome,
            "preparation": self.basis.preparation.to_json(),
            "notes": list(self.basis.notes),
        }


def scenarios(manifest: Manifest, changes: Sequence[str], known: Known) -> list[Scenario]:
    """Return the job as it is, then with each change made; PluginError when one is no job."""
    return [planned(manifest, change, known) for change in ("", *changes)]


def planned(manifest: Manifest, change: str, known: Known) -> Scenario:
    """Return a job with one change made, and its plan."""
    job = parse(overridden(manifest, change) if change else manifest)
    facts = basis(job.spec, known)
    try:
        plan = make_plan(job.spec, facts.preparation, Inventory())
    except PlanInfeasibleError as error:
        return Scenario(change, job, facts, None, str(error))
    return Scenario(change, job, facts, plan)
