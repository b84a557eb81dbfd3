"""Reads rows of a recognised shape as examples, and says what is wrong with those that are none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.formats import Instruction, Shape
from finetune_api.spec import DatasetFormat
from finetune_trainer.data.cells import (
    Message,
    RowError,
    integers,
    messages,
    optional_text,
    text,
    tools,
    turns,
)
from finetune_trainer.data.records import Tokens

Text = str | list[Message]
"""Plain text, or turns that the chat template renders."""


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


Demonstration = Chat | Exchange | Continuation | Tokens


def read_demonstration(
    values: Mapping[str, Any], shape: Shape, *, has_template: bool
) -> Demonstration:
    """Return what a row shows the model to do. Raises RowError.

    Instructions become chats when the model has a chat template, and plain text when it has none.
    """
    if shape.format is DatasetFormat.TOKENIZED:
        return _tokens(values)
    if shape.chat_column is not None:
        chat = messages(values, shape.chat_column)
        if not any(turn["role"] == "assistant" for turn in chat):
            raise RowError(f"column {shape.chat_column} has no turn of the assistant")
        return Chat(chat, tools(values))
    if shape.instruction is not None:
        return _instruction(values, shape.instruction, has_template=has_template)
    if shape.format is DatasetFormat.COMPLETION:
        return Continuation("", text(values, "text"))
    return _prompt_completion(values)


def _prompt_completion(values: Mapping[str, Any]) -> Exchange | Continuation:
    prompt, completion = turns(values, "prompt"), turns(values, "completion")
    if prompt is None and completion is None:
        return Continuation(text(values, "prompt", empty=True), text(values, "completion"))
    if prompt is None or completion is None:
        raise RowError("one of prompt and completion is messages, expected both to be, or neither")
    return Exchange(prompt, completion, tools(values))


def _instruction(
    values: Mapping[str, Any], family: Instruction, *, has_template: bool
) -> Exchange | Continuation:
    prompt = ask(values, family, has_template=has_template)
    answer = text(values, family.answer)
    if isinstance(prompt, str):
        return Continuation(prompt, answer)
    return Exchange(prompt, [{"role": "assistant", "content": answer}])


def ask(values: Mapping[str, Any], family: Instruction, *, has_template: bool) -> Text:
    """Return the question of an instruction: turns, or, without a template, headed sections."""
    question = text(values, family.question)
    context = optional_text(values, family.context)
    system = optional_text(values, family.system)
    if has_template:
        parts = [context, question] if family.context_first else [question, context]
        turn = {"role": "user", "content": "\n\n".join(part for part in parts if part)}
        return [{"role": "system", "content": system}, turn] if system else [turn]
    sections = [("Instruction", question), ("Input", context), ("Response", "")]
    body = "\n\n".join(
        f"### {name}:\n{content}" for name, content in sections if content is not None
    )
    return f"{system}\n\n{body}" if system else body


def _tokens(values: Mapping[str, Any]) -> Tokens:
    ids = integers(values, "input_ids")
    labels = integers(values, "labels") if values.get("labels") is not None else list(ids)
    mask = integers(values, "attention_mask") if values.get("attention_mask") else [1] * len(ids)
    if not len(ids) == len(labels) == len(mask):
        raise RowError(
            f"input_ids, labels and attention_mask have {len(ids)}, {len(labels)} and {len(mask)} "
            "entries, expected as many of each"
        )
    # Padding is added per batch; what was padded before is taken off.
    kept = [index for index, bit in enumerate(mask) if bit]
    return Tokens([ids[index] for index in kept], [labels[index] for index in kept])
