"""How long the rows of local data are for a method, estimated without the model's tokenizer.

It counts what preparation would count: of a pair the longer answer, of online methods the prompt.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from finetune_api.formats import RANKED, Shape
from finetune_api.spec import ONLINE, DatasetFormat, Method

Row = Mapping[str, Any]

CHARACTERS_PER_TOKEN: Final = 3
"""Taken low, so that rows are taken to be long: English text has more characters to a token."""


def tokens(row: Row, shape: Shape | None, method: Method | None) -> int:
    """Return about how many tokens of a row a method reads; of all its text without a shape."""
    if shape is None:
        return _tokens(_size(row.values()))
    if shape.format is DatasetFormat.TOKENIZED:
        ids = row.get("input_ids")
        return len(ids) if isinstance(ids, list) else 0
    if shape.chat_column is not None:
        chat = row.get(shape.chat_column)
        asked = chat[:-1] if method in ONLINE and isinstance(chat, list) else chat
        return _tokens(_size(asked))
    question = _size(row.get(column) for column in _question(shape))
    if method in ONLINE:
        return _tokens(question)
    return _tokens(max((_answered(answer, question) for answer in _answers(row, shape)), default=0))


def _question(shape: Shape) -> tuple[str, ...]:
    """Return the columns of what is asked."""
    family = shape.instruction
    if family is not None:
        named = (family.question, family.context, family.system)
        return tuple(column for column in named if column is not None)
    is_asked = shape.format in {DatasetFormat.PROMPT, DatasetFormat.PROMPT_COMPLETION}
    return ("prompt",) if is_asked else ()


def _answers(row: Row, shape: Shape) -> Iterator[Any]:
    """Yield the answers of which each makes a sequence of its own."""
    if shape.judged == (RANKED,):
        ranked = row.get(RANKED)
        yield from ranked if isinstance(ranked, list) else [ranked]
    elif shape.judged:
        yield from (row.get(column) for column in shape.judged)
    elif shape.instruction is not None:
        yield row.get(shape.instruction.answer)
    else:
        is_text = shape.format is DatasetFormat.COMPLETION
        yield row.get("text" if is_text else "completion")


def _answered(answer: Any, question: int) -> int:
    """Return the characters of a question with an answer; several turns begin with the question."""
    repeats = isinstance(answer, list) and len(answer) > 1
    return _size(answer) + (0 if repeats else question)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _size(value: Any) -> int:
    """Return the characters of all text in a value, however deep; names are not read by a model."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return _size(value.values())
    return sum(map(_size, value)) if isinstance(value, Iterable) else 0
