"""The CRD's CEL rules, held against a job without an API server."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import cel
from pydantic import ValidationError

from finetune_api.base import VALIDATIONS
from finetune_api.crd import Schema, custom_resource_definition
from finetune_operator.plugin.manifests import Manifest, spec_of
from finetune_operator.plugin.sentences import sentences


@dataclass(frozen=True)
class _Node:
    """One object, list or value of a job, with its schema."""

    path: str
    value: Any
    schema: Schema


def problems(manifest: Manifest) -> list[str]:
    """Return what the API server would refuse, one sentence each without full stop; empty if none.

    Rules are asked only when the schema holds, as the API server does.
    """
    try:
        spec_of(manifest)
    except ValidationError as error:
        return sentences(error)
    metadata = manifest.get("metadata") or {}
    if not metadata.get("name"):
        return ["metadata.name: required, but not given"]
    schema = _schema()
    job = _stored({"metadata": metadata, "spec": manifest["spec"]}, schema)
    return [said for node in _nodes(_Node("", job, schema)) for said in _broken(node)]


@cache
def _schema() -> Schema:
    version = custom_resource_definition()["spec"]["versions"][0]
    schema: Schema = version["schema"]["openAPIV3Schema"]
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
        for name in node.value.keys() & properties.keys():
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
    for rule in node.schema.get(VALIDATIONS, ()):
        # Rules on changes have nothing to compare a new job with.
        if "oldSelf" in rule["rule"] or _evaluate(rule["rule"], node.value) is True:
            continue
        field = (node.path + rule.get("fieldPath", "")).removeprefix(".")
        yield f"{field}: {_message(rule, node.value)}"


def _evaluate(expression: str, value: Any) -> Any:
    # The API server calls a field whose name is a word of CEL by this name.
    if isinstance(value, dict) and "function" in value:
        value = value | {"__function__": value["function"]}
    return cel.evaluate(expression, {"self": value})


def _message(rule: Schema, value: Any) -> str:
    formatted = re.fullmatch(r'"(.*)"\.format\((.*)\)', rule.get("messageExpression", ""))
    if formatted is None:
        return str(rule["message"])
    text, values = formatted.groups()
    # CEL's format is a Kubernetes extension; %s is all that the rules use of it.
    return str(text % tuple(_evaluate(values, value)))
