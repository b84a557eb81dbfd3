"""The Kubernetes objects of one attempt, as dictionaries; pure, no I/O."""

from finetune_operator.workloads.children import Launch, TrainerSettings, children
from finetune_operator.workloads.objects import desired_hash, workspace_claim_name

__all__ = ["Launch", "TrainerSettings", "children", "desired_hash", "workspace_claim_name"]
