"""Makes the token rows of a job: fetched files in, two folders of Arrow files out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import PreTrainedTokenizerBase

from finetune_api.failures import Reason
from finetune_api.formats import Shape
from finetune_api.lengths import padded_tokens, row_limit
from finetune_api.spec import ONLINE, DatasetFormat, FineTuneJobSpec, Method
from finetune_api.status import DatasetFacts, ModelFacts
from finetune_api.trainer import JobFailure
from finetune_trainer.data.cells import RowError
from finetune_trainer.data.examples import read_demonstration
from finetune_trainer.data.files import Row
from finetune_trainer.data.lengths import LengthPolicy
from finetune_trainer.data.parts import FetchedPart
from finetune_trainer.data.preferences import read_comparison, read_judgement
from finetune_trainer.data.prompts import decoded, with_real_columns
from finetune_trainer.data.questions import read_answered, read_question
from finetune_trainer.data.records import Completion, Pair, Prompt, Record, Tokens
from finetune_trainer.data.render import Example, Renderer, assistant_template
from finetune_trainer.durable import publish, read_json, remove, write_json
from finetune_trainer.logs import fields
from finetune_trainer.tokenizer import chat_template

log = logging.getLogger(__name__)

FACTS = "facts.json"
TRAIN, EVAL = "train", "eval"

_RECORDS: dict[Method, type[Record]] = {
    Method.SFT: Tokens,
    Method.DPO: Pair,
    Method.ORPO: Pair,
    Method.REWARD: Pair,
    Method.KTO: Completion,
    Method.GRPO: Prompt,
    Method.EBFT: Prompt,
}
"""What is stored of a row for each method."""


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
        policy = LengthPolicy(row_limit(self.spec, self.model.max_positions))
        scratch = staging / "parts"
        scratch.mkdir()
        train = self._mixed(scratch, policy)
        held_out = self._eval_split(scratch, policy)
        policy.check()
        train, held_out = self._split(train, held_out)
        facts = self._save(staging, train, held_out, policy)
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
        return table.select(
            self._order(len(table), self._group)[: rows - rows % self._group], keep_in_memory=True
        )

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
        if len(train) < 2 * self._group:
            raise JobFailure(
                Reason.DATA_INVALID,
                f"dataset.evalFraction is {fraction}, but there is only one row: add rows.",
            )
        order = self._order(len(train), self._group)
        rows = max(1, round(len(train) / self._group * fraction)) * self._group
        return (
            train.select(order[rows:], keep_in_memory=True),
            train.select(order[:rows], keep_in_memory=True),
        )

    @property
    def _group(self) -> int:
        """Stored rows that belong together: no prompt may be both trained on and held out."""
        pairs = all(shape.format is DatasetFormat.PREFERENCE for shape in self.shapes)
        return 2 if pairs and self._kind is Completion else 1

    def _order(self, rows: int, group: int = 1) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Return all row numbers in random order, those of a group behind each other."""
        order = np.random.default_rng(self.spec.training.seed).permutation(rows // group)
        indices: np.ndarray[Any, np.dtype[np.int64]] = order[:, None] * group + np.arange(group)
        return indices.ravel()

    def _render(
        self, path: Path, rows: Iterator[Row], shape: Shape, policy: LengthPolicy, limit: int | None
    ) -> Dataset:
        """Write rows as they are stored to an Arrow file and return it, mapped into memory."""
        renderer = self._renderer(shape)
        schema = self._kind.SCHEMA
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            kept: list[dict[str, Any]] = []
            for row in islice(rows, limit):
                try:
                    record = policy.apply(self._record(row, shape, renderer), row.place)
                except RowError as error:
                    raise JobFailure(
                        Reason.DATA_INVALID, f"{row.place}: {error}; correct or remove the row."
                    ) from error
                if record is not None:
                    kept += [vars(stored) for stored in self._stored(record)]
                if len(kept) >= 1000:
                    writer.write_batch(pa.RecordBatch.from_pylist(kept, schema))
                    kept.clear()
            writer.write_batch(pa.RecordBatch.from_pylist(kept, schema))
        return Dataset.from_file(str(path))

    @property
    def _kind(self) -> type[Record]:
        return _RECORDS[self.spec.method]

    def _record(self, row: Row, shape: Shape, renderer: Renderer) -> Record:
        read: Callable[..., Example] = read_demonstration
        if self.spec.method is Method.EBFT:
            read = read_answered
        elif self.spec.method in ONLINE:
            read = read_question
        elif shape.format is DatasetFormat.PREFERENCE:
            read = read_comparison
        elif shape.format is DatasetFormat.UNPAIRED_PREFERENCE:
            read = read_judgement
        has_template = chat_template(self.tokenizer) is not None
        return renderer.render(read(row.values, shape, has_template=has_template))

    def _stored(self, record: Record) -> list[Record]:
        """Return a row's records: KTO takes the answers of a pair one by one."""
        if isinstance(record, Pair) and self._kind is Completion:
            return [*record.split()]
        return [record]

    def _renderer(self, shape: Shape) -> Renderer:
        training = self.spec.training
        return Renderer(
            self.tokenizer,
            self.model.vocabulary,
            assistant_template(self.tokenizer, shape.format, training.assistant_only_loss),
            completion_only=training.extra.get("completion_only_loss") is not False,
            template_options=training.extra.get("chat_template_kwargs") or {},
        )

    def _save(
        self, folder: Path, train: Dataset, held_out: Dataset | None, policy: LengthPolicy
    ) -> DatasetFacts:
        splits = {TRAIN: train} | ({} if held_out is None else {EVAL: held_out})
        if self.spec.method is Method.KTO:
            # TRL reads them in this order, epoch by epoch, and compares neighbours.
            splits = {
                name: rows.select(self._order(len(rows)), keep_in_memory=True)
                for name, rows in splits.items()
            }
        lengths = {name: self._lengths(rows) for name, rows in splits.items()}
        if self._kind is Prompt:
            splits = with_real_columns(splits, folder / "parts")
        for name, rows in splits.items():
            rows.save_to_disk(str(folder / name))
        longest = max(int(values.max(initial=0)) for values in lengths.values())
        return DatasetFacts(
            format="+".join(dict.fromkeys(shape.format.value for shape in self.shapes)),
            rows=len(train),
            eval_rows=0 if held_out is None else len(held_out),
            tokens=int(lengths[TRAIN].sum()),
            max_tokens=longest + policy.limit.reserved,
            mean_tokens=round(float(lengths[TRAIN].mean()), 1),
            p95_tokens=int(np.percentile(lengths[TRAIN], 95)),
            padded_tokens=padded_tokens(Counter(lengths[TRAIN].tolist())),
            dropped=policy.dropped,
        )

    def _lengths(self, rows: Dataset) -> "np.ndarray[Any, np.dtype[np.int64]]":
        table = rows.flatten_indices(keep_in_memory=True).data.table
        return np.array(self._kind.lengths(table).to_pylist(), dtype=np.int64)


def saved_facts(folder: Path) -> DatasetFacts | None:
    """Return the facts of token rows that are there and complete, else None."""
    facts = read_json(folder / FACTS)
    return None if facts is None else DatasetFacts.model_validate(facts)


def load_rows(folder: Path, split: str) -> Dataset | None:
    """Return the rows as their method trains on them, or None when there are none.

    Columns of tokens are lists of whole numbers: those of finetune_trainer.data.records. Rows of
    prompts have the columns of the data: prompt and whatever rewards read.
    """
    if not (folder / split).exists():
        return None
    rows = load_from_disk(str(folder / split))
    return rows.with_transform(decoded) if "prompt" in rows.column_names else rows
