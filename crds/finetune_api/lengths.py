"""How long rows may be, and the sentences that refuse longer ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_api.failures import Reason
from finetune_api.methods import Generation
from finetune_api.spec import ONLINE, FineTuneJobSpec
from finetune_api.trainer import JobFailure

DEFAULT_MAX_LENGTH: Final = 4096
"""Longest row when training.maxLength is unset and the model knows more."""

MAX_LENGTH, MAX_PROMPT_LENGTH = "training.maxLength", "generation.maxPromptLength"

PADDED_TOGETHER: Final = (2, 4, 8, 16, 32)
"""How many rows DatasetFacts.padded_tokens tells of: the usual sizes of a micro-batch."""


def padded_tokens(counts: Mapping[int, int]) -> list[float]:
    """Return for each of PADDED_TOGETHER the mean tokens of the longest of so many rows.

    Args:
        counts: how many rows there are of each length in tokens.

    Each is drawn from all: where a share u of the rows is no longer than a length, the longest of n
    is not with a probability of u^n.
    """
    rows = sum(counts.values())
    means = []
    for together in PADDED_TOGETHER:
        mean, seen = 0.0, 0
        for length, count in sorted(counts.items()):
            before, seen = seen, seen + count
            mean += length * ((seen / rows) ** together - (before / rows) ** together)
        means.append(round(mean, 1))
    return means


@dataclass(frozen=True)
class RowLimit:
    """The tokens that a row may have, what sets them, and what happens to longer rows."""

    tokens: int
    action: Literal["fail", "truncate", "drop"]
    """dataset.tooLong."""
    cause: str
    """What sets the limit: a field and its value, for messages."""
    raised: str
    """The field to raise for longer rows."""
    max_positions: int
    reserved: int = 0
    """Tokens kept free after each row for what the model answers."""

    def enough(self, longest: int) -> int | None:
        """Return what to raise the field to for rows so long; None when the model knows less."""
        if longest + self.reserved > self.max_positions:
            return None
        return longest + (0 if self.raised == MAX_PROMPT_LENGTH else self.reserved)

    def refusal(self, found: str, longest: int, more: str = "") -> str:
        """Return why rows are refused; found names one that is too long, more counts them all."""
        enough = self.enough(longest)
        advice = f"raise {self.raised} to {enough}, or " if enough else ""
        # What is left of a prompt that is cut would ask something else.
        actions = "drop" if self.reserved else "truncate or drop"
        return (
            f"{found}, but {self.cause} ({more}the model knows {self.max_positions} positions):"
            f" {advice}set dataset.tooLong to {actions}."
        )


def max_length(spec: FineTuneJobSpec, max_positions: int) -> int:
    """Return the longest sequence in tokens that a job allows for a model of so many positions."""
    return spec.training.max_length or min(DEFAULT_MAX_LENGTH, max_positions)


def row_limit(spec: FineTuneJobSpec, max_positions: int) -> RowLimit:
    """Return how long a job's rows may be.

    Raises JobFailure when the model knows less than is asked for, or no prompt could fit.
    """
    wanted = spec.training.max_length
    if wanted is not None and wanted > max_positions:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"training.maxLength is {wanted}, but the model knows only {max_positions} positions: "
            f"lower it to {max_positions}.",
        )
    whole, action = max_length(spec, max_positions), spec.dataset.too_long
    cause = f"training.maxLength is {whole}"
    if wanted is None:
        cause = f"training.maxLength is unset, which allows {whole}"
    if spec.method not in ONLINE:
        return RowLimit(whole, action, cause, MAX_LENGTH, max_positions)
    generation = spec.generation or Generation()
    completion = generation.max_completion_length
    room, longest = whole - completion, generation.max_prompt_length
    cause = f"{cause} and generation.maxCompletionLength is {completion}"
    if room < 1:
        raise JobFailure(
            Reason.CONFIG_INVALID,
            f"{cause}, which leaves no room for a prompt: lower maxCompletionLength.",
        )
    if longest is None or longest > room:
        return RowLimit(room, action, cause, MAX_LENGTH, max_positions, completion)
    cause = f"{MAX_PROMPT_LENGTH} is {longest}"
    return RowLimit(longest, action, cause, MAX_PROMPT_LENGTH, max_positions, completion)
