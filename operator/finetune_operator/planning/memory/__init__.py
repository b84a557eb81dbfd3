"""How much memory one GPU needs, in closed form.

The forms count what PyTorch holds at the moment when it holds most. They were derived from traces
of the trainer's own loop, and the tests trace it again; docs/memory.md tells how near they are.
"""

from finetune_operator.planning.memory.candidate import (
    Candidate,
    Checkpointing,
    Precision,
    Strategy,
)
from finetune_operator.planning.memory.estimate import estimate

__all__ = ["Candidate", "Checkpointing", "Precision", "Strategy", "estimate"]
