"""Which files of a source are wanted, and what it means when they are missing."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from finetune_api.failures import Reason

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_MODEL_SUFFIXES = (".json", ".model", ".txt", ".jinja")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


@dataclass(frozen=True)
class Wanted:
    """What to take from a source."""

    field: str
    """Field of the spec that names the source, for messages."""
    missing: Reason
    """Reason when the source is not there."""
    choose: Callable[[Sequence[str]], list[str]]
    """Picks from relative file names."""

    @property
    def secret(self) -> str:
        """Field that names the source's Secret, for messages."""
        is_part = " of " in self.field
        parent = self.field.rpartition(".")[0]
        return "model.secret of the job that began with it" if is_part else f"{parent}.secret"


def model_files(names: Sequence[str], *, with_code: bool) -> list[str]:
    """Pick weights, configuration and tokenizer; pickled weights only without safetensors."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if _WEIGHTS.fullmatch(name)]
    weights = weights or [name for name in top if _PICKLED_WEIGHTS.fullmatch(name)]
    suffixes = (*_MODEL_SUFFIXES, ".py") if with_code else _MODEL_SUFFIXES
    return weights + [name for name in top if name.endswith(suffixes)]


def adapter_files(names: Sequence[str]) -> list[str]:
    """Pick an adapter's weights, configuration and tokenizer."""
    top = [name for name in names if "/" not in name and not name.startswith(".")]
    weights = [name for name in top if name == "adapter_model.safetensors"]
    return weights and weights + [name for name in top if name.endswith(_MODEL_SUFFIXES)]


def dataset_files(names: Sequence[str]) -> list[str]:
    """Pick files of rows, and the card that may say which split is where."""
    return [name for name in names if name == "README.md" or is_data_file(name)]


def is_data_file(name: str) -> bool:
    """Tell whether a file name is that of a file of rows; hidden files and indexes are not."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__")) for part in parts)
    return not hidden and name.removesuffix(".gz").endswith(DATA_SUFFIXES)
