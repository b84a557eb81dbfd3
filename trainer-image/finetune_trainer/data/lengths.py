"""What happens to rows that are longer than training takes."""

from dataclasses import dataclass, field

from finetune_api.failures import Reason
from finetune_api.lengths import RowLimit
from finetune_api.trainer import JobFailure
from finetune_trainer.data.records import Record


@dataclass
class LengthPolicy:
    """Applies dataset.tooLong to rows one by one, and counts."""

    limit: RowLimit
    rows: int = field(default=0, init=False)
    long: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)
    longest: int = field(default=0, init=False)
    first: str = field(default="", init=False)

    def apply(self, record: Record, place: str) -> Record | None:
        """Return the row as it is trained, or None when it is left out."""
        self.rows += 1
        length = record.length
        if length <= self.limit.tokens:
            return record
        self.long += 1
        self.longest = max(self.longest, length)
        self.first = self.first or f"{place} has {length} tokens"
        kept = record.cut(self.limit.tokens) if self.limit.action == "truncate" else None
        self.dropped += kept is None
        return kept

    def check(self) -> None:
        """Raise JobFailure when rows were too long and dataset.tooLong is fail."""
        if self.long and self.limit.action == "fail":
            more = f"{self.long} of {self.rows} rows are longer; "
            message = self.limit.refusal(self.first, self.longest, more)
            raise JobFailure(Reason.DATA_INVALID, message)
