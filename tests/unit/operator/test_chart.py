"""The Helm chart as files: its values are documented and its schema knows them all."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[3] / "helm/finetune-operator"
VALUES = CHART / "values.yaml"


def paths(
    values: dict[str, Any], schema: dict[str, Any], definitions: dict[str, Any], prefix: str = ""
) -> list[str]:
    """Return the values that the schema does not know."""
    unknown = []
    for key, value in values.items():
        known = schema.get("properties", {}).get(key)
        if known is not None and "$ref" in known:
            known = definitions[known["$ref"].rpartition("/")[2]]
        if known is None:
            unknown.append(prefix + key)
        elif isinstance(value, dict) and "properties" in known:
            unknown += paths(value, known, definitions, f"{prefix}{key}.")
    return unknown


def test_the_schema_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert paths(yaml.safe_load(VALUES.read_text()), schema, schema["definitions"]) == []


def test_every_value_has_a_sentence() -> None:
    """Values are documented where they are set; the parts of a documented map are its own."""
    documented = -1
    for before, line in pairwise(VALUES.read_text().splitlines()):
        match = re.match(r"( *)(\w+): *(\S.*)?$", line)
        if match is None:
            continue
        depth = len(match[1])
        if before.strip().startswith("# --"):
            documented = depth
        elif match[3]:
            assert 0 <= documented < depth, line


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"]
    assert f'version = "{chart["version"]}"' in (CHART.parents[1] / "pyproject.toml").read_text()
