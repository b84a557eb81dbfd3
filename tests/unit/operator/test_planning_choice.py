"""Which GPUs are chosen, and what is said when none fit."""

import re
from typing import Any

import pytest

from finetune_operator.planning import Inventory, PlanInfeasibleError, make_plan
from finetune_operator.planning.candidates import candidates
from finetune_operator.planning.memory import Candidate
from finetune_operator.planning.products import PRODUCTS
from unit.operator.builders import make_plan_of, make_preparation, make_spec

JOBS: list[dict[str, Any]] = [
    {},
    {"adapter": {"type": "qlora"}},
    {"adapter": {"type": "full"}},
    {"training": {"batchSize": 32, "maxLength": 4096, "packing": True}},
    {"method": "dpo", "training": {"batchSize": 32}},
    {"method": "orpo", "adapter": {"type": "full"}},
    {"method": "kto", "training": {"batchSize": 64, "compile": "always"}},
    {
        "method": "grpo",
        "rewards": [{"name": "length", "builtin": "length"}],
        "adapter": {"type": "full"},
    },
]


TWO_NODES = {"nodes": 2, "workspace": {"accessMode": "ReadWriteMany"}}


def place(parts: dict[str, Any], memory: int, where: dict[str, Any]) -> int | None:
    """Return the place of the plan among all candidates, cheapest first; None when none fits."""
    spec = make_spec(**parts, resources={"gpu": {"memory": f"{memory}Gi"}, **where})
    ways = list(candidates(spec, make_preparation(), Inventory()))
    try:
        plan = make_plan(spec, make_preparation(), Inventory())
    except PlanInfeasibleError:
        return None
    return ways.index(Candidate.of(plan))


@pytest.mark.parametrize("where", [{}, TWO_NODES], ids=["auto", "two nodes"])
@pytest.mark.parametrize("parts", JOBS, ids=str)
def test_more_memory_never_makes_the_plan_worse(
    parts: dict[str, Any], where: dict[str, Any]
) -> None:
    places = [
        place(parts, memory, where) for memory in (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
    ]
    found = [found for found in places if found is not None]
    assert found == sorted(found, reverse=True)
    assert places[-1] is not None
    assert places == [None] * (len(places) - len(found)) + found


@pytest.mark.parametrize("parts", JOBS, ids=str)
def test_the_same_job_has_the_same_plan(parts: dict[str, Any]) -> None:
    assert make_plan_of(**parts) == make_plan_of(**parts)


def test_the_memory_of_a_known_product_needs_no_telling() -> None:
    plan = make_plan_of(resources={"gpu": {"product": "NVIDIA-L4"}})
    assert "of 22 GiB on each" in " ".join(plan.reasons)
    assert not any("assumed" in reason for reason in plan.reasons)
    given = make_plan_of(resources={"gpu": {"product": "NVIDIA-L4", "memory": "80Gi"}})
    assert "of 80 GiB on each" in " ".join(given.reasons)


@pytest.mark.parametrize(
    ("product", "words"),
    [
        ("Tesla-T4", "cannot compute in bf16"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "a slice of a GPU"),
    ],
)
def test_a_product_that_cannot_train_is_refused(product: str, words: str) -> None:
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan_of(resources={"gpu": {"product": product}})


def test_float32_runs_where_bf16_does_not() -> None:
    plan = make_plan_of(
        training={"precision": "float32", "maxLength": 128, "batchSize": 8},
        adapter={"type": "qlora"},
        resources={"gpu": {"product": "Tesla-V100-SXM2-32GB"}},
    )
    assert plan.precision == "float32"


def test_what_does_not_fit_names_ways_out_that_do() -> None:
    parts: dict[str, Any] = {
        "training": {"batchSize": 8, "maxLength": 8192, "packing": True},
        "resources": {"gpu": {"memory": "20Gi", "count": 1}},
    }
    with pytest.raises(PlanInfeasibleError) as refused:
        make_plan_of(**parts)
    message = str(refused.value)
    assert "more than the 18.4 of 20 GiB that may be filled" in message
    assert "adapter type qlora" in message
    assert make_plan_of(**parts, adapter={"type": "qlora"}).gpus == 1
    length = re.search(r"training.maxLength (\d+)", message)
    assert length is not None
    shorter = parts["training"] | {"maxLength": int(length[1])}
    assert make_plan_of(**parts | {"training": shorter}).gpus == 1
    more = re.search(r"(\d+) more GPUs", message)
    assert more is not None
    count = 1 + int(more[1])
    wider = {"gpu": {"memory": "20Gi", "count": count}}
    assert make_plan_of(**parts | {"resources": wider}).gpus == count


def test_larger_gpus_are_a_way_out_when_nothing_else_is() -> None:
    with pytest.raises(PlanInfeasibleError, match="GPUs with the memory of NVIDIA") as refused:
        make_plan_of(
            adapter={"type": "qlora"},
            training={"maxLength": 256},
            resources={"gpu": {"memory": "6Gi"}},
        )
    product = re.search(r"memory of (\S+)", str(refused.value))
    assert product is not None
    assert product[1] in PRODUCTS
