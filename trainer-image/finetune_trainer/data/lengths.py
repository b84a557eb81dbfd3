"""What happens to rows that are longer than training takes."""

from dataclasses import dataclass, field
from typing import Literal

from finetune_api.failures import Reason
from finetune_api.methods import Generation
from finetune_api.spec import ONLINE, FineTuneJobSpec
from finetune_api.trainer import JobFailure
from finetune_trainer.data.records import Record

DEFAULT_MAX_LENGTH = 4096
"""Longest row when training.maxLength is unset and the model knows more."""

MAX_LENGTH, MAX_PROMPT_LENGTH = "training.maxLength", "generation.maxPromptLength"


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
    cause: str
    """What sets the limit: a field and its value, for messages."""
    raised: str
    """The field to raise for longer rows."""
    max_positions: int
    reserved: int = 0
    """Tokens kept free after each row for what the model answers."""
    rows: int = 0
    long: int = 0
    dropped: int = 0
    longest: int = 0
    first: str = field(default="", init=False)

    def apply(self, record: Record, place: str) -> Record | None:
        """Return the row as it is trained, or None when it is left out."""
        self.rows += 1
        length = record.length
        if length <= self.limit:
            return record
        self.long += 1
        self.longest = max(self.longest, length)
        self.first = self.first or f"{place} has {length} tokens"
        kept = record.cut(self.limit) if self.action == "truncate" else None
        self.dropped += kept is None
        return kept

    def check(self) -> None:
        """Raise JobFailure when rows were too long and dataset.tooLong is fail."""
        if not self.long or self.action != "fail":
            return
        enough = self.longest + (0 if self.raised == MAX_PROMPT_LENGTH else self.reserved)
        longer = f"raise {self.raised} to {enough}, or "
        advice = longer if self.longest + self.reserved <= self.max_positions else ""
        # What is left of a prompt that is cut would ask something else.
        actions = "drop" if self.reserved else "truncate or drop"
        raise JobFailure(
            Reason.DATA_INVALID,
            f"{self.first}, but {self.cause} ({self.long} of {self.rows} rows are longer; the "
            f"model knows {self.max_positions} positions): {advice}set dataset.tooLong to "
            f"{actions}.",
        )


def length_policy(spec: FineTuneJobSpec, max_positions: int) -> LengthPolicy:
    """Return the policy for a job's rows. Raises JobFailure when no prompt could fit."""
    whole = max_length(spec, max_positions)
    action = spec.dataset.too_long
    cause = f"training.maxLength is {whole}"
    if spec.training.max_length is None:
        cause = f"training.maxLength is unset, which allows {whole}"
    if spec.method not in ONLINE:
        return LengthPolicy(whole, action, cause, MAX_LENGTH, max_positions)
    generation = spec.generation or Generation()
    completion = generation.max_completion_length
    room, wanted = whole - completion, generation.max_prompt_length
    cause = f"{cause} and generation.maxCompletionLength is {completion}"
    if room < 1:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{cause}, which leaves no room for a prompt: lower maxCompletionLength.",
        )
    if wanted is None or wanted > room:
        return LengthPolicy(room, action, cause, MAX_LENGTH, max_positions, completion)
    cause = f"{MAX_PROMPT_LENGTH} is {wanted}"
    return LengthPolicy(wanted, action, cause, MAX_PROMPT_LENGTH, max_positions, completion)
