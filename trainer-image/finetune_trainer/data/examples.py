"""Reads rows of a recognised shape as examples, and says what is wrong with those that are none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.spec import DatasetFormat
from finetune_trainer.data.files import type_names
from finetune_trainer.data.formats import Instruction, Shape

Message = dict[str, Any]
"""One turn: role, content and whatever else the chat template reads, such as tool_calls."""

# ShareGPT's names of the roles.
_ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
# Templates pass over roles that they do not know, or write them out as they are. The last three
# are names that families of models give the results of tools.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"}


class RowError(Exception):
    """What is wrong with one row: the column, what was found, what was expected."""


@dataclass(frozen=True)
class Chat:
    """A conversation; all of it, or what the assistant says, is learned."""

    messages: list[Message]
    extras: dict[str, Any] = field(default_factory=dict)
    """What the chat template reads beside messages: tools."""


@dataclass(frozen=True)
class Exchange:
    """Turns that are given, and turns that are learned."""

    prompt: list[Message]
    completion: list[Message]
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuation:
    """Text that is given (may be empty), and text that is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Tokens:
    """Tokens as they are; labels are -100 where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


Example = Chat | Exchange | Continuation | Tokens


def read_example(values: Mapping[str, Any], shape: Shape, *, has_template: bool) -> Example:
    """Return the example that a row stands for. Raises RowError.

    Instructions become chats when the model has a chat template, and plain text when it has none.
    """
    if shape.format is DatasetFormat.TOKENIZED:
        return _tokens(values)
    if shape.chat_column is not None:
        messages = _messages(values, shape.chat_column)
        if not any(message["role"] == "assistant" for message in messages):
            raise RowError(f"column {shape.chat_column} has no turn of the assistant")
        return Chat(messages, _extras(values))
    if shape.instruction is not None:
        return _instruction(values, shape.instruction, has_template=has_template)
    if shape.format is DatasetFormat.COMPLETION:
        return Continuation("", _text(values, "text"))
    return _prompt_completion(values)


def _prompt_completion(values: Mapping[str, Any]) -> Example:
    if isinstance(values.get("prompt"), str):
        return Continuation(_text(values, "prompt", empty=True), _text(values, "completion"))
    completion = _messages(values, "completion")
    return Exchange(_messages(values, "prompt"), completion, _extras(values))


def _instruction(values: Mapping[str, Any], family: Instruction, *, has_template: bool) -> Example:
    question, answer = _text(values, family.question), _text(values, family.answer)
    context = _optional(values, family.context)
    system = _optional(values, family.system)
    if has_template:
        parts = [context, question] if family.context_first else [question, context]
        prompt = [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]
        if system:
            prompt.insert(0, {"role": "system", "content": system})
        return Exchange(prompt, [{"role": "assistant", "content": answer}])
    sections = [("Instruction", question), ("Input", context), ("Response", "")]
    body = "\n\n".join(f"### {name}:\n{text}" for name, text in sections if text is not None)
    return Continuation(f"{system}\n\n{body}" if system else body, answer)


def _text(values: Mapping[str, Any], column: str, *, empty: bool = False) -> str:
    if column not in values:
        raise RowError(f"column {column} is missing")
    value = values[column]
    if not isinstance(value, str):
        raise RowError(f"column {column} is {_name(value)}, expected text")
    if not value.strip() and not empty:
        raise RowError(f"column {column} is empty, expected text")
    return value


def _optional(values: Mapping[str, Any], column: str | None) -> str | None:
    value = values.get(column) if column else None
    if value is not None and not isinstance(value, str):
        raise RowError(f"column {column} is {_name(value)}, expected text")
    return value if value and value.strip() else None


def _messages(values: Mapping[str, Any], column: str) -> list[Message]:
    value = _parsed(values, column)
    if not isinstance(value, list):
        raise RowError(f"column {column} is {_name(value)}, expected a list of messages")
    if not value:
        raise RowError(f"column {column} is an empty list, expected messages")
    return [_message(turn, f"{column}[{index}]") for index, turn in enumerate(value)]


def _parsed(values: Mapping[str, Any], column: str) -> Any:
    """Return a list that CSV and some Parquet files hold as JSON text."""
    value = values.get(column)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{place} is {_name(turn)}, expected an object with role and content")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str):
        raise RowError(f"{place} has no role; found {', '.join(turn) or 'nothing'}")
    if _ALIASES.get(role, role) not in _ROLES:
        key = "role" if "role" in turn else "from"
        raise RowError(f"{place}.{key} is '{role}', expected system, user, assistant or tool")
    content = _joined(content, place)
    if content is None and not turn.get("tool_calls"):
        raise RowError(f"{place}.content is missing, expected text")
    others = {
        key: value
        for key, value in turn.items()
        # Parquet fills what a turn lacks with nulls; templates test for absence.
        if key not in {"role", "from", "content", "value"} and value is not None
    }
    return {"role": _ALIASES.get(role, role), "content": content or "", **others}


def _joined(content: Any, place: str) -> str | None:
    """Return text content; a list of text parts is joined."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise RowError(f"{place}.content is {_name(content)}, expected text: only text is trained")
    return "".join(str(text) for text in texts)


def _extras(values: Mapping[str, Any]) -> dict[str, Any]:
    tools = _parsed(values, "tools")
    return {"tools": tools} if tools else {}


def _tokens(values: Mapping[str, Any]) -> Tokens:
    ids = _integers(values, "input_ids")
    labels = _integers(values, "labels") if values.get("labels") is not None else list(ids)
    mask = _integers(values, "attention_mask") if values.get("attention_mask") else [1] * len(ids)
    if not len(ids) == len(labels) == len(mask):
        raise RowError(
            f"input_ids, labels and attention_mask have {len(ids)}, {len(labels)} and {len(mask)} "
            "entries, expected as many of each"
        )
    # Padding is added per batch; what was padded before is taken off.
    kept = [index for index, bit in enumerate(mask) if bit]
    return Tokens([ids[index] for index in kept], [labels[index] for index in kept])


def _integers(values: Mapping[str, Any], column: str) -> list[int]:
    value = _parsed(values, column)
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise RowError(f"column {column} is {_name(value)}, expected a list of whole numbers")
    return value


def _name(value: Any) -> str:
    return type_names.get(type(value), type(value).__name__)
