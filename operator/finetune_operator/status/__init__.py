"""The status document: conditions, progress and the patch that writes them; pure, no I/O."""

from finetune_operator.status.conditions import Conditions
from finetune_operator.status.patch import merge_patch
from finetune_operator.status.progress import final_progress, stopped_progress

__all__ = ["Conditions", "final_progress", "merge_patch", "stopped_progress"]
