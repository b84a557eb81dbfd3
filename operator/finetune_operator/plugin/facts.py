"""What a plan rests on when no preparation has measured it: flags, files, the catalogue."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api.methods import Generation
from finetune_api.sources import JOB_SCHEME
from finetune_api.spec import ONLINE, FineTuneJobSpec
from finetune_api.status import DatasetFacts, ModelFacts, Preparation
from finetune_operator.planning.architecture import (
    ArchitectureError,
    facts_of_config,
    facts_of_name,
    facts_of_size,
)
from finetune_operator.plugin.data_file import CHARACTERS_PER_TOKEN, DataFile, read_data_file
from finetune_operator.plugin.errors import PluginError

ASSUMED_ROWS: Final = 1000
ASSUMED_TOKENS: Final = 2048


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
    """Tokens of the longest row."""


@dataclass(frozen=True)
class Basis:
    """The facts, and in words where they come from."""

    preparation: Preparation
    notes: tuple[str, ...]


def basis(spec: FineTuneJobSpec, known: Known) -> Basis:
    """Return the facts of a job; PluginError when nothing tells what the model is."""
    model, model_note = _model(spec, known)
    data = read_data_file(known.data) if known.data else None
    dataset, dataset_note = _dataset(spec, known, data)
    return Basis(Preparation(model=model, dataset=dataset), (model_note, dataset_note))


def _model(spec: FineTuneJobSpec, known: Known) -> tuple[ModelFacts, str]:
    try:
        if known.config is not None:
            model = facts_of_config(_read_config(known.config))
            return model, f"Model: {_describe(model)}, by {known.config}."
        if known.parameters is not None:
            name, model = facts_of_size(known.parameters)
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
        f"{_count(model.parameters)} weights in {model.layers} layers of width {model.hidden_size}"
    )


def _count(weights: int) -> str:
    return f"{weights / 1e9:.3g}B" if weights >= 1e9 else f"{weights / 1e6:.3g}M"


def _dataset(
    spec: FineTuneJobSpec, known: Known, data: DataFile | None
) -> tuple[DatasetFacts, str]:
    """Return the facts of the data; flags win over the file, and both over what is assumed."""
    rows = known.rows or (data.rows if data else ASSUMED_ROWS)
    estimated = _tokens(data.longest) if data else ASSUMED_TOKENS
    longest = (known.tokens or estimated) + _completion(spec)
    mean = min(longest, _tokens(data.characters) / data.rows if data else longest / 2)
    facts = DatasetFacts(
        format=(data.format if data else None) or spec.dataset.format,
        rows=rows,
        eval_rows=0,
        tokens=round(rows * mean),
        max_tokens=longest,
        mean_tokens=mean,
        p95_tokens=longest,
    )
    return facts, f"Data: {rows:,} rows, the longest of {longest:,} tokens, {_origin(known, data)}."


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _completion(spec: FineTuneJobSpec) -> int:
    """Return the tokens that the model itself adds to a prompt."""
    if spec.method not in ONLINE:
        return 0
    return (spec.generation or Generation()).max_completion_length


def _origin(known: Known, data: DataFile | None) -> str:
    if data is not None and known.tokens is None:
        return f"by {data.path} at {CHARACTERS_PER_TOKEN} characters to a token"
    if known.tokens is not None and (known.rows is not None or data is not None):
        return "as given"
    return "assumed in part: give --data, or --rows and --tokens"
