"""A local data file: how many rows, how long, which columns."""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_api.formats import format_of
from finetune_api.spec import DatasetFormat
from finetune_operator.plugin.errors import PluginError

CHARACTERS_PER_TOKEN: Final = 3
"""Taken low, so that rows are taken to be long: English text has more characters to a token."""


@dataclass(frozen=True)
class DataFile:
    """What a plan and a recommendation need to know of a file of rows."""

    path: Path
    rows: int
    columns: frozenset[str]
    characters: int
    """Of all rows."""
    longest: int
    """Characters of the longest row."""

    @property
    def format(self) -> DatasetFormat | None:
        """The format by the columns; None when there is none."""
        return format_of(self.columns)


def read_data_file(path: Path) -> DataFile:
    """Return what a JSON Lines, JSON or CSV file holds; PluginError when it cannot be read."""
    columns: set[str] = set()
    rows = characters = longest = 0
    try:
        for row in _rows(path):
            columns |= row.keys()
            length = sum(len(text) for text in _texts(row))
            rows, characters, longest = rows + 1, characters + length, max(longest, length)
    except OSError as error:
        raise PluginError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PluginError(f"{path} is not UTF-8: convert it, or name the right file.") from error
    if not columns:
        raise PluginError(f"{path} has no rows with columns: name a file with data.")
    return DataFile(path, rows, frozenset(columns), characters, longest)


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


def _texts(value: Any) -> Iterator[str]:
    """Yield all text in a row, however deep; names of columns are not read by a model."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
