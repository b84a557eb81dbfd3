"""Which GPUs are chosen, and what is said when none fit."""

import re
from typing import Any

import pytest

from finetune_operator.planning import Inventory, PlanInfeasibleError, make_plan
from finetune_operator.planning.architecture import facts_of_name
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
        ("L4", "a GPU by its full name: did you mean NVIDIA-L4[?]$"),
        ("nvidia-l4", "did you mean NVIDIA-L4[?]$"),
        ("H100", "did you mean NVIDIA-H100-80GB-HBM3 or NVIDIA-H100-PCIe[?]$"),
        ("A100-80GB", "did you mean NVIDIA-A100-SXM4-80GB or NVIDIA-A100-80GB-PCIe[?]$"),
    ],
)
def test_a_product_that_cannot_train_is_refused(product: str, words: str) -> None:
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan_of(resources={"gpu": {"product": product}})


def test_a_product_that_is_not_known_is_planned_and_what_is_assumed_is_told() -> None:
    plan = make_plan_of(resources={"gpu": {"product": "NVIDIA-H10"}})
    assert plan.gpu_product == "NVIDIA-H10"
    assert plan.reasons[0] == (
        "GPU NVIDIA-H10: not known here, 80 GiB assumed: correct the name, or set"
        " resources.gpu.memory."
    )


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
    more = re.search(r"(\d+) more GPUs?", message)
    assert more is not None
    count = 1 + int(more[1])
    wider = {"gpu": {"memory": "20Gi", "count": count}}
    assert make_plan_of(**parts | {"resources": wider}).gpus == count


MIXTRAL, LARGE = "mistralai/Mixtral-8x7B-v0.1", "meta-llama/Llama-3.1-70B"
SHARED = {"workspace": {"accessMode": "ReadWriteMany"}}


@pytest.mark.parametrize(
    ("model", "parts", "words", "change", "gpus"),
    [
        (
            LARGE,
            {"adapter": {"type": "full"}, "resources": SHARED},
            "training.batchSize 32 ",
            {"training": {"batchSize": 32}},
            32,
        ),
        (
            LARGE,
            {"adapter": {"type": "full"}},
            "resources.workspace.accessMode ReadWriteMany and training.batchSize 32 ",
            {"resources": SHARED, "training": {"batchSize": 32}},
            32,
        ),
        (
            "Qwen/Qwen2.5-32B",
            {"adapter": {"type": "full"}},
            "resources.workspace.accessMode ReadWriteMany ",
            {"resources": SHARED},
            16,
        ),
        (
            MIXTRAL,
            {"adapter": {"type": "qlora"}},
            "adapter type lora ",
            {"adapter": {"type": "lora"}},
            2,
        ),
        (
            "meta-llama/Llama-3.1-8B",
            {"adapter": {"type": "full"}, "resources": {"gpu": {"memory": "24Gi"}}},
            "adapter type lora ",
            {"adapter": {"type": "lora"}},
            1,
        ),
        (
            LARGE,
            {"resources": {"gpu": {"memory": "48Gi", "count": 1}}},
            "adapter type qlora ",
            {"adapter": {"type": "qlora"}},
            1,
        ),
        (
            LARGE,
            {"training": {"precision": "float8"}},
            "training.precision bf16 ",
            {"training": {"precision": "bf16"}},
            4,
        ),
        (
            LARGE,
            {
                "training": {"precision": "float8"},
                "resources": {"gpu": {"memory": "48Gi", "count": 1}},
            },
            "adapter type qlora and training.precision bf16 ",
            {"training": {"precision": "bf16"}, "adapter": {"type": "qlora"}},
            1,
        ),
        (
            LARGE,
            {"resources": {"gpu": {"memory": "52Gi", "count": 3}}, "training": {"batchSize": 12}},
            "1 more GPU with fsdp ",
            {"resources": {"gpu": {"memory": "52Gi", "count": 4}}},
            4,
        ),
    ],
)
def test_each_way_out_is_a_plan(
    model: str, parts: dict[str, Any], words: str, change: dict[str, Any], gpus: int
) -> None:
    named = facts_of_name(f"hf://{model}")
    assert named is not None
    preparation = make_preparation().model_copy(update={"model": named[1]})
    with pytest.raises(PlanInfeasibleError) as refused:
        make_plan(make_spec(**parts), preparation, Inventory())
    way = re.search(rf"{words}\(([0-9.]+) GiB(?: on each of (\d+) GPUs)?\)", str(refused.value))
    assert way is not None, refused.value
    plan = make_plan(make_spec(**parts | change), preparation, Inventory())
    assert (plan.gpus, int(way[2] or 1)) == (gpus, gpus)
    # What is planned takes the micro-batch that fills the GPU.
    assert float(way[1]) <= plan.memory.total + 0.1


def test_what_no_number_of_gpus_helps_is_told_of_one() -> None:
    words = r"qlora needs about [0-9.]+ GiB on one GPU"
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan_of(adapter={"type": "qlora"}, resources={"gpu": {"memory": "6Gi"}})


def test_what_a_refusal_needs_and_what_would_fit_are_counted_alike() -> None:
    """Larger GPUs do not change what the job needs."""
    with pytest.raises(PlanInfeasibleError) as refused:
        make_plan_of(
            adapter={"type": "qlora"},
            training={"maxLength": 256},
            resources={"gpu": {"memory": "6Gi", "count": 1}},
        )
    needed = re.search(r"needs about ([0-9.]+) GiB", str(refused.value))
    larger = re.search(r"the memory of \S+ \(([0-9.]+) GiB\)", str(refused.value))
    assert needed is not None
    assert larger is not None
    assert needed[1] == larger[1]


def test_a_batch_that_keeps_the_job_from_more_gpus_is_named() -> None:
    large: dict[str, Any] = {"parameters": 70_000_000_000, "layers": 80, "hidden_size": 8192}
    spec = make_spec(adapter={"type": "full"}, resources=SHARED)
    words = r"each of 16 GPUs \(training.batchSize 16 cannot be split over more\)"
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan(spec, make_preparation(**large), Inventory())


@pytest.mark.parametrize(
    ("parts", "way"),
    [
        # The model knows 8192 positions.
        ({"training": {"maxLength": 1_000_000, "packing": True}}, r"training.maxLength 8192 \("),
        (
            {"training": {"maxLength": 1024, "packing": True}},
            "maxLength 512 and dataset.tooLong tr",
        ),
    ],
)
def test_a_shorter_length_is_one_that_model_and_data_take(parts: dict[str, Any], way: str) -> None:
    memory = "80Gi" if parts["training"]["maxLength"] > 8192 else "18688Mi"
    resources = {"gpu": {"memory": memory, "count": 1}}
    with pytest.raises(PlanInfeasibleError, match=way):
        make_plan_of(**parts, resources=resources)


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
