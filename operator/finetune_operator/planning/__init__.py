"""From what is asked for and what was measured to a plan; pure, no I/O."""

from finetune_operator.planning.adapt import smaller_plan
from finetune_operator.planning.duration import Expected, expected_time
from finetune_operator.planning.inventory import Inventory, PlanInfeasibleError, check_fit
from finetune_operator.planning.nodes import Node
from finetune_operator.planning.planner import make_plan

__all__ = [
    "Expected",
    "Inventory",
    "Node",
    "PlanInfeasibleError",
    "check_fit",
    "expected_time",
    "make_plan",
    "smaller_plan",
]
