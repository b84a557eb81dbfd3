"""What Python itself refuses: tools without a cluster read manifests too."""

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.spec import (
    FORMATS,
    TRAINING_FIELDS,
    DatasetFormat,
    FineTuneJobSpec,
    Method,
)

SMALLEST: dict[str, Any] = {
    "method": "sft",
    "model": {"source": "hf://acme/model"},
    "dataset": {"source": "configmap://rows/train.jsonl"},
    "output": {"claim": "models"},
}


def _parse(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(SMALLEST | changes)


def test_smallest_spec() -> None:
    spec = _parse()
    assert spec.adapter.type == "lora"
    assert spec.resources.gpu.count == "auto"
    assert spec.training.checkpoint.every_steps == 100
    assert spec.to_json()["runPolicy"]["backoffLimit"] == 3


def test_quantities_may_be_numbers() -> None:
    assert _parse(resources={"cpu": 4, "memory": "16Gi"}).resources.cpu == "4"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"source": "acme/model"}}, "found 'acme/model', expected hf://ORG/NAME"),
        ({"model": {"source": "hf://acme/model\n"}}, "expected hf://ORG/NAME"),
        ({"model": {"source": "pvc://claim/../x"}}, "found 'pvc://claim/../x'"),
        ({"dataset": {"source": "job://other"}}, "expected hf://ORG/NAME"),
        ({"modle": {}}, "Extra inputs are not permitted"),
        ({"resources": {"cpu": "lots"}}, "found 'lots', expected a Kubernetes quantity"),
        ({"resources": {"cpu": True}}, "should be a valid string"),
        ({"resources": {"nodes": 0}}, "greater than or equal to 1"),
        ({"training": {"epochs": 0}}, "greater than 0"),
        ({"output": {"claim": "models", "path": "../x"}}, "expected a relative folder"),
    ],
)
def test_refuses(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        _parse(**change)
    assert said in str(refusal.value)


def test_every_method_has_formats() -> None:
    assert set(FORMATS) == set(Method)
    used = {known for formats in FORMATS.values() for known in formats}
    assert used == set(DatasetFormat) - {DatasetFormat.AUTO}


def test_only_the_run_policy_is_mutable() -> None:
    names = {field.alias for field in FineTuneJobSpec.model_fields.values()}
    assert names - set(TRAINING_FIELDS) == {"runPolicy"}
