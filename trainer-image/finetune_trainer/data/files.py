"""Finds the files of a split and reads their rows one by one, whatever the size of the file."""

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure
from finetune_trainer.sources.wanted import is_data_file

type_names = {
    type(None): "null",
    str: "text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
"""What people call the types of JSON."""


@dataclass(frozen=True)
class Row:
    """One row and where it stands."""

    file: str
    number: int
    """Counts from 1 in its file."""
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return f"row {self.number} of {self.file}"


def split_files(folder: Path, split: str, source: str, field: str) -> list[Path]:
    """Return the files of a split, in order. Raises JobFailure when there is no such split.

    Splits are what the dataset card says, else what file and folder names say, by the rules of
    the datasets library; a lone file is the split `train`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    rows = [path for path in files if path.name != "README.md"]
    splits = {_lone_split(rows[0]): rows} if len(rows) == 1 else _splits(folder)
    if split not in splits:
        raise JobFailure(
            Reason.DATASET_NOT_FOUND,
            f"{field} is {split}, but {source} has {_named(splits)}: name one of them.",
        )
    return splits[split]


def _lone_split(path: Path) -> str:
    stem = path.name.split(".")[0].split("-")[0].lower()
    return stem if stem in {"test", "validation"} else "train"


def _named(splits: dict[str, list[Path]]) -> str:
    names = ", ".join(sorted(splits))
    return f"the splits {names}" if len(splits) > 1 else f"only the split {names or '(none)'}"


def _splits(folder: Path) -> dict[str, list[Path]]:
    try:
        patterns = _card_patterns(folder) or get_data_patterns(str(folder))
        found = DataFilesDict.from_patterns(patterns, base_path=str(folder))
    except (EmptyDatasetError, FileNotFoundError):
        return {}
    splits = {
        str(split): sorted(Path(name) for name in names if is_data_file(Path(name).name))
        for split, names in found.items()
    }
    return {split: files for split, files in splits.items() if files}


def _card_patterns(folder: Path) -> dict[str, list[str]] | None:
    """Return the files by split that the dataset card gives its default configuration."""
    card = folder / "README.md"
    if not card.exists():
        return None
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
    name = configs.get_default_config_name()
    chosen = configs.get(name) if name else None
    if not chosen or "data_files" not in chosen:
        return None
    from datasets.data_files import sanitize_patterns

    patterns: dict[str, list[str]] = sanitize_patterns(chosen["data_files"])
    return patterns


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON Lines, JSON, CSV or Parquet file."""
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet(path)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            yield from {"json": _json, "csv": _csv, "jsonl": _json_lines}[kind](stream, path.name)
    except UnicodeDecodeError as error:
        raise _invalid(f"{path.name} is not UTF-8 ({error.reason})") from error


def _kind(path: Path) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    if suffix in known:
        return known[suffix]
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        start = stream.read(4096).lstrip()
    # Hub datasets often name JSON Lines .json; keys of a ConfigMap often have no suffix.
    return "json" if start.startswith(b"[") else "jsonl"


def _json_lines(stream: TextIO, name: str) -> Iterator[Row]:
    number = 0
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        number += 1
        try:
            # Without the line's end, past which a line that is cut off would be said to be wrong.
            values = json.loads(text.rstrip())
        except json.JSONDecodeError as error:
            raise _invalid(
                f"line {line} of {name} is not valid JSON ({error.msg} at character "
                f"{error.pos + 1})"
            ) from error
        except ValueError as error:
            raise _invalid(f"line {line} of {name} cannot be read ({error})") from error
        yield _row(name, number, values)


def _json(stream: TextIO, name: str) -> Iterator[Row]:
    try:
        rows = json.load(stream)
    except ValueError as error:
        raise _invalid(f"{name} is not valid JSON ({error})") from error
    for number, values in enumerate(rows, start=1):
        yield _row(name, number, values)


def _csv(stream: TextIO, name: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    for number, values in enumerate(csv.DictReader(stream), start=1):
        if None in values or None in values.values():
            raise _invalid(f"row {number} of {name} has not as many fields as its header")
        yield Row(name, number, values)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise _invalid(f"{path.name} is not a Parquet file ({error})") from error
    number = 0
    for batch in file.iter_batches(batch_size=256):
        for values in batch.to_pylist():
            number += 1
            yield Row(path.name, number, values)


def _row(name: str, number: int, values: Any) -> Row:
    if not isinstance(values, dict):
        raise _invalid(
            f"row {number} of {name} is {type_names[type(values)]}, expected an object with columns"
        )
    return Row(name, number, values)


def _invalid(found: str) -> JobFailure:
    return JobFailure(Reason.DATA_INVALID, f"{found}: correct the file.")
