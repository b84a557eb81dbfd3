"""Ways out when nothing fits, each of which would be planned."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, Final

from finetune_api.spec import ONLINE, FineTuneJobSpec, Generation
from finetune_api.status import Preparation
from finetune_operator.planning.candidates import (
    candidates,
    indivisible,
    longest_sequence,
    smallest_share,
)
from finetune_operator.planning.inventory import Inventory, PlanInfeasibleError, unfit
from finetune_operator.planning.memory import Candidate, estimate
from finetune_operator.planning.products import PRODUCTS
from finetune_operator.planning.search import search

_MOST: Final = 3
_SHORTEST: Final = 256


def ways_out(spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory) -> list[str]:
    """Return up to three changes with which the job fits, cheapest first.

    Their GiB are those at the smallest micro-batch, as in the sentence that nothing fits.
    """
    plans = _Plans(preparation, inventory)
    kinds = (_bf16, _adapters, _shorter, _larger_batch, _shared_workspace, _more_gpus, _larger_gpus)
    ways = (way for kind in kinds for way in kind(spec, plans))
    return [way for way, _ in zip(ways, range(_MOST), strict=False)]


class _Plans:
    """Plans for one model and data."""

    def __init__(self, preparation: Preparation, inventory: Inventory) -> None:
        self.preparation, self.inventory = preparation, inventory

    def fit(self, spec: FineTuneJobSpec, *, beyond: int = 0) -> Candidate | None:
        """Return the plan for a changed job; None too when it is at odds with the rest of it."""
        try:
            found = search(spec, self.preparation, self.inventory, beyond=beyond)
        except PlanInfeasibleError:
            return None
        return found.fit[0] if found.fit else None

    def smallest(self, spec: FineTuneJobSpec, fit: Candidate) -> str:
        """Return the GiB that a job needs at least on the GPUs of a plan, in words."""
        every = candidates(spec, self.preparation, self.inventory)
        least = min(
            estimate(spec, self.preparation, way).total
            for way in takewhile(lambda way: way.gpus <= fit.gpus, every)
            if (way.gpus, way.strategy) == (fit.gpus, fit.strategy)
        )
        each = f" on each of {fit.gpus} GPUs" if fit.gpus > 1 else ""
        return f"{least:.1f} GiB{each}"


def _bf16(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    """Yield bf16 instead of float8, whose weights cannot be spread."""
    if spec.training.precision == "float8":
        changed = _changed(spec, "training", precision="bf16")
        fit = plans.fit(changed)
        if fit:
            yield f"training.precision bf16 ({plans.smallest(changed, fit)})"


def _adapters(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    """Yield adapters instead of what is asked for; qlora beside lora where it takes fewer GPUs."""
    found: list[tuple[int, str]] = []
    for kind in ("lora", "qlora"):
        if kind == spec.adapter.type:
            continue
        adapter = {"type": kind, "lora": spec.adapter.lora}
        changed = spec.model_copy(update={"adapter": type(spec.adapter).model_validate(adapter)})
        words = f"adapter type {kind}"
        if spec.training.precision == "float8":
            # Of the adapters only lora has it.
            changed = _changed(changed, "training", precision="bf16")
            words += " and training.precision bf16"
        fit = plans.fit(changed)
        if fit and (not found or fit.gpus < found[0][0]):
            words = f"{words} ({plans.smallest(changed, fit)})"
            found.insert(0, (fit.gpus, words))
    yield from (words for _, words in found)


def _shorter(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    """Yield a shorter maxLength that leaves prompts as much room as completions."""
    online, written = spec.method in ONLINE, 0
    if online:
        written = (spec.generation or Generation()).max_completion_length
    facts = plans.preparation
    length, known = longest_sequence(spec, facts), facts.model.max_positions
    length = known if length > known else length // 2
    while length >= max(_SHORTEST, 2 * written):
        changed = _changed(spec, "training", max_length=length)
        fit = plans.fit(changed)
        if fit:
            way = f"training.maxLength {length}"
            if spec.dataset.too_long == "fail" and facts.dataset.max_tokens > length:
                # Preparation would refuse the longest rows.
                way += f" and dataset.tooLong {'drop' if online else 'truncate'}"
            yield f"{way} ({plans.smallest(changed, fit)})"
            return
        length //= 2


def _larger_batch(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    """Yield the next batch that can be split over more GPUs."""
    for gpus in indivisible(spec, plans.inventory):
        unit = gpus * smallest_share(spec)
        batch = -(-spec.training.batch_size // unit) * unit
        changed = _changed(spec, "training", batch_size=batch)
        fit = plans.fit(changed)
        if fit:
            yield f"training.batchSize {batch} ({plans.smallest(changed, fit)})"
            return


def _shared_workspace(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    """Yield a workspace for several nodes; where need be with a batch for all their GPUs."""
    workspace = spec.resources.workspace
    if workspace.claim is not None or workspace.access_mode == "ReadWriteMany":
        return
    shared = workspace.model_copy(update={"access_mode": "ReadWriteMany"})
    changed = _changed(spec, "resources", workspace=shared)
    words = "resources.workspace.accessMode ReadWriteMany"
    fit = plans.fit(changed)
    if fit:
        yield f"{words} ({plans.smallest(changed, fit)})"
        return
    yield from (f"{words} and {batch}" for batch in _larger_batch(changed, plans))


def _more_gpus(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    count = spec.resources.gpu.count
    if count == "auto":
        return
    gpu = spec.resources.gpu.model_copy(update={"count": "auto"})
    changed = _changed(spec, "resources", gpu=gpu)
    fit = plans.fit(changed, beyond=count)
    if fit:
        more = fit.gpus - count
        words = f"{more} more {'GPU' if more == 1 else 'GPUs'} with {fit.strategy}"
        yield f"{words} ({plans.smallest(changed, fit)})"


def _larger_gpus(spec: FineTuneJobSpec, plans: _Plans) -> Iterator[str]:
    for name, _ in sorted(PRODUCTS.items(), key=lambda item: item[1].mebibytes):
        if unfit(name, spec) is not None:
            continue
        gpu = spec.resources.gpu.model_copy(update={"product": name, "memory": "auto"})
        changed = _changed(spec, "resources", gpu=gpu)
        fit = plans.fit(changed)
        if fit:
            yield f"GPUs with the memory of {name} ({plans.smallest(changed, fit)})"
            return


def _changed(spec: FineTuneJobSpec, part: str, **change: Any) -> FineTuneJobSpec:
    return spec.model_copy(update={part: getattr(spec, part).model_copy(update=change)})
