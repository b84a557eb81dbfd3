"""What pydantic says about a job, in the words that the API server would use."""

import difflib
import json
from collections.abc import Iterable
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.base import ApiModel
from finetune_api.spec import FineTuneJobSpec

_TYPES: Final = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
_UNION_MEMBERS: Final = ("constrained-int", "int", "literal['auto']")
"""What pydantic adds to the place of an error inside `a number or auto`."""


def sentences(error: ValidationError) -> list[str]:
    """Return one sentence, without full stop, for each field that is wrong."""
    said: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        place = tuple(part for part in detail["loc"] if part not in _UNION_MEMBERS)
        in_union = len(place) < len(detail["loc"])
        said.setdefault(_path(place), _what(detail, place, in_union=in_union))
    return [f"{path}: {text}" for path, text in said.items()]


def _path(place: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    return "spec" + "".join(parts)


def _what(detail: ErrorDetails, place: tuple[int | str, ...], *, in_union: bool) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "required, but not given"
    if kind == "extra_forbidden":
        return unknown_field(str(place[-1]), _fields(place[:-1]))
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    found = json.dumps(detail["input"], default=str, ensure_ascii=False)
    return f"found {found}, {_expected(detail, in_union=in_union)}"


def _expected(detail: ErrorDetails, *, in_union: bool) -> str:
    kind = detail["type"]
    # pydantic's own words say bounds well.
    bound = detail["msg"].partition(" should ")[2].partition(" after ")[0]
    if in_union:
        bounds = bound.removeprefix("be") if kind.endswith("_equal") else ""
        return f"expected auto or a whole number{bounds}"
    if kind in {"literal_error", "enum"}:
        return f"expected {detail['ctx']['expected']}".replace("'", "")
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}"
    return f"which should {bound or detail['msg']}"


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Return what is said of a name that is none of those known; with advice if one is similar."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"unknown field; {advice}"


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """Return the wire names of the fields of the object at a place of the spec."""
    model: type[ApiModel] = FineTuneJobSpec
    for part in place:
        if isinstance(part, str):
            model = _models(model)[part]
    return [str(field.alias) for field in model.model_fields.values()]


def _models(model: type[ApiModel]) -> dict[str, type[ApiModel]]:
    """Return the models of a model's fields by their wire names."""
    return {
        str(field.alias): nested
        for field in model.model_fields.values()
        if (nested := _model_in(field.annotation)) is not None
    }


def _model_in(annotation: Any) -> type[ApiModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    arguments = getattr(annotation, "__args__", ())
    return next((found for each in arguments if (found := _model_in(each))), None)
