"""YAML as kubectl reads it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Knows 2e-4 as a number, which YAML 1.1 does not."""


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


def load(text: str) -> Any:
    """Return one value; YAMLError when it is no YAML."""
    return next(load_all(text), None)
