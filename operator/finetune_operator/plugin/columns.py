"""What rows are, by their columns, as preparation recognises them in the cluster."""

from collections.abc import Set as AbstractSet
from typing import Final

from finetune_api.spec import DatasetFormat

ANSWERED: Final = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("INSTRUCTION", "RESPONSE"),
    ("question", "response"),
    ("question", "answer"),
    ("question", "output"),
    ("article", "summary"),
    ("document", "summary"),
    ("message_1", "message_2"),
    ("prompt", "generation"),
    ("prompt", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
"""Columns of questions and their answers in instruction data."""

_ANY_OF: Final[tuple[tuple[DatasetFormat, tuple[tuple[str, ...], ...]], ...]] = (
    (DatasetFormat.TOKENIZED, (("input_ids",),)),
    (DatasetFormat.PREFERENCE, (("chosen", "rejected"), ("chosen_response", "rejected_response"))),
    (DatasetFormat.UNPAIRED_PREFERENCE, (("completion", "label"),)),
    (DatasetFormat.CHAT, (("messages",), ("conversations",), ("conversation",))),
    (DatasetFormat.PROMPT_COMPLETION, (("prompt", "completion"),)),
    (DatasetFormat.INSTRUCTION, ANSWERED),
    (DatasetFormat.COMPLETION, (("text",),)),
    (DatasetFormat.PROMPT, (("prompt",),)),
)
"""In the order in which they are tried."""


def format_of(columns: AbstractSet[str]) -> DatasetFormat | None:
    """Return the format of rows with these columns; None when it is none that is known."""
    for format_, alternatives in _ANY_OF:
        if any(columns >= set(needed) for needed in alternatives):
            return format_
    return None


def renamed_for_rewards(columns: AbstractSet[str]) -> dict[str, str]:
    """Return the new names, by the old, that make questions prompts and answers references."""
    pairs = (("prompt", "completion"), *ANSWERED)
    question, answer = next((pair for pair in pairs if columns >= set(pair)), ("prompt", "answer"))
    return {old: new for old, new in ((question, "prompt"), (answer, "answer")) if old != new}
