"""Reads rows as prompts that the model answers while it is trained, with all that rewards read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.formats import Shape
from finetune_api.spec import DatasetFormat
from finetune_trainer.data.cells import RowError, text, tools, turns
from finetune_trainer.data.examples import (
    Chat,
    Continuation,
    Demonstration,
    Exchange,
    Text,
    read_demonstration,
)
from finetune_trainer.data.records import Tokens

REFERENCE = "ground_truth"
"""Column with the known answer's text: TRL passes no column named completion to rewards."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the row's other columns as they are."""

    prompt: Text
    columns: dict[str, Any]


def read_question(values: Mapping[str, Any], shape: Shape, *, has_template: bool) -> Question:
    """Return a row's prompt; where the row has an answer too, column ground_truth gets its text.

    Raises RowError.
    """
    if tools(values):
        raise RowError("column tools is not empty, but this method offers no tools: remove it")
    columns = {name: value for name, value in values.items() if name != shape.chat_column}
    if shape.format is DatasetFormat.PROMPT:
        return Question(turns(values, "prompt") or text(values, "prompt"), columns)
    prompt, answer = _answered(read_demonstration(values, shape, has_template=has_template))
    return Question(prompt, {REFERENCE: answer} | columns)


def read_answered(values: Mapping[str, Any], shape: Shape, *, has_template: bool) -> Question:
    """Return a row's prompt, with its own answer as ground_truth whatever is in that column.

    Raises RowError.
    """
    others = {name: value for name, value in values.items() if name != REFERENCE}
    return read_question(others, shape, has_template=has_template)


def _answered(example: Demonstration) -> tuple[Text, str]:
    """Return prompt and answer; of a chat, the last turn of the assistant is the answer."""
    match example:
        case Continuation():
            if not example.prompt.strip():
                raise RowError("column prompt is empty, expected text")
            return example.prompt, example.completion
        case Exchange():
            return example.prompt, "".join(turn["content"] for turn in example.completion)
        case Chat():
            turns = example.messages
            last = max(index for index, turn in enumerate(turns) if turn["role"] == "assistant")
            if last == 0:
                raise RowError("the conversation begins with the assistant's answer")
            return turns[:last], turns[last]["content"]
        case Tokens():
            raise RowError("tokens cannot be told apart into prompt and answer")
