"""The generated files say what the models say."""

import subprocess
import sys
from typing import Any

import pytest

from finetune_api import crd, generate
from finetune_api.base import VALIDATIONS, ApiModel
from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import FineTuneJobStatus

SPEC = crd.structural_schema(FineTuneJobSpec)
STATUS = crd.structural_schema(FineTuneJobStatus, defaults=False)


def test_files_are_up_to_date() -> None:
    assert generate.stale_files() == [], "run `make generate`"


def test_check_names_the_stale_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate"])
    generate.main()
    (tmp_path / "docs/reference/failures.md").write_text("edited by hand")
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    with pytest.raises(SystemExit) as stop:
        generate.main()
    assert stop.value.code == (
        "stale: docs/reference/failures.md; run `make generate` and commit what it writes"
    )


def test_generation_is_deterministic_across_processes() -> None:
    program = "from finetune_api.generate import generated_files as f; print(hash(str(f())))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program.replace("hash(str(f()))", "str(f())")],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def _nodes(schema: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, part in schema.get("properties", {}).items():
        found += _nodes(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            found += _nodes(schema[key], f"{path}[]")
    return found


NODES = [*_nodes(SPEC, "spec"), *_nodes(STATUS, "status")]


def test_every_field_has_a_description() -> None:
    bare = [path for path, node in NODES if "description" not in node and not path.endswith("[]")]
    assert bare == []


def test_descriptions_are_one_line_and_end_as_sentences() -> None:
    descriptions = [node["description"] for _, node in NODES if "description" in node]
    assert [text for text in descriptions if "\n" in text or not text.endswith(".")] == []


def test_everything_in_the_spec_is_bounded() -> None:
    """CEL rules have a budget, and etcd a limit on objects."""
    limits = {"string": "maxLength", "array": "maxItems", "integer": "maximum"}
    unbounded = [
        path
        for path, node in _nodes(SPEC, "spec")
        if (limit := limits.get(node.get("type", ""))) and limit not in node and "enum" not in node
    ]
    assert unbounded == []


def test_nothing_in_the_status_has_a_default() -> None:
    assert [path for path, node in _nodes(STATUS, "status") if "default" in node] == []


def test_rules_say_one_sentence_without_full_stop() -> None:
    rules = [rule for _, node in NODES for rule in node.get(VALIDATIONS, [])]
    assert len(rules) > 60
    for rule in rules:
        text = rule.get("messageExpression", rule.get("message"))
        assert not text.endswith(".")
        assert text[0].islower() or text.startswith('"')


def test_bounds_are_openapi_v3() -> None:
    assert SPEC["properties"]["training"]["properties"]["epochs"] == {
        "description": "Passes over the data, when maxSteps is not given.",
        "type": "number",
        "default": 1.0,
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1000,
    }


def test_unions_have_no_place_in_the_schema() -> None:
    node = SPEC["properties"]["resources"]["properties"]["nodes"]
    assert node["x-kubernetes-int-or-string"] is True
    assert not {"type", "anyOf"} & set(node)
    assert SPEC["properties"]["method"]["enum"] == list(Method)


def test_a_union_of_two_types_is_refused() -> None:
    class Ambiguous(ApiModel):
        value: int | str

    with pytest.raises(ValueError, match="a structural schema has no unions"):
        crd.structural_schema(Ambiguous)
