"""The CustomResourceDefinition of FineTuneJob, made from the pydantic models.

Kubernetes wants a structural schema: no references, no unions, no nulls. That is what most of this
module does to pydantic's JSON schema; descriptions, bounds and CEL rules come from the models.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from finetune_api import names
from finetune_api.base import INT_OR_STRING, VALIDATIONS, ApiModel, Rule
from finetune_api.spec import TRAINING_FIELDS, FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

Schema = dict[str, Any]

_INT32 = 2**31 - 1
_BOUNDS: Final = ("Minimum", "Maximum")
_ORDER: Final = (
    "description",
    "type",
    INT_OR_STRING,
    "format",
    "enum",
    "default",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    VALIDATIONS,
)

_REWRITTEN: Final = {"default", "additionalProperties", "exclusiveMinimum", "exclusiveMaximum"}
"""What means something else in OpenAPI 3.0, or to the API server, than in JSON Schema."""


class _Described(GenerateJsonSchema):
    """Takes the docstring below a field for its description.

    pydantic's use_attribute_docstrings does so at every import, and parses each class for it.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        described = super().model_schema(schema)
        model = schema["cls"]
        for name, text in _docstrings(model):
            described["properties"][model.model_fields[name].alias]["description"] = text
        return described


def _docstrings(model: type) -> Iterator[tuple[str, str]]:
    """Yield each field that has a docstring."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    for field, below in pairwise(ast.iter_child_nodes(definition)):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, text


def structural_schema(model: type[ApiModel], *, defaults: bool = True) -> Schema:
    """Return a model as a Kubernetes structural schema; without defaults for what nobody sets."""
    schema = model.model_json_schema(schema_generator=_Described)
    return _structural(schema, schema.get("$defs", {}), defaults=defaults)


def _structural(schema: Schema, definitions: Schema, *, defaults: bool) -> Schema:
    """Return one node, and all below it, in the form of a structural schema."""

    def below(node: Schema) -> Schema:
        return _structural(node, definitions, defaults=defaults)

    node = _resolved(schema, definitions)
    result = {key: node[key] for key in _ORDER if key in node and key not in _REWRITTEN}
    if "description" in node:
        result["description"] = " ".join(node["description"].split())
    if "const" in node:
        result["enum"] = [node["const"]]
    if INT_OR_STRING in node:
        # The type says both; the rule holds what each may be.
        result = {key: value for key, value in result.items() if key not in {"type", "maxLength"}}
    if VALIDATIONS in node:
        result[VALIDATIONS] = [_ordered(rule) for rule in node[VALIDATIONS]]
    if "properties" in node:
        result["properties"] = {name: below(part) for name, part in node["properties"].items()}
    if "items" in node:
        result["items"] = below(node["items"])
    result |= _map(node, below)
    result |= _number(node)
    if defaults:
        result |= _default(node, result)
    return {key: result[key] for key in _ORDER if key in result}


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    """Return a node with its reference inlined and `or null` removed: unset is absent."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return _resolved(target | _without(schema, "$ref"), definitions)
    alternatives = [part for part in schema.get("anyOf", []) if part.get("type") != "null"]
    if not alternatives or INT_OR_STRING in schema:
        return _without(schema, "anyOf")
    if len(alternatives) > 1:
        raise ValueError(f"a structural schema has no unions: {schema}")
    # The field's own words win over those of its type.
    return _resolved(alternatives[0] | _without(schema, "anyOf"), definitions)


def _without(schema: Schema, key: str) -> Schema:
    return {name: value for name, value in schema.items() if name != key}


def _ordered(rule: Schema) -> Schema:
    """Return a CEL rule with its expression first."""
    keys = ("rule", "message", "messageExpression", "reason", "fieldPath")
    return {key: rule[key] for key in keys if key in rule}


def _map(node: Schema, below: Any) -> Schema:
    values = node.get("additionalProperties", False)
    if values is False:
        return {}
    if values is True:
        # Values of any type. CEL's == on the object around still compares them.
        return {"additionalProperties": {"x-kubernetes-preserve-unknown-fields": True}}
    return {"additionalProperties": below(values)}


def _number(node: Schema) -> Schema:
    """Return bounds in OpenAPI 3.0 form, where exclusive is a flag, and the integer's width."""
    result: Schema = {}
    for bound in _BOUNDS:
        if f"exclusive{bound}" in node:
            result |= {bound.lower(): node[f"exclusive{bound}"], f"exclusive{bound}": True}
    if node.get("type") == "integer" and INT_OR_STRING not in node:
        result["format"] = "int32" if node.get("maximum", _INT32 + 1) <= _INT32 else "int64"
    return result


def _default(node: Schema, result: Schema) -> Schema:
    """Return the default, if any."""
    default = node.get("default")
    if default is not None and "properties" in result:
        # Written out, because the API server holds it against the rules as it stands.
        parts = result["properties"].items()
        return {"default": {name: part["default"] for name, part in parts if "default" in part}}
    # An empty list says no more than no list, but fills every stored object.
    return {} if default in (None, [], {}, "") else {"default": default}


def _immutable(field: str) -> Rule:
    required = _spec()["required"]
    new, old = f"self.spec.{field}", f"oldSelf.spec.{field}"
    same = f"{new} == {old}"
    if field not in required and "default" not in _spec()["properties"][field]:
        same = f"has({new}) == has({old}) && (!has({new}) || {same})"
    return Rule(
        f"!has(oldSelf.status) || !has(oldSelf.status.plan) || ({same})",
        f"spec.{field} is immutable once the job is planned:"
        " make a new job, under another name, with the changed value",
        f".spec.{field}",
    )


def _name_rules() -> list[Rule]:
    return [
        Rule(
            f"self.metadata.name.size() <= {names.JOB_NAME_LENGTH}",
            f"metadata.name has {{self.metadata.name.size()}} characters, expected at most"
            f" {names.JOB_NAME_LENGTH}: pods are named after the job",
            ".metadata.name",
        ),
        Rule(
            "self.metadata.name.matches(r'^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name is {self.metadata.name}, expected a DNS label: lower-case letters,"
            " digits and '-', first a letter, last a letter or digit",
            ".metadata.name",
        ),
        Rule(
            "self.spec.model.source != 'job://' + self.metadata.name",
            "a job cannot start from its own model: name another job",
            ".spec.model.source",
        ),
    ]


@cache
def _spec() -> Schema:
    return structural_schema(FineTuneJobSpec)


def _root() -> Schema:
    rules = [*_name_rules(), *(_immutable(field) for field in TRAINING_FIELDS)]
    return {
        "description": "FineTuneJob turns a model and data into a fine-tuned model.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
            "kind": {"type": "string", "description": f"{names.KIND}."},
            # The only part of metadata that rules can see; named here so that they can point to it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": _spec(),
            "status": structural_schema(FineTuneJobStatus, defaults=False),
        },
        VALIDATIONS: [_ordered(rule.schema()) for rule in rules],
    }


def _column(name: str, path: str, *, kind: str = "string", wide: bool = False) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": 1} if wide else {})


def _columns() -> list[Schema]:
    return [
        _column("Method", ".spec.method"),
        _column("Phase", ".status.phase"),
        _column("Reason", ".status.conditions[?(@.type=='Failed')].reason"),
        _column("Step", ".status.progress.steps"),
        _column("Loss", ".status.progress.loss", kind="number"),
        _column("Stability", ".status.stability.verdict", wide=True),
        _column("Model", ".spec.model.source", wide=True),
        _column("Plan", ".status.plan.summary", wide=True),
        _column("Tokens/s", ".status.progress.tokensPerSecond", kind="number", wide=True),
        _column("ETA(s)", ".status.progress.etaSeconds", kind="integer", wide=True),
        _column("Message", ".status.message", wide=True),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]


def custom_resource_definition() -> Schema:
    """Return the CustomResourceDefinition (apiextensions.k8s.io/v1) as a plain object."""
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": _columns(),
        "selectableFields": [{"jsonPath": ".spec.method"}, {"jsonPath": ".status.phase"}],
        "schema": {"openAPIV3Schema": _root()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }
