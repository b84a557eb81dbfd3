"""The cheapest way to run that fits."""

from dataclasses import dataclass

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Memory, Preparation
from finetune_operator.planning.candidates import candidates
from finetune_operator.planning.inventory import USABLE, Inventory, gpu_memory
from finetune_operator.planning.memory import Candidate, estimate
from finetune_operator.planning.rollouts import check_rollout, hosts


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    fit: tuple[Candidate, Memory] | None
    smallest: tuple[int, float] | None
    """GPUs and the GiB of each, of the candidate that needs least there, when none fits; None:
    there was no candidate."""


def search(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory, *, beyond: int
) -> Found:
    """Return the first candidate on more than so many GPUs that fits.

    Candidates come in one order whatever the memory, and more memory only adds to those that fit:
    it never makes the plan worse. PlanInfeasibleError when what is asked for is at odds.
    """
    check_rollout(spec, preparation, inventory)
    limit = gpu_memory(spec, inventory) * USABLE
    refused: list[tuple[int, float]] = []
    for candidate in candidates(spec, preparation, inventory):
        if candidate.gpus <= beyond or not hosts(spec, candidate):
            continue
        if inventory.most_nodes is not None and candidate.nodes > inventory.most_nodes:
            continue
        memory = estimate(spec, preparation, candidate)
        if memory.total <= limit:
            return Found((candidate, memory), None)
        refused.append((candidate.gpus, memory.total))
    return Found(None, min(refused, key=lambda found: found[1], default=None))
