"""What a plan rests on when no preparation has measured it: flags, files, the catalogue."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api.lengths import MAX_LENGTH, RowLimit, padded_tokens, row_limit
from finetune_api.sources import JOB_SCHEME
from finetune_api.spec import ONLINE, DatasetFormat, FineTuneJobSpec
from finetune_api.status import DatasetFacts, ModelFacts, Preparation
from finetune_api.trainer import JobFailure
from finetune_operator.planning.architecture import (
    ArchitectureError,
    facts_of_config,
    facts_of_name,
    facts_of_size,
)
from finetune_operator.plugin.data_file import DataFile, Reading, read_data_file
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.row_lengths import CHARACTERS_PER_TOKEN

ASSUMED_ROWS: Final = 1000
ASSUMED_TOKENS: Final = 2048
_UNITS: Final = (("T", 1e12), ("B", 1e9), ("M", 1e6))
_UNLIMITED: Final = 1 << 20
"""Positions of a model of which only the size is known."""


@dataclass(frozen=True)
class Known:
    """What the user says of model and data."""

    config: Path | None = None
    """A config.json, or the folder of a model."""
    parameters: str | None = None
    """Size of the model, such as 8B."""
    data: Path | None = None
    rows: int | None = None
    tokens: int | None = None
    """Tokens of the longest row; of its prompt for online methods."""


@dataclass(frozen=True)
class Basis:
    """The facts, and in words where they come from."""

    preparation: Preparation
    notes: tuple[str, ...]
    refusal: str = ""
    """Why preparation would refuse the job, in its own words."""
    enough: int | None = None
    """The training.maxLength with which it would not."""


@dataclass(frozen=True)
class _Rows:
    """What is known of the rows, and what is assumed."""

    data: DataFile | None
    known: Known

    @property
    def count(self) -> int:
        return self.known.rows or (self.data.rows if self.data else ASSUMED_ROWS)

    @property
    def longest(self) -> int:
        """Tokens of the longest, before it is cut."""
        return self.known.tokens or (max(1, self.data.longest) if self.data else ASSUMED_TOKENS)

    def lengths(self, longest: int) -> Counter[int]:
        """Return how many rows there are of each length when they are cut to the longest.

        Without data all lengths are taken to be as frequent.
        """
        if self.data is None:
            return Counter(range(longest + 1))
        cut: Counter[int] = Counter()
        for length, count in self.data.lengths.items():
            cut[min(length, longest)] += count
        return cut

    @property
    def are_measured(self) -> bool:
        """Whether the length of the longest row is known, if only by its characters."""
        return self.known.tokens is not None or (self.data is not None and not self.data.misfit)


def basis(spec: FineTuneJobSpec, known: Known) -> Basis:
    """Return the facts of a job; PluginError when nothing tells what the model is."""
    model, model_note = _model(spec, known)
    rows = _Rows(read_data_file(known.data, Reading.of(spec)) if known.data else None, known)
    refusal, enough, longest, reserved = "", None, rows.longest, 0
    try:
        limit = row_limit(spec, model.max_positions)
    except JobFailure as failure:
        refusal = failure.message
    else:
        reserved = limit.reserved
        if _is_refused(rows, limit):
            refusal = limit.refusal(_longest_row(rows), longest)
            enough = limit.enough(longest) if limit.raised == MAX_LENGTH else None
        else:
            longest = min(longest, limit.tokens)
    dataset = _dataset(spec, rows, longest, reserved)
    notes = (model_note, *_notes(spec, rows, dataset, longest))
    return Basis(Preparation(model=model, dataset=dataset), notes, refusal, enough)


def _model(spec: FineTuneJobSpec, known: Known) -> tuple[ModelFacts, str]:
    try:
        if known.config is not None:
            model = facts_of_config(_read_config(known.config))
            return model, f"Model: {_describe(model)}, by {known.config}."
        if known.parameters is not None:
            name, model = facts_of_size(known.parameters)
            model = model.model_copy(update={"max_positions": _UNLIMITED})
            return model, f"Model: {_describe(model)}, shaped like {name}, by --parameters."
    except ArchitectureError as error:
        raise PluginError(str(error)) from error
    source = spec.model.source
    found = facts_of_name(source)
    if found is None:
        what = "another job's model" if source.startswith(JOB_SCHEME) else "not in the catalogue"
        raise PluginError(
            f"model.source {source} is {what}: give its config.json with --config, or its size with"
            " --parameters 8B."
        )
    name, model = found
    return model, f"Model: {_describe(model)}, as {name} in the catalogue."


def _read_config(path: Path) -> dict[str, object]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PluginError(f"--config {file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PluginError(f"--config {file} is not JSON: name a model's config.json.") from error
    if not isinstance(config, dict):
        raise PluginError(f"--config {file} is no object: name a model's config.json.")
    return config


def _describe(model: ModelFacts) -> str:
    return (
        f"{_count(model.parameters)} weights in {_counted(model.layers, 'layer')} of width"
        f" {model.hidden_size}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _count(weights: int) -> str:
    # From 999.5 million on they are told in billions.
    unit, size = next((unit for unit in _UNITS if weights >= 0.9995 * unit[1]), _UNITS[-1])
    return f"{weights / size:.3g}{unit}"


def _is_refused(rows: _Rows, limit: RowLimit) -> bool:
    """Tell whether preparation fails over a row that is too long; rows that are assumed fit."""
    return rows.are_measured and limit.action == "fail" and rows.longest > limit.tokens


def _longest_row(rows: _Rows) -> str:
    if rows.known.tokens is not None or rows.data is None:
        return f"the longest row has {rows.longest} tokens"
    name, scale = rows.data.path.name, _scale(rows.data)
    about = f"about {rows.longest} tokens{scale} (give --tokens if you know better)"
    return f"the longest row of {name} has {about if scale else f'{rows.longest} tokens'}"


def _scale(data: DataFile) -> str:
    """Return by what tokens were estimated; empty where they are there."""
    is_exact = data.read_as is DatasetFormat.TOKENIZED
    return "" if is_exact else f" at {CHARACTERS_PER_TOKEN} characters to a token"


def _dataset(spec: FineTuneJobSpec, rows: _Rows, longest: int, reserved: int) -> DatasetFacts:
    """Return the facts of the data as preparation would, with the longest row as it is trained."""
    data, counts = rows.data, rows.lengths(longest)
    each = sorted(counts.elements())
    mean = sum(each) / len(each)
    return DatasetFacts(
        format=(data.read_as or data.format if data else None) or spec.dataset.format,
        rows=rows.count,
        eval_rows=0,
        tokens=round(rows.count * mean),
        max_tokens=longest + reserved,
        mean_tokens=mean,
        p95_tokens=each[int(0.95 * len(each))],
        padded_tokens=padded_tokens(counts),
    )


def _notes(spec: FineTuneJobSpec, rows: _Rows, facts: DatasetFacts, longest: int) -> Iterator[str]:
    """Yield what is given of the data, what is estimated and what is assumed."""
    data, known = rows.data, rows.known
    measured = rows.longest if known.tokens or data else longest
    otherwise = f"by {data.path.name}{_scale(data)}" if data else "assumed"
    counted = f"by {data.path.name}" if data else "assumed"
    parts = (
        (_counted(rows.count, "row"), "given" if known.rows else counted),
        (
            f"the longest{' prompt' if spec.method in ONLINE else ''} of {measured:,} tokens",
            "given" if known.tokens else otherwise,
        ),
        (f"{facts.mean_tokens:,.0f} on average", otherwise),
    )
    advice = (
        "" if data or (known.rows and known.tokens) else "; give --data, or --rows and --tokens"
    )
    if known.rows or known.tokens:
        yield f"Data: {', '.join(f'{text} ({origin})' for text, origin in parts)}{advice}."
    else:
        yield f"Data: {', '.join(text for text, _ in parts)}, all {otherwise}{advice}."
    if rows.are_measured and measured > longest:
        action = spec.dataset.too_long
        does = "cuts" if action == "truncate" else "leaves out"
        yield f"dataset.tooLong {action}: {does} rows of more than {longest:,} tokens."
    if data is not None and data.misfit:
        yield f"The data does not fit: {data.misfit}"
