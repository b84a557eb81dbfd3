"""What preparation stores of a row: one Arrow schema for each kind of training."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import pyarrow as pa
from pyarrow import compute

IGNORED = -100
"""Label of tokens that are read but not learned, as in torch's cross entropy."""

_IDS = pa.list_(pa.int32())


class Record(Protocol):
    """One stored row; its fields are the columns."""

    SCHEMA: ClassVar[pa.Schema]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence in it."""

    def cut(self, limit: int) -> Self | None:
        """Return it with sequences of at most limit tokens, None when that leaves too little."""

    @staticmethod
    def lengths(table: pa.Table) -> pa.ChunkedArray:
        """Return the length of each row of a stored table."""


@dataclass(frozen=True)
class Tokens:
    """One sequence; labels are -100 where nothing is learned."""

    SCHEMA: ClassVar = pa.schema([("input_ids", _IDS), ("labels", _IDS)])

    input_ids: list[int]
    labels: list[int]

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return len(self.input_ids)

    def cut(self, limit: int) -> "Tokens | None":
        """Keep the start. A prompt that fills the row leaves nothing to learn."""
        labels = self.labels[:limit]
        if all(label == IGNORED for label in labels):
            return None
        return Tokens(self.input_ids[:limit], labels)

    @staticmethod
    def lengths(table: pa.Table) -> pa.ChunkedArray:
        """Return the tokens of each row."""
        return compute.list_value_length(table.column("input_ids"))


@dataclass(frozen=True)
class Completion:
    """A prompt with a completion that is desirable or not, as TRL's KTOTrainer reads it."""

    SCHEMA: ClassVar = pa.schema(
        [("prompt_ids", _IDS), ("completion_ids", _IDS), ("label", pa.bool_())]
    )

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def cut(self, limit: int) -> "Completion | None":
        """Keep the start of the completion; none of it is left after a prompt of limit tokens."""
        room = limit - len(self.prompt_ids)
        if room < 1:
            return None
        return Completion(self.prompt_ids, self.completion_ids[:room], self.label)

    @staticmethod
    def lengths(table: pa.Table) -> pa.ChunkedArray:
        """Return the tokens of each row."""
        prompts, completions = (
            compute.list_value_length(table.column(name)) for name in table.column_names[:2]
        )
        return compute.add(prompts, completions)


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse completion, as TRL's DPOTrainer reads it."""

    SCHEMA: ClassVar = pa.schema(
        [("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS)]
    )

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer completion."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def cut(self, limit: int) -> "Pair | None":
        """Keep the start of the completions, as long as that leaves a difference between them."""
        room = limit - len(self.prompt_ids)
        if room < 1 or self.chosen_ids[:room] == self.rejected_ids[:room]:
            return None
        return Pair(self.prompt_ids, self.chosen_ids[:room], self.rejected_ids[:room])

    def split(self) -> list[Completion]:
        """Return the pair as a desirable and an undesirable completion."""
        return [
            Completion(self.prompt_ids, self.chosen_ids, label=True),
            Completion(self.prompt_ids, self.rejected_ids, label=False),
        ]

    @staticmethod
    def lengths(table: pa.Table) -> pa.ChunkedArray:
        """Return the tokens of each row's longer sequence."""
        prompts, chosen, rejected = (
            compute.list_value_length(table.column(name)) for name in table.column_names
        )
        return compute.add(prompts, compute.max_element_wise(chosen, rejected))


@dataclass(frozen=True)
class Prompt:
    """A prompt that is answered while training, with all that rewards read.

    Rows need not have the same columns, nor a column values of one type.
    """

    SCHEMA: ClassVar = pa.schema(
        [("columns", pa.string()), ("is_chat", pa.bool_()), ("tokens", pa.int32())]
    )

    columns: str
    """JSON: the JSON text of each column's value, by the column's name."""
    is_chat: bool
    """Whether the prompt is a list of messages, not text."""
    tokens: int
    """Of the prompt, as the model reads it."""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.tokens

    def cut(self, limit: int) -> None:
        """Return None: what is left of a prompt that is cut asks something else."""

    @staticmethod
    def lengths(table: pa.Table) -> pa.ChunkedArray:
        """Return the tokens of each row's prompt."""
        return table.column("tokens")
