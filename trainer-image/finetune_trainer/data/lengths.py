"""What happens to rows that are longer than training takes."""

from dataclasses import dataclass, field
from typing import Literal

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.trainer import JobFailure
from finetune_trainer.data.examples import Tokens
from finetune_trainer.data.render import IGNORED

DEFAULT_MAX_LENGTH = 4096
"""Longest row when training.maxLength is unset and the model knows more."""


def max_length(spec: FineTuneJobSpec, max_positions: int) -> int:
    """Return the longest row in tokens. Raises JobFailure when it is more than the model knows."""
    wanted = spec.training.max_length
    if wanted is not None and wanted > max_positions:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"training.maxLength is {wanted}, but the model knows only {max_positions} positions: "
            f"lower it to {max_positions}.",
        )
    return wanted or min(DEFAULT_MAX_LENGTH, max_positions)


@dataclass
class LengthPolicy:
    """Applies dataset.tooLong to rows one by one, and counts."""

    limit: int
    action: Literal["fail", "truncate", "drop"]
    rows: int = 0
    long: int = 0
    dropped: int = 0
    longest: int = 0
    first: str = field(default="", init=False)

    def apply(self, tokens: Tokens, place: str) -> Tokens | None:
        """Return the row as it is trained, or None when it is left out."""
        self.rows += 1
        length = len(tokens.input_ids)
        if length <= self.limit:
            return tokens
        self.long += 1
        self.longest = max(self.longest, length)
        self.first = self.first or f"{place} has {length} tokens"
        kept = self._cut(tokens) if self.action == "truncate" else None
        self.dropped += kept is None
        return kept

    def _cut(self, tokens: Tokens) -> Tokens | None:
        labels = tokens.labels[: self.limit]
        # A prompt that fills the row leaves nothing to learn.
        if all(label == IGNORED for label in labels):
            return None
        return Tokens(tokens.input_ids[: self.limit], labels)

    def check(self, *, is_set: bool, max_positions: int) -> None:
        """Raise JobFailure when rows were too long and dataset.tooLong is fail."""
        if not self.long or self.action != "fail":
            return
        limit = f"training.maxLength is {self.limit}"
        if not is_set:
            limit = f"training.maxLength is unset, which allows {self.limit}"
        longer = f"raise training.maxLength to {self.longest}, or "
        advice = longer if self.longest <= max_positions else ""
        raise JobFailure(
            Reason.DATA_INVALID,
            f"{self.first}, but {limit} ({self.long} of {self.rows} rows are longer; the model "
            f"knows {max_positions} positions): {advice}set dataset.tooLong to truncate or drop.",
        )
