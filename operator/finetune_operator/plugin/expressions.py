"""CEL expressions about parts of a job."""

import sys
from functools import cache
from types import ModuleType
from typing import Any

# The package imports its own command line too, a terminal toolkit, which would take 0.2 s.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))

import cel  # noqa: E402


class Part:
    """One object, list or value of a job, for expressions that call it self."""

    def __init__(self, value: Any) -> None:
        # The API server calls a field whose name is a word of CEL by this name.
        if isinstance(value, dict) and "function" in value:
            value = value | {"__function__": value["function"]}
        self._context = cel.Context({"self": value})

    def evaluate(self, expression: str) -> Any:
        """Return an expression's value."""
        return _program(expression).execute(self._context)


@cache
def _program(expression: str) -> cel.Program:
    return cel.compile(expression)
