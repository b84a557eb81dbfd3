"""One way to run a job, and what follows from it for each forward pass."""

from dataclasses import dataclass
from typing import Final, Literal, Self

from finetune_api.spec import FSDP, ONLINE, FineTuneJobSpec, Method
from finetune_api.status import Plan, Preparation

Strategy = Literal["single", "ddp", "fsdp", "hsdp", "zero2", "zero3"]
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
    nodes: int = 1
    """Over how many the GPUs are spread."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the way to run that was planned."""
        return cls(
            gpus=plan.gpus,
            strategy=plan.strategy,
            micro_batch_size=plan.micro_batch_size,
            max_length=plan.max_length,
            checkpointing=plan.gradient_checkpointing,
            precision=plan.precision,
            compile=plan.compile,
            nodes=plan.nodes,
        )

    @property
    def width(self) -> int:
        """Bytes of a weight and of an activation."""
        return 4 if self.precision == "float32" else 2

    @property
    def is_sharded(self) -> bool:
        """Whether each GPU holds only its share of the weights."""
        return self.strategy in {*FSDP, "zero3"}

    @property
    def shards(self) -> int:
        """The parts of what is spread, one on each GPU; with hsdp each node has all of them."""
        gpus = max(1, self.gpus)
        return gpus // self.nodes if self.strategy == "hsdp" else gpus


@dataclass(frozen=True)
class Batch:
    """The tokens of one forward pass."""

    tokens: int
    """All of them, with padding."""
    repeats: bool = False
    """Whether attention gets keys and values repeated for each query head."""
    mask: int = 0
    """Entries of the attention mask for each token, which are kept as numbers."""


def batch_of(spec: FineTuneJobSpec, preparation: Preparation, candidate: Candidate) -> Batch:
    """Return what one forward pass of the candidate runs."""
    sequences = candidate.micro_batch_size * (2 if spec.method in PAIRED else 1)
    tokens = sequences * candidate.max_length
    heads, data = preparation.model.heads, preparation.dataset
    if spec.training.packing and candidate.gpus:
        # Flex attention has a mask of blocks, too small to count. Transformers repeats for it
        # unless the heads are a power of two.
        return Batch(tokens, repeats=heads & (heads - 1) != 0)
    differ = data.mean_tokens < data.max_tokens or spec.method in ONLINE
    if spec.training.packing or (sequences > 1 and differ):
        return Batch(tokens, repeats=True, mask=candidate.max_length)
    return Batch(tokens)


def accumulates(spec: FineTuneJobSpec, candidate: Candidate) -> bool:
    """Tell whether gradients are kept from one forward pass to the next."""
    return spec.training.batch_size > max(1, candidate.gpus) * candidate.micro_batch_size
