"""Reads rows as answers that are told apart: a better and a worse one, or one with a label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from typing import Any

from finetune_api.formats import COMPLETION, LABEL, RANKED, Instruction, Shape
from finetune_trainer.data.cells import (
    Message,
    RowError,
    name_of,
    optional_text,
    parsed,
    text,
    tools,
    turns,
)
from finetune_trainer.data.examples import Text, ask

_LABELS = {"true": 1, "1": 1, "false": 0, "0": 0}


@dataclass(frozen=True)
class Comparison:
    """A prompt with a better and a worse answer: all text, or all turns."""

    prompt: Text
    chosen: Text
    rejected: Text
    extras: dict[str, Any] = field(default_factory=dict)
    """What the chat template reads beside messages: tools."""


@dataclass(frozen=True)
class Judgement:
    """A prompt with an answer that is desirable or not: both text, or both turns."""

    prompt: Text
    completion: Text
    label: bool
    extras: dict[str, Any] = field(default_factory=dict)


def read_comparison(values: Mapping[str, Any], shape: Shape, *, has_template: bool) -> Comparison:
    """Return a row's pair. Raises RowError."""
    if shape.judged == (RANKED,):
        answers = _best_and_worst(values)
    else:
        answers = [_answer(values, column) for column in shape.judged]
    if answers[0] == answers[1]:
        raise RowError(f"{' and '.join(shape.judged)} are the same, expected a difference")
    prompt = _question(values, shape.instruction, answers, has_template=has_template)
    if isinstance(prompt, str):
        return Comparison(prompt, answers[0], answers[1])
    if prompt is None and all(isinstance(answer, str) for answer in answers):
        return _split_text(str(answers[0]), str(answers[1]))
    chosen, rejected = (_conversation(prompt, answer) for answer in answers)
    shared = _shared(chosen, rejected)
    if not 0 < shared < min(len(chosen), len(rejected)):
        raise RowError(
            f"{' and '.join(shape.judged)} have {shared} of their {len(chosen)} and "
            f"{len(rejected)} turns in common, expected the prompt and then a difference"
        )
    return Comparison(chosen[:shared], chosen[shared:], rejected[shared:], tools(values))


def read_judgement(values: Mapping[str, Any], shape: Shape, *, has_template: bool) -> Judgement:
    """Return a row's labelled answer. Raises RowError."""
    answer = _answer(values, COMPLETION)
    prompt = _question(values, shape.instruction, [answer], has_template=has_template)
    label = _label(values)
    if isinstance(answer, str) and not isinstance(prompt, list):
        return Judgement(prompt or "", answer, label)
    chat = _conversation(prompt, answer)
    if len(chat) < 2 or chat[-1]["role"] != "assistant":
        raise RowError(f"column {COMPLETION} does not end with an answer of the assistant")
    return Judgement(chat[:-1], chat[-1:], label, tools(values))


def _answer(values: Mapping[str, Any], column: str) -> Text:
    return turns(values, column) or text(values, column)


def _best_and_worst(values: Mapping[str, Any]) -> list[Text]:
    """Return the answers of the lowest and the highest rank."""
    ranked = parsed(values, RANKED)
    if not isinstance(ranked, list) or len(ranked) < 2:
        raise RowError(f"column {RANKED} is {name_of(ranked)}, expected a list of several answers")
    for index, entry in enumerate(ranked):
        if not isinstance(entry, dict) or not isinstance(entry.get("rank"), int | float):
            raise RowError(
                f"{RANKED}[{index}] has no rank, expected an object with answer and rank"
            )
    ordered = sorted(ranked, key=lambda entry: entry["rank"])
    if ordered[0]["rank"] == ordered[-1]["rank"]:
        raise RowError(f"all {RANKED} have the rank {ordered[0]['rank']}, expected a difference")
    return [text(ordered[0], "answer"), text(ordered[-1], "answer")]


def _label(values: Mapping[str, Any]) -> bool:
    value = values.get(LABEL)
    if isinstance(value, str):
        value = _LABELS.get(value.strip().lower(), value)
    if value not in (0, 1):
        raise RowError(f"column {LABEL} is {value!r}, expected true or false")
    return bool(value)


def _question(
    values: Mapping[str, Any],
    question: Instruction | None,
    answers: list[Text],
    *,
    has_template: bool,
) -> Text | None:
    """Return what is answered: turns where it or an answer is turns, or None without a column."""
    if question is None:
        return None
    asked = turns(values, question.question)
    if asked is not None:
        return asked
    as_turns = not all(isinstance(answer, str) for answer in answers)
    plain = question.question == "prompt" and optional_text(values, question.system) is None
    if plain and not as_turns:
        return text(values, "prompt", empty=True)
    return ask(values, question, has_template=has_template or as_turns)


def _conversation(prompt: Text | None, answer: Text) -> list[Message]:
    """Return prompt and answer as one list of turns; an answer may begin with the prompt itself."""
    asked = prompt if isinstance(prompt, list) else []
    if isinstance(answer, str):
        return [*asked, {"role": "assistant", "content": answer}]
    history = list(dropwhile(_is_system, asked))
    start = list(dropwhile(_is_system, answer))
    continues = len(history) > 1 and start[: len(history)] != history
    if continues or answer[0]["role"] not in {"system", "developer", "user"}:
        return [*asked, *answer]
    return answer if _is_system(answer[0]) else [*takewhile(_is_system, asked), *answer]


def _is_system(turn: Message) -> bool:
    return turn["role"] in {"system", "developer"}


def _split_text(chosen: str, rejected: str) -> Comparison:
    """Take what both texts begin with for the prompt, as TRL's extract_prompt does."""
    shared = _shared(chosen, rejected)
    # A space belongs to the word after it.
    shared -= chosen[:shared].endswith(" ")
    return Comparison(chosen[:shared], chosen[shared:], rejected[shared:])


def _shared(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return how many leading entries are the same."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )
