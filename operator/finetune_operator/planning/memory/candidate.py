"""One way to run a job, and what follows from it for each forward pass."""

from dataclasses import dataclass
from typing import Final, Literal

from finetune_api.spec import ONLINE, FineTuneJobSpec, Method
from finetune_api.status import Preparation

Strategy = Literal["single", "ddp", "fsdp", "zero2", "zero3"]
Checkpointing = Literal["none", "selective", "full"]
Precision = Literal["bf16", "float32", "float8"]

PAIRED: Final = frozenset({Method.DPO, Method.ORPO, Method.REWARD})
"""Methods that run the chosen and the rejected sequence of each row in one forward pass."""


@dataclass(frozen=True)
class Candidate:
    """One way to run the job, whose memory is estimated."""

    gpus: int
    strategy: Strategy
    micro_batch_size: int
    max_length: int
    checkpointing: Checkpointing
    precision: Precision
    compile: bool = False

    @property
    def width(self) -> int:
        """Bytes of a weight and of an activation."""
        return 4 if self.precision == "float32" else 2

    @property
    def is_sharded(self) -> bool:
        """Whether each GPU holds only its share of the weights."""
        return self.strategy in {"fsdp", "zero3"}


@dataclass(frozen=True)
class Batch:
    """The tokens of one forward pass."""

    tokens: int
    """All of them, with padding."""
    row: int
    """Tokens over which attention goes."""
    masked: bool
    """Whether attention is given a mask, as it is unless all rows are equally long."""


def batch_of(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> Batch:
    """Return what one forward pass of the candidate runs."""
    sequences = candidate.micro_batch_size * (2 if spec.method in PAIRED else 1)
    tokens = sequences * candidate.max_length
    if spec.training.packing:
        # TRL puts the packed rows of a micro-batch behind each other.
        return Batch(tokens, tokens, masked=True)
    data = preparation.dataset
    differ = data.mean_tokens < data.max_tokens or spec.method in ONLINE
    return Batch(tokens, candidate.max_length, masked=sequences > 1 and differ)


def casts(spec: FineTuneJobSpec, candidate: Candidate) -> bool:
    """Tell whether PEFT casts each input of an adapter to the adapter's float32.

    The trainer prevents it, but for methods that write completions: they do so without autocast.
    """
    return spec.method in ONLINE and spec.adapter.type == "lora" and candidate.precision == "bf16"


def accumulates(spec: FineTuneJobSpec, candidate: Candidate) -> bool:
    """Tell whether gradients are kept from one forward pass to the next."""
    return spec.training.batch_size > max(1, candidate.gpus) * candidate.micro_batch_size
