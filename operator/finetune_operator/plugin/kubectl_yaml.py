"""YAML as kubectl reads it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.error import MarkedYAMLError


class _Loader(yaml.SafeLoader):
    """Knows 2e-4 as a number, which YAML 1.1 does not, and takes no name twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return an object as it is written, before << adds names to it."""
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            if name.value in seen:
                raise MarkedYAMLError(
                    problem=f"{name.value} is there twice: keep one", problem_mark=name.start_mark
                )
            seen.add(name.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_all(text: str) -> Iterator[Any]:
    """Yield the documents of a file, as JSON would have them; YAMLError when it is no YAML."""
    for document in yaml.load_all(text, _Loader):
        try:
            # What only YAML has, such as dates and numbers for names, becomes text.
            yield json.loads(json.dumps(document, default=str))
        except (TypeError, ValueError) as error:
            raise yaml.YAMLError("JSON cannot hold it") from error


def what_is_wrong(error: yaml.YAMLError) -> str:
    """Return what an error says, with the line if it names one; without full stop."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0]


def load(text: str) -> Any:
    """Return one value; YAMLError when it is no YAML."""
    return next(load_all(text), None)
