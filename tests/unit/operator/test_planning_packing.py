"""What the plan makes of packed rows, and of rows that packing would fill."""

from typing import Any

import pytest

from finetune_operator.planning.memory import Candidate
from finetune_operator.planning.memory.candidate import Batch, batch_of
from unit.operator.builders import make_plan_of, make_preparation, make_spec

PACKED = {"training": {"packing": True, "maxLength": 4096}}


def batch(gpus: int, micro_batch: int, **model: Any) -> Batch:
    candidate = Candidate(
        gpus=gpus,
        strategy="single",
        micro_batch_size=micro_batch,
        max_length=4096,
        checkpointing="none",
        precision="bf16",
    )
    return batch_of(make_spec(**PACKED), make_preparation(**model), candidate)


def test_packed_rows_have_no_mask_of_pairs_on_gpus() -> None:
    assert batch(1, 4) == Batch(4 * 4096)
    assert batch(1, 4, heads=28, kv_heads=4) == Batch(4 * 4096, repeats=True)
    assert batch(0, 1) == Batch(4096, repeats=True, mask=4096)


@pytest.mark.parametrize(
    ("training", "is_said"),
    [
        ({"microBatchSize": 4}, True),
        ({"microBatchSize": 1}, False),
        ({"microBatchSize": 4, "packing": True}, False),
        ({"microBatchSize": 4, "maxLength": 256}, False),
    ],
)
def test_short_rows_beside_long_ones_are_said_to_pad(
    training: dict[str, Any], is_said: bool
) -> None:
    reasons = make_plan_of(training=training).reasons
    said = [reason for reason in reasons if reason.startswith("Packing off: rows have 200 tokens")]
    assert bool(said) is is_said
    assert not any("Packing off" in reason for reason in make_plan_of(method="dpo").reasons)


def test_packing_and_float8_are_among_the_reasons() -> None:
    training = {"packing": True, "maxLength": 4096, "precision": "float8"}
    known = make_plan_of(
        training=training, resources={"gpu": {"product": "NVIDIA-H100-80GB-HBM3"}}
    ).reasons
    assert "Packing on: as asked for; a row has up to 4096 tokens of documents." in known
    assert "Precision float8: as asked for." in known
    unknown = make_plan_of(training=training).reasons
    assert any("name one in resources.gpu.product" in reason for reason in unknown)
    usual = make_plan_of().reasons
    assert not any(reason.startswith(("Packing on", "Precision")) for reason in usual)
