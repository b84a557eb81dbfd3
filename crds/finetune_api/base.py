"""What all models of the API share: camelCase on the wire, unknown fields as errors, rules."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True)
class Rule:
    """One CEL rule of the CRD: the API server refuses what breaks it, with the message."""

    expression: str
    message: str
    """One sentence; {CEL expression} in it is replaced by that expression's value."""
    field: str | None = None
    """JSON path of the field to blame, relative to the object that carries the rule."""
    required: bool = False
    """Whether the field must be given, where otherwise its value is at odds with another field."""

    def schema(self) -> dict[str, Any]:
        """Return the rule as an entry of x-kubernetes-validations."""
        entry: dict[str, Any] = {"rule": self.expression} | self._message()
        if self.field is None:
            return entry
        # The default reason would call the whole object an "invalid value", not the field.
        reason = "FieldValueRequired" if self.required else "FieldValueForbidden"
        return entry | {"reason": reason, "fieldPath": self.field}

    def _message(self) -> dict[str, str]:
        values = re.findall(r"\{(.+?)\}", self.message)
        if not values:
            return {"message": self.message}
        # Not string(value) + ...: the API server takes that for unboundedly expensive.
        text = re.sub(r"\{.+?\}", "%s", self.message)
        return {"messageExpression": f'"{text}".format([{", ".join(values)}])'}


def forbidden(unless: str, message: str, field: str) -> Rule:
    """Return the rule that the field may only be given when the condition holds."""
    return Rule(f"!has(self{field}) || {unless}", message, field)


def rules(*entries: Rule) -> ConfigDict:
    """Return a model config that carries CEL rules into the generated CRD."""
    extra: dict[str, Any] = {VALIDATIONS: [entry.schema() for entry in entries]}
    return ConfigDict(json_schema_extra=extra)


@dataclass(frozen=True)
class Form:
    """The form of a string: one pattern, held by Python and by the API server, and its name.

    A plain `pattern` would make the API server show the regular expression to the user.
    """

    pattern: str
    """Understood alike by Python's re and Go's RE2; always matched as a whole."""
    expected: str
    subject: str = "self"
    """The CEL expression that gives the string."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        rule = Rule(
            f"{self.subject}.matches(r'^({self.pattern})$')",
            f"found '{{self}}', expected {self.expected}",
        )
        # A value with line breaks cannot be quoted: then the API server shows the plain message.
        entry = {"message": f"expected {self.expected}"} | rule.schema()
        return handler(schema) | {VALIDATIONS: [entry]}

    def _check(self, value: str) -> str:
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"found {value!r}, expected {self.expected}")
        return value


class ApiModel(BaseModel):
    """Base of every API object: unknown fields are errors, names are camelCase on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        # Objects are values: a change is a new object (model_copy); no reader sees one half made.
        frozen=True,
    )

    @classmethod
    def read(cls, data: Any) -> Self:
        """Return the object that another version may have written: what is unknown is ignored.

        What people write is validated instead: an option that nobody follows is an error.
        """
        return cls.model_validate(data, extra="ignore")

    @classmethod
    def read_json(cls, text: str | bytes) -> Self:
        """Return the object of a JSON text that another version may have written, as read does."""
        return cls.model_validate_json(text, extra="ignore")

    def to_json(self) -> dict[str, Any]:
        """Return the object as the JSON that goes over the wire, without unset optional fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


INT_OR_STRING = "x-kubernetes-int-or-string"

Auto = Literal["auto"]


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _five_digits(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


Measurement = Annotated[float | None, BeforeValidator(_five_digits)]
"""A number for people, rounded to five digits; unset when it is not finite: JSON has no NaN."""

Measurements = Annotated[dict[str, float], AfterValidator(_finite)]
"""Numbers by name; what is not finite is left out: JSON has no NaN."""


def _count_or_auto(minimum: int, meaning: str) -> Any:
    rule = Rule(
        f"type(self) == int ? (self >= {minimum} && self <= 1024) : self == 'auto'",
        f"found {{self}}, expected auto or a whole number from {meaning} to 1024",
    )
    return Field(json_schema_extra={INT_OR_STRING: True, VALIDATIONS: [rule.schema()]})


CountOrAuto = Annotated[Annotated[int, Field(ge=1, le=1024)] | Auto, _count_or_auto(1, "1")]
GpuCountOrAuto = Annotated[
    Annotated[int, Field(ge=0, le=1024)] | Auto, _count_or_auto(0, "0 (the CPU)")
]

ObjectName = Annotated[
    str,
    Field(max_length=253),
    Form(
        r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?",
        "the name of a Kubernetes object: lower-case letters, digits, '-' and '.'",
    ),
]
"""Name of another Kubernetes object in the job's namespace."""


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


Quantity = Annotated[
    str,
    Field(max_length=32, json_schema_extra={INT_OR_STRING: True}),
    Form(
        r"([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?",
        "a Kubernetes quantity above zero, such as 500m, 2 or 16Gi",
        subject="string(self)",
    ),
    # `cpu: 4` in YAML is a number; Kubernetes takes both.
    BeforeValidator(_number_as_text),
]
"""A Kubernetes quantity above zero, such as 500m, 2 or 16Gi."""
