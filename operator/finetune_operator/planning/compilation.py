"""How long training takes with layers compiled or not, and run again or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Preparation
from finetune_operator.planning.duration import REACHED, training_flops
from finetune_operator.planning.memory import Candidate, Checkpointing, Precision
from finetune_operator.planning.products import PRODUCTS, UNKNOWN

_SECONDS_OF_A_LAYER: Final = 15 / 32
"""By the first step of Llama-3.1-8B on an H100."""

_COMPILED_TWICE: Final = 2
"""Rows of other lengths make the compiler begin anew, for any length then."""

_SAVED: Final[dict[Precision, float]] = {"bf16": 0.2, "float32": 0.08, "float8": 0.25}
"""Share of a step. bf16: a little less than the least that was measured there, 22 % with all
weights of a 1B model; with LoRA it was 27 % of an 8B model and up to 44 %, on one GPU each, but by
runs of several suites. Of float32 and float8 it is assumed; uncompiled float8 scales and rounds
each row in kernels of their own."""


_UNFUSED: Final = "; without it quantising to float8 is not fused"


@dataclass(frozen=True)
class Compilation:
    """What compiling costs and saves."""

    cost: float
    """Seconds that it takes at the start."""
    training: Mapping[Checkpointing, float]
    """Seconds of training without it, with each kind of checkpointing."""
    share: float
    """Of a step that it saves."""

    def pays(self, checkpointing: Checkpointing) -> bool:
        """Tell whether it saves more than it costs."""
        return self.share * self.training[checkpointing] > self.cost

    def seconds(self, checkpointing: Checkpointing, compiled: bool) -> float:
        """Return how long training takes, and compiling before it."""
        training = self.training[checkpointing]
        return training * (1 - self.share) + self.cost if compiled else training


def compilation(
    spec: FineTuneJobSpec, preparation: Preparation, gpus: int, max_length: int, number: Precision
) -> Compilation:
    """Estimate what compiling comes to on so many GPUs, with weights in a number format.

    Training takes its arithmetic at the speed that the GPUs reach. Padding and writing completions
    are left out: they only add to the training.
    """
    product = PRODUCTS.get(spec.resources.gpu.product, PRODUCTS[UNKNOWN])
    # GPUs without bf16 train in float32 only, which is slower still.
    peak = 1e12 * (product.teraflops or PRODUCTS[UNKNOWN].teraflops or 0)
    rows = preparation.dataset
    varies = not spec.training.packing and rows.mean_tokens < rows.max_tokens
    times = _COMPILED_TWICE if varies else 1
    return Compilation(
        cost=times * _SECONDS_OF_A_LAYER * preparation.model.layers,
        training={
            kind: training_flops(spec, preparation, max_length, kind) / (gpus * REACHED * peak)
            for kind in get_args(Checkpointing)
        },
        share=_SAVED[number],
    )


def why_compiled(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> str:
    """Return what decided for compiling or against it."""
    if spec.training.compile != "auto":
        unfused = _UNFUSED if candidate.precision == "float8" and not candidate.compile else ""
        return f"Compile {spec.training.compile}: as asked for{unfused}."
    number = candidate.precision
    found = compilation(spec, preparation, candidate.gpus, candidate.max_length, number)
    known = "saves" if number == "bf16" else "is taken to save"
    training = _in_words(found.training[candidate.checkpointing])
    pays = found.pays(candidate.checkpointing)
    sums = (
        f"it {known} {found.share:.0%} of about {training} of training without it, by arithmetic"
        f" in bf16, and takes {_in_words(found.cost)}"
    )
    if candidate.compile:
        spared = "" if pays else "; but layers as they are take more memory"
        return f"Compile on: {sums}{spared}."
    if pays:
        return f"Compile off: layers as they are take less memory here; {sums}."
    return f"Compile off: {sums}{_UNFUSED if number == 'float8' else ''}."


def _in_words(seconds: float) -> str:
    """Return a time in the largest unit of which there are two."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
