"""The reference pages of the documentation, made from the CRD and the table of failures."""

import json
from collections.abc import Iterator
from typing import Any

from finetune_api.base import INT_OR_STRING, VALIDATIONS
from finetune_api.failures import FAILURES, RetryClass

Schema = dict[str, Any]

_RETRY = {
    RetryClass.USER: "The job fails at once: trying again cannot help.",
    RetryClass.TRANSIENT: "Tried again; counts against `runPolicy.backoffLimit`.",
    RetryClass.ADAPT: "Tried again with a smaller plan; counts against `runPolicy.backoffLimit`.",
    RetryClass.PREEMPTED: "Tried again at once from the last checkpoint; does not count.",
    RetryClass.ROLLBACK: "Tried again at once from an earlier checkpoint, at most"
    " `stability.maxRollbacks` times.",
}


def api_page(definition: Schema, header: str) -> str:
    """Return the Markdown page of all fields of a FineTuneJob."""
    version = definition["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    names = definition["spec"]["names"]
    lines = [
        f"<!-- {header} -->",
        f"# {names['kind']}",
        "",
        f"`apiVersion: {definition['spec']['group']}/{version['name']}`, `kind: {names['kind']}`,",
        f"short name `{names['shortNames'][0]}`. Fields with * are required.",
        f"The same text is in `kubectl explain {names['singular']}.spec --recursive`.",
        "",
        f"{root['description']} Once `status.plan` is there, everything in `spec` but `runPolicy`",
        "is immutable: to change it, make a new job under another name.",
        *_rules(root),
    ]
    for field in ("spec", "status"):
        for path, schema in _objects(field, root["properties"][field]):
            lines += _section(path, schema)
    return "\n".join(lines) + "\n"


def _objects(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield every object with fields, outermost first, by its path; lists end in []."""
    if schema.get("type") == "array":
        yield from _objects(f"{path}[]", schema["items"])
        return
    if "properties" not in schema:
        return
    yield path, schema
    for name, part in schema["properties"].items():
        yield from _objects(f"{path}.{name}", part)


def _section(path: str, schema: Schema) -> list[str]:
    required = schema.get("required", [])
    rows = [
        f"| `{name}`{' *' if name in required else ''} | {_type(part)} | {_default(part)}"
        f" | {_cell(part.get('description', ''))} |"
        for name, part in schema["properties"].items()
    ]
    head = ["| Field | Type | Default | |", "|---|---|---|---|"]
    return ["", f"## {path}", "", schema.get("description", ""), "", *head, *rows, *_rules(schema)]


def _rules(schema: Schema) -> list[str]:
    # Rules on oldSelf say the same for every field: the page says it once.
    rules = [rule for rule in schema.get(VALIDATIONS, []) if "oldSelf" not in rule["rule"]]
    messages = [_message(rule) for rule in rules]
    return ["", "Rules:", "", *messages] if messages else []


def _message(rule: Schema) -> str:
    """Return a rule's sentence; values that are filled in at run time become an ellipsis."""
    # A message expression is "words %s words".format([...]).
    text = rule.get("message") or rule["messageExpression"].split('"')[1].replace("%s", "…")
    field = rule.get("fieldPath", "").removeprefix(".")
    return f"- `{field}`: {text}." if field else f"- {text}."


def _type(schema: Schema) -> str:
    if INT_OR_STRING in schema:
        return "integer or string"
    if "enum" in schema:
        return _cell(" | ".join(f"`{value}`" for value in schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}"
    kind = schema.get("format", "") if schema.get("format") == "date-time" else schema.get("type")
    return (kind or "any value") + _bounds(schema)


def _bounds(schema: Schema) -> str:
    low = ">" if schema.get("exclusiveMinimum") else "≥"
    high = "<" if schema.get("exclusiveMaximum") else "≤"
    parts = [f"{low} {schema['minimum']}"] if "minimum" in schema else []
    parts += [f"{high} {schema['maximum']}"] if "maximum" in schema else []
    return f", {', '.join(parts)}" if parts else ""


def _default(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None or "properties" in schema else f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def failures_page(header: str) -> str:
    """Return the Markdown page of every reason for which an attempt or a job can fail."""
    rows = [
        f"| `{reason}` | {'' if failure.exit_code is None else failure.exit_code}"
        f" | {failure.retry} | {failure.advice} |"
        for reason, failure in FAILURES.items()
    ]
    lines = [
        f"<!-- {header} -->",
        "# Failures",
        "",
        "Every failed attempt, and every failed job, has exactly one of these reasons: in",
        "`status.attempts`, in the condition `Failed` and in the event. The exit code is that of",
        "the trainer's container; reasons without one are seen by the operator alone.",
        "",
        "| Retry | |",
        "|---|---|",
        *(f"| {retry} | {text} |" for retry, text in _RETRY.items()),
        "",
        "| Reason | Exit code | Retry | Advice |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"
