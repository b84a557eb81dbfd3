"""Job files: what is in them, as the API server would take it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.kubectl_yaml import load_all

Manifest = dict[str, Any]

STANDARD_INPUT: Final = Path("-")


@dataclass(frozen=True)
class Job:
    """One FineTuneJob of a file."""

    name: str
    namespace: str
    spec: FineTuneJobSpec


def read_manifests(path: Path) -> list[Manifest]:
    """Return the FineTuneJobs of a YAML or JSON file, - being standard input; PluginError if none.

    Other objects in the file, such as ConfigMaps, are left out.
    """
    documents = _documents(path)
    jobs = [each for each in documents if isinstance(each, dict) and each.get("kind") == names.KIND]
    if not jobs:
        kinds = ", ".join(_kind(document) for document in documents) or "nothing"
        raise PluginError(f"{path} holds {kinds}, expected an object of kind {names.KIND}.")
    for job in jobs:
        _check(path, job)
    return jobs


def select(path: Path, name: str | None) -> Manifest:
    """Return the one FineTuneJob of a file, or the one of that name; PluginError otherwise."""
    manifests = read_manifests(path)
    found = ", ".join(job_name(manifest) for manifest in manifests)
    chosen = [each for each in manifests if name is None or job_name(each) == name]
    if len(chosen) != 1:
        fix = "choose one with --name" if name is None else "correct --name"
        raise PluginError(f"{path} holds the FineTuneJobs {found}: {fix}.")
    return chosen[0]


def job_name(manifest: Manifest) -> str:
    """Return metadata.name, or what stands in for it where there is none."""
    return str(manifest["metadata"].get("name") or "(no name)")


def job_of(manifest: Manifest) -> Job:
    """Return a job; ValidationError where the API server would refuse its schema."""
    text = json.dumps(manifest["spec"])
    # From JSON, because there strict means what the API server means: "4" is no number.
    spec = FineTuneJobSpec.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    return Job(job_name(manifest), manifest["metadata"].get("namespace") or "default", spec)


def _documents(path: Path) -> list[Any]:
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
        documents = [each for each in load_all(text) if each is not None]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PluginError(f"{path} cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        raise PluginError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    return list(_items(documents))


def _items(documents: list[Any]) -> Iterator[Any]:
    """Yield objects, those of a List one by one."""
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            yield from items if isinstance(items, list) else ()
        else:
            yield document


def _kind(document: Any) -> str:
    kind = document.get("kind") if isinstance(document, dict) else None
    return str(kind or "an object without kind")


def _check(path: Path, job: Manifest) -> None:
    metadata, version = job.setdefault("metadata", {}), job.get("apiVersion")
    if not isinstance(metadata, dict):
        raise PluginError(f"{path}: found metadata {json.dumps(metadata)}, expected an object.")
    if version != names.API_VERSION:
        raise PluginError(
            f"{path}: apiVersion of {job_name(job)} is {version}, expected {names.API_VERSION}."
        )
