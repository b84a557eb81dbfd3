"""Job files: what is in them, as the API server would take it."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_api import names
from finetune_api.sources import JOB_SCHEME
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.kubectl_yaml import load_all, what_is_wrong

Manifest = dict[str, Any]

STANDARD_INPUT: Final = Path("-")


@dataclass(frozen=True)
class Job:
    """One FineTuneJob of a file."""

    name: str
    namespace: str
    spec: FineTuneJobSpec


def read_manifests(paths: Sequence[Path]) -> list[Manifest]:
    """Return the FineTuneJobs of YAML or JSON files, - being standard input.

    Other objects, such as ConfigMaps, are left out; PluginError for a file without a FineTuneJob.
    """
    return [job for path in paths for job in _jobs(path)]


def named(manifests: list[Manifest], name: str | None) -> list[Manifest]:
    """Return the jobs of a name, or all where none is given; PluginError if nothing is left."""
    found = [each for each in manifests if name is None or job_name(each) == name]
    if not found:
        raise PluginError(f"--name is {name}, expected the name of a job: {_names(manifests)}.")
    return found


def only(manifests: list[Manifest]) -> Manifest:
    """Return the one job that there is; PluginError for several."""
    if len(manifests) > 1:
        raise PluginError(
            f"there are several FineTuneJobs, {_names(manifests)}: choose one with --name."
        )
    return manifests[0]


def model_sources(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the source of each job's model by job://NAME; jobs that name none are left out."""
    sources = {}
    for manifest in manifests:
        with suppress(KeyError, TypeError):
            source = manifest["spec"]["model"]["source"]
            sources[f"{JOB_SCHEME}{job_name(manifest)}"] = str(source)
    return sources


def first_source(source: str, sources: Mapping[str, str]) -> str:
    """Return the model that a chain of jobs begins with, as far as the jobs are known."""
    seen: set[str] = set()
    while source in sources and source not in seen:
        seen.add(source)
        source = sources[source]
    return source


def job_name(manifest: Manifest) -> str:
    """Return metadata.name, or what stands in for it where there is none."""
    return str(manifest["metadata"].get("name") or "(no name)")


def job_of(manifest: Manifest) -> Job:
    """Return a job; ValidationError where the API server would refuse its schema."""
    text = json.dumps(manifest["spec"])
    # From JSON, because there strict means what the API server means: "4" is no number.
    spec = FineTuneJobSpec.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    return Job(job_name(manifest), manifest["metadata"].get("namespace") or "default", spec)


def _names(manifests: Sequence[Manifest]) -> str:
    return ", ".join(job_name(manifest) for manifest in manifests)


def _jobs(path: Path) -> list[Manifest]:
    place = "standard input" if path == STANDARD_INPUT else str(path)
    documents = _documents(path, place)
    jobs = [each for each in documents if isinstance(each, dict) and each.get("kind") == names.KIND]
    if not jobs:
        kinds = ", ".join(_kind(document) for document in documents) or "nothing"
        raise PluginError(f"{place} holds {kinds}, expected an object of kind {names.KIND}.")
    for job in jobs:
        _check(place, job)
    return jobs


def _documents(path: Path, place: str) -> list[Any]:
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
        documents = [each for each in load_all(text) if each is not None]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PluginError(f"{place} cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        raise PluginError(f"{place} is not YAML: {what_is_wrong(error)}.") from error
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


def _check(place: str, job: Manifest) -> None:
    metadata, version = job.setdefault("metadata", {}), job.get("apiVersion")
    if not isinstance(metadata, dict):
        raise PluginError(f"{place}: found metadata {json.dumps(metadata)}, expected an object.")
    if version != names.API_VERSION:
        raise PluginError(
            f"{place}: apiVersion of {job_name(job)} is {version}, expected {names.API_VERSION}."
        )
