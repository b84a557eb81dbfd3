"""Ways out when nothing fits, each of which would be planned."""

from collections.abc import Iterator
from typing import Any, Final

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Preparation
from finetune_operator.planning.candidates import longest_sequence
from finetune_operator.planning.inventory import Inventory, PlanInfeasibleError
from finetune_operator.planning.products import PRODUCTS
from finetune_operator.planning.search import Found, search

_MOST: Final = 3
_SHORTEST: Final = 256


def ways_out(spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory) -> list[str]:
    """Return up to three changes with which the job fits, cheapest first."""
    ways = (
        way
        for kind in (_quantised, _shorter, _more_gpus, _larger_gpus)
        for way in kind(spec, preparation, inventory)
    )
    return [way for way, _ in zip(ways, range(_MOST), strict=False)]


def _quantised(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory
) -> Iterator[str]:
    if spec.adapter.type == "qlora":
        return
    adapter = {"type": "qlora", "lora": spec.adapter.lora}
    changed = spec.model_copy(update={"adapter": type(spec.adapter).model_validate(adapter)})
    found = _fit(changed, preparation, inventory)
    if found and found.fit:
        yield f"adapter type qlora ({found.fit[1].total:.1f} GiB)"


def _shorter(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory
) -> Iterator[str]:
    length = longest_sequence(spec, preparation) // 2
    while length >= _SHORTEST:
        found = _fit(_changed(spec, "training", max_length=length), preparation, inventory)
        if found and found.fit:
            yield f"training.maxLength {length} ({found.fit[1].total:.1f} GiB)"
            return
        length //= 2


def _more_gpus(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory
) -> Iterator[str]:
    count = spec.resources.gpu.count
    if count == "auto":
        return
    gpu = spec.resources.gpu.model_copy(update={"count": "auto"})
    found = _fit(_changed(spec, "resources", gpu=gpu), preparation, inventory, beyond=count)
    if found and found.fit:
        candidate, memory = found.fit
        more = candidate.gpus - count
        yield f"{more} more GPUs with {candidate.strategy} ({memory.total:.1f} GiB on each)"


def _larger_gpus(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory
) -> Iterator[str]:
    for name, product in sorted(PRODUCTS.items(), key=lambda item: item[1].mebibytes):
        gpu = spec.resources.gpu.model_copy(update={"product": name, "memory": "auto"})
        found = _fit(_changed(spec, "resources", gpu=gpu), preparation, inventory)
        if product.bf16 and found and found.fit:
            yield f"GPUs with the memory of {name} ({found.fit[1].total:.1f} GiB)"
            return


def _changed(spec: FineTuneJobSpec, part: str, **change: Any) -> FineTuneJobSpec:
    return spec.model_copy(update={part: getattr(spec, part).model_copy(update=change)})


def _fit(
    spec: FineTuneJobSpec, preparation: Preparation, inventory: Inventory, *, beyond: int = 0
) -> Found | None:
    """Return what a search comes to; None when the change is at odds with the rest of the spec."""
    try:
        return search(spec, preparation, inventory, beyond=beyond)
    except PlanInfeasibleError:
        return None
