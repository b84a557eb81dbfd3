"""The parts of a job's data: their fetched files, and what their rows look like."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from finetune_api.failures import Reason
from finetune_api.formats import Shape, recognise
from finetune_api.spec import DatasetPart, FineTuneJobSpec
from finetune_api.trainer import JobFailure
from finetune_trainer.data.files import Row, read_rows, split_files

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
