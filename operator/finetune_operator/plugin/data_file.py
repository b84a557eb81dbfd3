"""A local data file: how many rows, how long, which columns."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from finetune_api.formats import Shape, format_of, recognise
from finetune_api.spec import Dataset, DatasetFormat, DatasetPart, FineTuneJobSpec, Method
from finetune_api.trainer import JobFailure
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.row_lengths import Row, tokens

_PEEK: Final = 100
"""Rows whose columns decide on the format, as in preparation."""


@dataclass(frozen=True)
class Reading:
    """How a job reads its rows."""

    method: Method
    parts: tuple[tuple[DatasetFormat, tuple[tuple[str, str], ...]], ...]
    """Format and new names of columns of each part of its data, of which a file is one."""

    @classmethod
    def of(cls, spec: FineTuneJobSpec) -> "Reading":
        """Return how a job reads its rows."""
        parts: Sequence[Dataset | DatasetPart] = spec.dataset.mixture or [spec.dataset]
        found = tuple((part.format, tuple(part.columns.items())) for part in parts)
        return cls(spec.method, found)


@dataclass(frozen=True)
class DataFile:
    """What a plan and a recommendation need to know of a file of rows."""

    path: Path
    columns: frozenset[str]
    lengths: Mapping[int, int]
    """How many rows there are of each length in tokens, about."""
    read_as: DatasetFormat | None
    """The format that the job reads them as; None when they do not fit it."""
    misfit: str
    """Why preparation would refuse them, if it is their columns."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(self.lengths.values())

    @property
    def longest(self) -> int:
        """Tokens of the longest row, about."""
        return max(self.lengths)

    @property
    def format(self) -> DatasetFormat | None:
        """The format by the columns; None when there is none."""
        return format_of(self.columns)


@cache
def read_data_file(path: Path, reading: Reading | None = None) -> DataFile:
    """Return what a JSON Lines, JSON or CSV file holds; PluginError when it cannot be read.

    Without a reading, all text in a row counts as its length.
    """
    columns: set[str] = set()
    lengths: Counter[int] = Counter()
    method = reading.method if reading else None
    try:
        rows = _rows(path)
        head = list(islice(rows, _PEEK))
        shape, renames, misfit = _recognised(head, path, reading)
        for row in chain(head, rows):
            columns |= row.keys()
            lengths[tokens(_renamed(row, renames), shape, method)] += 1
    except OSError as error:
        raise PluginError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PluginError(f"{path} is not UTF-8: convert it, or name the right file.") from error
    if not columns:
        raise PluginError(f"{path} has no rows with columns: name a file with data.")
    form = shape.format if shape else None
    return DataFile(path, frozenset(columns), lengths, form, misfit)


def _recognised(
    head: Sequence[Row], path: Path, reading: Reading | None
) -> tuple[Shape | None, dict[str, str], str]:
    """Return the shape of the rows, how columns are renamed for it, and why there is none."""
    columns = set[str]().union(*head)
    misfit = ""
    if reading is None:
        return None, {}, misfit
    for wanted, names in reading.parts:
        renames = dict(names)
        renamed = {renames.get(name, name) for name in columns}
        try:
            return recognise(renamed, wanted, reading.method, path.name), renames, ""
        except JobFailure as failure:
            misfit = failure.message
    return None, {}, misfit


def _renamed(row: Row, renames: dict[str, str]) -> Row:
    return {renames.get(name, name): value for name, value in row.items()} if renames else row


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        raise PluginError(
            f"{path} is Parquet, which is read in the cluster only: give plan --rows and --tokens,"
            " or recommend --have."
        )
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if path.suffix == ".csv":
            csv.field_size_limit(sys.maxsize)
            yield from csv.DictReader(stream)
            return
        start = stream.read(1)
        stream.seek(0)
        if start == "[":
            yield from (_row(path, number, values) for number, values in _list(path, stream.read()))
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _row(path, number, _value(path, number, line))


def _list(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    yield from enumerate(_value(path, 1, text), start=1)


def _value(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PluginError(f"line {number} of {path} is not JSON: correct it.") from error


def _row(path: Path, number: int, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise PluginError(f"row {number} of {path} is no object with columns: correct it.")
    return values
