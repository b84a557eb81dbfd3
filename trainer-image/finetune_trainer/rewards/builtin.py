"""The rewards that the trainer brings; docs/rewards.md says what each is for."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trl.rewards.format_rewards import think_format_reward
from trl.rewards.other_rewards import get_soft_overlong_punishment

from finetune_api.formats import REFERENCES
from finetune_api.methods import Generation
from finetune_trainer.rewards.answers import final_answer, same_answer
from finetune_trainer.rewards.checked import Function, RewardError

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)


def builtin_reward(name: str, generation: Generation) -> Function:
    """Return a reward by its name in the API."""
    limit = generation.max_completion_length
    # As in DAPO, where it is 4096 of 20480 tokens.
    margin = max(1, limit // 5)
    functions: dict[str, Function] = {
        "exact-match": partial(_compared, same=_equal_text),
        "accuracy": partial(_compared, same=_equal_answers),
        "format": _format,
        "json": _json,
        "length": get_soft_overlong_punishment(limit, margin),
    }
    return functions[name]


def text_of(completion: Any) -> str:
    """Return what the model wrote: a completion is text, or the messages of a chat."""
    if isinstance(completion, str):
        return completion
    return "".join(message.get("content") or "" for message in completion)


def _compared(
    completions: Sequence[Any], *, same: Callable[[str, str], bool], **columns: Any
) -> list[float | None]:
    """Return 1 where a completion is the same as the reference, else 0; None without reference."""
    name = next((name for name in REFERENCES if name in columns), None)
    if name is None:
        raise RewardError(
            f"compares with column {', '.join(REFERENCES[:-1])} or {REFERENCES[-1]}, but the rows "
            "have none of these: name the column with the known answer in dataset.columns"
        )
    pairs = zip(completions, columns[name], strict=True)
    return [
        None if reference is None else float(same(text_of(completion), str(reference)))
        for completion, reference in pairs
    ]


def _equal_text(completion: str, reference: str) -> bool:
    return completion.strip() == reference.strip()


def _equal_answers(completion: str, reference: str) -> bool:
    return same_answer(final_answer(completion), final_answer(reference, is_reference=True))


def _format(completions: Sequence[Any], **_: Any) -> list[float]:
    """Return 1 where reasoning in one pair of think tags comes first, else 0."""
    chats = [[{"content": text_of(completion)}] for completion in completions]
    values: list[float] = think_format_reward(chats)
    return values


def _json(completions: Sequence[Any], **_: Any) -> list[float]:
    """Return 1 where a completion is a JSON object or array and nothing else, else 0."""
    return [float(_is_json(text_of(completion).strip())) for completion in completions]


def _is_json(text: str) -> bool:
    fenced = _FENCED.fullmatch(text)
    try:
        return isinstance(json.loads(fenced[1] if fenced else text), dict | list)
    # Of brackets nested a thousand deep the parser gives up.
    except (ValueError, RecursionError):
        return False
