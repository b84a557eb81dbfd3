"""The CRD's schema and its CEL rules, held against a job without an API server."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from finetune_api.base import VALIDATIONS
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.expressions import Part
from finetune_operator.plugin.manifests import Job, Manifest, job_of
from finetune_operator.plugin.sentences import sentences, unknown_field

Schema = dict[str, Any]

_SCHEMA: Final = Path(__file__).with_name("schema.json")
"""Generated with the CRD: to make its schema from the models would take a tenth of a second."""


@dataclass(frozen=True)
class _Node:
    """One object, list or value of a job, with its schema."""

    path: str
    value: Any
    schema: Schema


def accepted(manifest: Manifest) -> Job:
    """Return a job; PluginError that names the first thing that the API server would refuse."""
    found = problems(manifest)
    if found:
        more = f" ({len(found) - 1} more: see validate)" if len(found) > 1 else ""
        said = f"{found[0]}{more}"
        raise PluginError(said if said.endswith("?") else f"{said}.")
    return job_of(manifest)


def problems(manifest: Manifest) -> list[str]:
    """Return what the API server would refuse, one sentence each without full stop; empty if none.

    Rules are asked only when the schema holds, as the API server does.
    """
    schema = _schema()
    found = list(_around_the_spec(manifest, schema))
    if found:
        return found
    try:
        job_of(manifest)
    except ValidationError as error:
        return sentences(error)
    job = _stored({name: manifest[name] for name in ("metadata", "spec")}, schema)
    return [said for node in _nodes(_Node("", job, schema)) for said in _broken(node)]


def unplannable(manifest: Manifest) -> list[str]:
    """Return what no plan could mend, whatever model and data are; of a job that is accepted."""
    from finetune_operator.planning import PlanInfeasibleError, check_fit

    try:
        check_fit(job_of(manifest).spec)
    except PlanInfeasibleError as error:
        return [f"spec.{str(error).removesuffix('.')}"]
    return []


def _around_the_spec(manifest: Manifest, schema: Schema) -> Iterator[str]:
    known = schema["properties"]
    yield from (f"{name}: {unknown_field(name, known)}" for name in manifest if name not in known)
    metadata = manifest["metadata"]
    for name in ("name", "namespace"):
        value = metadata.get(name)
        if not isinstance(value, str | None):
            yield f"metadata.{name}: found {json.dumps(value)}, expected text"
    if not metadata.get("name"):
        yield "metadata.name: required, but not given"
    if "spec" not in manifest:
        yield "spec: required, but not given"


@cache
def _schema() -> Schema:
    schema: Schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return schema


def _stored(value: Any, schema: Schema) -> Any:
    """Return a value as the API server would store it: defaults filled in, nulls left out."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        defaults = {name: part["default"] for name, part in properties.items() if "default" in part}
        given = {name: each for name, each in value.items() if each is not None}
        filled = (defaults | given).items()
        return {name: _stored(each, properties.get(name, {})) for name, each in filled}
    if isinstance(value, list):
        return [_stored(each, schema.get("items", {})) for each in value]
    # CEL tells 0 from 0.0 by the schema, not by how it is written.
    return float(value) if schema.get("type") == "number" else value


def _nodes(node: _Node) -> Iterator[_Node]:
    yield node
    if isinstance(node.value, dict):
        properties = node.schema.get("properties", {})
        for name in (name for name in properties if name in node.value):
            path = f"{node.path}.{name}".removeprefix(".")
            yield from _nodes(_Node(path, node.value[name], properties[name]))
    if isinstance(node.value, list):
        for index, value in enumerate(node.value):
            yield from _nodes(_Node(f"{node.path}[{index}]", value, node.schema["items"]))


def _broken(node: _Node) -> Iterator[str]:
    for key in node.schema.get("x-kubernetes-list-map-keys", ()):
        seen = [item[key] for item in node.value]
        twice = [value for index, value in enumerate(seen) if value in seen[:index]]
        yield from (f"{node.path}: {key} {value} is there twice: rename one" for value in twice)
    rules = node.schema.get(VALIDATIONS)
    if rules:
        yield from _refused(node, rules)


def _refused(node: _Node, rules: list[Schema]) -> Iterator[str]:
    part = Part(node.value)
    for rule in rules:
        # Rules on changes have nothing to compare a new job with.
        if "oldSelf" in rule["rule"] or part.evaluate(rule["rule"]) is True:
            continue
        field = (node.path + rule.get("fieldPath", "")).removeprefix(".")
        yield f"{field}: {_unrepeated(field, _message(rule, part))}"


def _unrepeated(field: str, message: str) -> str:
    """Return what is said of a field without its name at the start."""
    subject = re.match(r"(\S+) (?=(is|has|are) )", message)
    repeats = subject is not None and f".{field}".endswith(f".{subject[1]}")
    return message[subject.end() :] if subject and repeats else message


def _message(rule: Schema, part: Part) -> str:
    formatted = re.fullmatch(r'"(.*)"\.format\((.*)\)', rule.get("messageExpression", ""))
    if formatted is None:
        return str(rule["message"])
    text, values = formatted.groups()
    # CEL's format is a Kubernetes extension; %s is all that the rules use of it.
    return str(text % tuple(part.evaluate(values)))
