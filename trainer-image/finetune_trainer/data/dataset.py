"""Makes the token rows of a job: fetched files in, two folders of Arrow files out."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_from_disk
from pyarrow import compute
from transformers import PreTrainedTokenizerBase

from finetune_api.failures import Reason
from finetune_api.spec import DatasetPart, FineTuneJobSpec
from finetune_api.status import DatasetFacts, ModelFacts
from finetune_api.trainer import JobFailure
from finetune_trainer.data.examples import RowError, read_example
from finetune_trainer.data.files import Row, read_rows, split_files
from finetune_trainer.data.formats import Shape, recognise
from finetune_trainer.data.lengths import LengthPolicy, max_length
from finetune_trainer.data.render import Renderer, assistant_template
from finetune_trainer.durable import publish, read_json, remove, write_json
from finetune_trainer.logs import fields
from finetune_trainer.tokenizer import chat_template

log = logging.getLogger(__name__)

FACTS = "facts.json"
TRAIN, EVAL = "train", "eval"

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_PEEK = 100
"""Rows whose columns decide on the format; optional columns may be missing in some."""


@dataclass(frozen=True)
class FetchedPart:
    """One part of the mixture, its folder of files and its name in the spec."""

    part: DatasetPart
    folder: Path
    field: str
    """dataset, or dataset.mixture[N]."""

    def rows(self, split: str, split_field: str) -> Iterator[Row]:
        """Yield the rows of a split with columns renamed."""
        files = split_files(self.folder, split, self.part.source, split_field)
        for row in chain.from_iterable(read_rows(file) for file in files):
            yield self._renamed(row)

    def _renamed(self, row: Row) -> Row:
        renames = self.part.columns
        if not renames:
            return row
        absent = [name for name in renames if name not in row.values]
        if absent:
            raise JobFailure(
                Reason.DATA_INVALID,
                f"{self.field}.columns renames {absent[0]}, but {row.place} of {self.part.source} "
                f"has only {', '.join(row.values)}: correct the name.",
            )
        return Row(row.file, row.number, {renames.get(k, k): v for k, v in row.values.items()})

    def shape(self, spec: FineTuneJobSpec) -> Shape:
        """Return the format by the first rows. Raises JobFailure when empty or unfit."""
        head = list(islice(self.rows(self.part.split, f"{self.field}.split"), _PEEK))
        if not head:
            raise JobFailure(
                Reason.DATA_INVALID,
                f"split {self.part.split} of {self.part.source} is empty: expected rows.",
            )
        columns = set[str]().union(*(row.values for row in head))
        return recognise(columns, self.part.format, spec.method, self.part.source)


def parts_of(spec: FineTuneJobSpec) -> list[tuple[str, DatasetPart]]:
    """Return the mixture with each part's name in the spec; a single source is a mixture of one."""
    dataset = spec.dataset
    if dataset.mixture is not None:
        return [(f"dataset.mixture[{i}]", part) for i, part in enumerate(dataset.mixture)]
    part = DatasetPart(
        source=dataset.source or "",
        secret=dataset.secret,
        split=dataset.split,
        format=dataset.format,
        columns=dataset.columns,
    )
    return [("dataset", part)]


@dataclass(frozen=True)
class DatasetBuilder:
    """Renders, cuts, mixes and splits the rows of one job."""

    spec: FineTuneJobSpec
    model: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    parts: list[FetchedPart]
    shapes: list[Shape]

    def build(self, target: Path) -> DatasetFacts:
        """Write target/train, target/eval (when rows are held out) and the facts, or nothing."""
        staging = target.with_name(f".{target.name}.partial")
        remove(staging)
        staging.mkdir(parents=True)
        policy = LengthPolicy(
            max_length(self.spec, self.model.max_positions), self.spec.dataset.too_long
        )
        scratch = staging / "parts"
        scratch.mkdir()
        train = self._mixed(scratch, policy)
        held_out = self._eval_split(scratch, policy)
        policy.check(
            is_set=self.spec.training.max_length is not None,
            max_positions=self.model.max_positions,
        )
        train, held_out = self._split(train, held_out)
        facts = self._save(staging, train, held_out, policy.dropped)
        remove(scratch)
        write_json(staging / FACTS, facts.to_json())
        remove(target)
        publish(staging, target)
        return facts

    def _mixed(self, scratch: Path, policy: LengthPolicy) -> Dataset:
        """Return the training rows: all of a single source, shares by weight of several.

        A mixture is as large as it can be without repeating a row.
        """
        weights = [fetched.part.weight for fetched in self.parts]
        shares = [weight / sum(weights) for weight in weights]
        limit = self.spec.dataset.max_samples
        tables = [
            self._render(
                scratch / f"train-{index}.arrow",
                fetched.rows(fetched.part.split, f"{fetched.field}.split"),
                shape,
                policy,
                None if limit is None else max(1, round(limit * share)),
            )
            for index, (fetched, shape, share) in enumerate(
                zip(self.parts, self.shapes, shares, strict=True)
            )
        ]
        if len(tables) == 1:
            return tables[0]
        total = min(len(table) / share for table, share in zip(tables, shares, strict=True))
        taken = [
            self._sample(table, round(total * share), fetched)
            for table, share, fetched in zip(tables, shares, self.parts, strict=True)
        ]
        return concatenate_datasets(taken)

    def _sample(self, table: Dataset, rows: int, fetched: FetchedPart) -> Dataset:
        log.info(
            "mixing", extra=fields(source=fetched.part.source, rows=rows, available=len(table))
        )
        order = np.random.default_rng(self.spec.training.seed).permutation(len(table))
        return table.select(order[:rows], keep_in_memory=True)

    def _eval_split(self, scratch: Path, policy: LengthPolicy) -> Dataset | None:
        split = self.spec.dataset.eval_split
        if split is None:
            return None
        tables = [
            self._render(
                scratch / f"eval-{index}.arrow",
                fetched.rows(split, "dataset.evalSplit"),
                shape,
                policy,
                self.spec.dataset.max_samples,
            )
            for index, (fetched, shape) in enumerate(zip(self.parts, self.shapes, strict=True))
        ]
        return concatenate_datasets(tables)

    def _split(self, train: Dataset, held_out: Dataset | None) -> tuple[Dataset, Dataset | None]:
        fraction = self.spec.dataset.eval_fraction
        if not len(train):
            raise JobFailure(
                Reason.DATA_INVALID,
                "no training row is left after those that are too long were dropped: raise "
                "training.maxLength.",
            )
        if not fraction:
            return train, held_out
        if len(train) < 2:
            raise JobFailure(
                Reason.DATA_INVALID,
                f"dataset.evalFraction is {fraction}, but there is only one row: add rows.",
            )
        rows = max(1, round(len(train) * fraction))
        order = np.random.default_rng(self.spec.training.seed).permutation(len(train))
        return (
            train.select(order[rows:], keep_in_memory=True),
            train.select(order[:rows], keep_in_memory=True),
        )

    def _render(
        self, path: Path, rows: Iterator[Row], shape: Shape, policy: LengthPolicy, limit: int | None
    ) -> Dataset:
        """Write rows as tokens to an Arrow file and return it, mapped into memory."""
        renderer = self._renderer(shape)
        has_template = chat_template(self.tokenizer) is not None
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            kept: list[dict[str, Any]] = []
            for row in islice(rows, limit):
                try:
                    example = read_example(row.values, shape, has_template=has_template)
                    tokens = policy.apply(renderer.render(example), row.place)
                except RowError as error:
                    raise JobFailure(
                        Reason.DATA_INVALID, f"{row.place}: {error}; correct or remove the row."
                    ) from error
                if tokens is not None:
                    kept.append({"input_ids": tokens.input_ids, "labels": tokens.labels})
                if len(kept) == 1000:
                    writer.write_batch(pa.RecordBatch.from_pylist(kept, _SCHEMA))
                    kept.clear()
            writer.write_batch(pa.RecordBatch.from_pylist(kept, _SCHEMA))
        return Dataset.from_file(str(path))

    def _renderer(self, shape: Shape) -> Renderer:
        training = self.spec.training
        return Renderer(
            self.tokenizer,
            self.model.vocabulary,
            assistant_template(self.tokenizer, shape.format, training.assistant_only_loss),
            completion_only=training.extra.get("completion_only_loss") is not False,
        )

    def _save(
        self, folder: Path, train: Dataset, held_out: Dataset | None, dropped: int
    ) -> DatasetFacts:
        train.save_to_disk(str(folder / TRAIN))
        if held_out is not None:
            held_out.save_to_disk(str(folder / EVAL))
        lengths = row_lengths(load_from_disk(str(folder / TRAIN)))
        longest_held_out = row_lengths(held_out).max(initial=0) if held_out is not None else 0
        return DatasetFacts(
            format="+".join(dict.fromkeys(shape.format.value for shape in self.shapes)),
            rows=len(lengths),
            eval_rows=0 if held_out is None else len(held_out),
            tokens=int(lengths.sum()),
            max_tokens=int(max(lengths.max(), longest_held_out)),
            mean_tokens=round(float(lengths.mean()), 1),
            p95_tokens=int(np.percentile(lengths, 95)),
            dropped=dropped,
        )


def row_lengths(rows: Dataset) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the tokens of each row."""
    table = rows.flatten_indices(keep_in_memory=True).data.table
    lengths: list[int] = compute.list_value_length(table.column("input_ids")).to_pylist()
    return np.array(lengths, dtype=np.int64)


def saved_facts(folder: Path) -> DatasetFacts | None:
    """Return the facts of token rows that are there and complete, else None."""
    facts = read_json(folder / FACTS)
    return None if facts is None else DatasetFacts.model_validate(facts)


def load_rows(folder: Path, split: str) -> Dataset | None:
    """Return token rows with the columns input_ids and labels, or None when there are none."""
    return load_from_disk(str(folder / split)) if (folder / split).exists() else None
