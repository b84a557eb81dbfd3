"""Reads single cells of a row: text, messages, numbers; and says what is wrong with others."""

import json
from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.files import type_names

Message = dict[str, Any]
"""One turn: role, content and whatever else the chat template reads, such as tool_calls."""

# ShareGPT's names of the roles.
_ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
# Templates pass over roles that they do not know, or write them out as they are. The last three
# are names that families of models give the results of tools.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"}


class RowError(Exception):
    """What is wrong with one row: the column, what was found, what was expected."""


def text(values: Mapping[str, Any], column: str, *, empty: bool = False) -> str:
    """Return a column's text. Raises RowError when it is none, or blank and may not be."""
    if column not in values:
        raise RowError(f"column {column} is missing")
    value = values[column]
    if not isinstance(value, str):
        raise RowError(f"column {column} is {name_of(value)}, expected text")
    if not value.strip() and not empty:
        raise RowError(f"column {column} is empty, expected text")
    return value


def optional_text(values: Mapping[str, Any], column: str | None) -> str | None:
    """Return a column's text, or None when it is absent or blank. Raises RowError."""
    value = values.get(column) if column else None
    if value is not None and not isinstance(value, str):
        raise RowError(f"column {column} is {name_of(value)}, expected text")
    return value if value and value.strip() else None


def messages(values: Mapping[str, Any], column: str) -> list[Message]:
    """Return a column's turns, by the roles of chat templates. Raises RowError."""
    value = parsed(values, column)
    if not isinstance(value, list):
        raise RowError(f"column {column} is {name_of(value)}, expected a list of messages")
    if not value:
        raise RowError(f"column {column} is an empty list, expected messages")
    return [message(turn, f"{column}[{index}]") for index, turn in enumerate(value)]


def turns(values: Mapping[str, Any], column: str) -> list[Message] | None:
    """Return a column's turns, of which a single one needs no list; None when it is text.

    JSON text is text too, as of data whose answers are JSON, unless it holds messages.
    Raises RowError.
    """
    value = parsed(values, column)
    if isinstance(values.get(column), str) and not _holds_messages(value):
        return None
    if isinstance(value, dict):
        return [message(value, column)]
    return messages(values, column) if isinstance(value, list) else None


def _holds_messages(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(
        isinstance(entry, dict)
        and (entry.keys() >= {"from", "value"} or "role" in entry)
        and entry.keys() & {"content", "value", "tool_calls"}
        for entry in entries
    )


def parsed(values: Mapping[str, Any], column: str) -> Any:
    """Return a column's value; CSV and some Parquet files hold lists and objects as JSON text."""
    value = values.get(column)
    if not isinstance(value, str) or value[:1] not in {"[", "{"}:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def message(turn: Any, place: str) -> Message:
    """Return one turn; place is its name in messages. Raises RowError."""
    if not isinstance(turn, dict):
        raise RowError(f"{place} is {name_of(turn)}, expected an object with role and content")
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
        raise RowError(
            f"{place}.content is {name_of(content)}, expected text: only text is trained"
        )
    return "".join(str(text) for text in texts)


def integers(values: Mapping[str, Any], column: str) -> list[int]:
    """Return a column's whole numbers. Raises RowError."""
    value = parsed(values, column)
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise RowError(f"column {column} is {name_of(value)}, expected a list of whole numbers")
    return value


def tools(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the chat template reads beside messages: the tools, when there are any."""
    found = parsed(values, "tools")
    return {"tools": found} if found else {}


def name_of(value: Any) -> str:
    """Return what people call a value's type."""
    return type_names.get(type(value), type(value).__name__)
