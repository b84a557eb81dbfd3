"""What a Critical finding becomes when the job's policy is to act on it."""

from finetune_api.failures import Reason
from finetune_api.status import Rollback
from finetune_api.trainer import JobFailure


class RolledBack(JobFailure):
    """Training ends here, to go on from an earlier checkpoint in the next attempt."""

    def __init__(self, message: str, rollback: Rollback) -> None:
        super().__init__(Reason.ROLLED_BACK, message)
        self.rollback = rollback
