"""Columns of local data, as a job wants them named."""

from collections.abc import Set as AbstractSet

from finetune_api.formats import INSTRUCTIONS


def renamed_for_rewards(columns: AbstractSet[str]) -> dict[str, str]:
    """Return the new names, by the old, that make questions prompts and answers references."""
    families = ((family.question, family.answer) for family in INSTRUCTIONS)
    pairs = (("prompt", "completion"), *families)
    question, answer = next((pair for pair in pairs if columns >= set(pair)), ("prompt", "answer"))
    return {old: new for old, new in ((question, "prompt"), (answer, "answer")) if old != new}
