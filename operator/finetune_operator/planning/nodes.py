"""The cluster's GPU nodes, as far as a plan looks at them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from finetune_api import names
from finetune_api.resources import Toleration
from finetune_api.spec import FineTuneJobSpec

_MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
_KEEPING_OUT: Final = {"NoSchedule", "NoExecute"}


class Taint(NamedTuple):
    """What keeps pods off a node that do not tolerate it."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node that offers whole GPUs, by what NVIDIA's feature discovery says of it."""

    product: str
    gpus: int
    mebibytes: int | None
    """Memory of one GPU; None: there is no label for it."""
    labels: tuple[str, ...] = ()
    """As KEY=VALUE."""
    taints: tuple[Taint, ...] = ()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self | None:
        """Return a node; None when no pod can have a GPU of it now."""
        labels = body["metadata"].get("labels") or {}
        spec, status = body.get("spec") or {}, body.get("status") or {}
        gpus = int((status.get("allocatable") or {}).get(names.GPU_RESOURCE, 0))
        product = labels.get(names.GPU_PRODUCT_LABEL)
        if not product or gpus < 1 or spec.get("unschedulable") or not _ready(status):
            return None
        memory = labels.get(_MEMORY_LABEL, "")
        return cls(
            product=sys.intern(product),
            gpus=gpus,
            mebibytes=int(memory) if memory.isdecimal() else None,
            # Thousands of nodes share most of their labels.
            labels=tuple(sys.intern(f"{key}={value}") for key, value in labels.items()),
            taints=tuple(
                Taint(taint["key"], taint.get("value", ""), taint["effect"])
                for taint in spec.get("taints") or []
                if taint["effect"] in _KEEPING_OUT
            ),
        )

    def takes(self, spec: FineTuneJobSpec) -> bool:
        """Tell whether the job's node selector and tolerations let it run here."""
        selected = {f"{key}={value}" for key, value in spec.resources.node_selector.items()}
        return selected.issubset(self.labels) and all(
            # Every pod that asks for GPUs tolerates it.
            taint.key == names.GPU_RESOURCE
            or any(_tolerates(toleration, taint) for toleration in spec.resources.tolerations)
            for taint in self.taints
        )


def _ready(status: Mapping[str, Any]) -> bool:
    return any(
        (condition["type"], condition["status"]) == ("Ready", "True")
        for condition in status.get("conditions") or []
    )


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    return (
        toleration.effect in {None, taint.effect}
        and toleration.key in {None, taint.key}
        and (toleration.operator == "Exists" or (toleration.value or "") == taint.value)
    )
