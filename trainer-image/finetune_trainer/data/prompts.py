"""How rows of prompts are stored: every column as JSON text, so that values come back as they are.

Arrow would force one type on a column, and the same fields on all objects in it.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure

_TAKEN = {
    "prompts",
    "completions",
    "completion_ids",
    "image",
    "images",
    "environments",
    "trainer_state",
    "log_extra",
    "log_metric",
}
"""Names that TRL gives a meaning of its own, as arguments of rewards or parts of prompts."""


def with_real_columns(splits: dict[str, Dataset], folder: Path) -> dict[str, Dataset]:
    """Return rows of finetune_trainer.data.records.Prompt with a column for each of the data's.

    All splits get the columns of all. Raises JobFailure when prompts are of two sorts, or a column
    has a name that is taken.
    """
    sorts = {is_chat for rows in splits.values() for is_chat in rows["is_chat"]}
    if len(sorts) > 1:
        raise JobFailure(
            Reason.DATA_INVALID,
            "some prompts are text and others are lists of messages, expected one of the two: "
            "write the text as messages [{role: user, content: TEXT}].",
        )
    names = {
        name for rows in splits.values() for text in rows["columns"] for name in json.loads(text)
    }
    if taken := sorted(names & _TAKEN):
        raise JobFailure(
            Reason.DATA_INVALID,
            f"the rows have the column {taken[0]}, a name with a meaning of its own while the "
            "model answers prompts: rename the column with dataset.columns.",
        )
    schema = pa.schema([(name, pa.string()) for name in sorted(names)])
    return {
        split: _rewritten(rows, folder / f"{split}.arrow", schema) for split, rows in splits.items()
    }


def _rewritten(rows: Dataset, path: Path, schema: pa.Schema) -> Dataset:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in rows.iter(1000):
            columns = [json.loads(text) for text in batch["columns"]]
            writer.write_batch(pa.RecordBatch.from_pylist(columns, schema))
    return Dataset.from_file(str(path))


def decoded(batch: dict[str, list[str | None]]) -> dict[str, list[Any]]:
    """Return rows with the values that the data has; None where a row lacks a column."""
    return {
        name: [None if text is None else json.loads(text) for text in texts]
        for name, texts in batch.items()
    }
