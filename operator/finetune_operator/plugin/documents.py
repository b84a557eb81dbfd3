"""Output for programs."""

import json
import sys
from typing import Any, Literal

import yaml


def write(documents: list[dict[str, Any]], form: Literal["json", "yaml"]) -> None:
    """Print one document as it is, several as a list."""
    content: Any = documents[0] if len(documents) == 1 else documents
    if form == "json":
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        yaml.safe_dump(content, sys.stdout, sort_keys=False, width=100)
