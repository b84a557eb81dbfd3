"""The plan and the estimate it rests on."""

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_operator.planning import (
    Inventory,
    PlanInfeasibleError,
    make_plan,
    smaller_plan,
)
from finetune_operator.planning.memory import Candidate, estimate
from finetune_operator.planning.quantity import from_gib, to_gib
from unit.operator.builders import make_plan_of, make_preparation, make_spec

FULL = {"type": "full"}
SHARED = {"accessMode": "ReadWriteMany"}


@pytest.mark.parametrize(
    ("parts", "gpus", "strategy", "micro_batch", "accumulation"),
    [
        ({}, 1, "single", 8, 2),
        ({"training": {"batchSize": 12}}, 1, "single", 4, 3),
        ({"training": {"batchSize": 7}}, 1, "single", 1, 7),
        ({"training": {"microBatchSize": 2}}, 1, "single", 2, 8),
        ({"resources": {"gpu": {"count": 4}}}, 4, "ddp", 4, 1),
        ({"resources": {"gpu": {"count": 4}, "strategy": "zero3"}}, 4, "zero3", 4, 1),
        ({"resources": {"gpu": {"count": "auto"}, "strategy": "ddp"}}, 2, "ddp", 8, 1),
        ({"resources": {"nodes": 2, "workspace": SHARED}}, 2, "ddp", 8, 1),
        ({"resources": {"gpu": {"memory": "40Gi"}}, "adapter": FULL}, 8, "fsdp", 2, 1),
        (
            {"resources": {"gpu": {"memory": "32Gi", "count": 8}}, "adapter": FULL},
            8,
            "fsdp",
            2,
            1,
        ),
        ({"adapter": FULL}, 1, "single", 1, 16),
        (
            {"adapter": FULL, "resources": {"gpu": {"count": 2}, "strategy": "fsdp"}},
            2,
            "fsdp",
            2,
            4,
        ),
        (
            {"resources": {"gpu": {"memory": "16Gi"}}, "adapter": {"type": "qlora"}},
            1,
            "single",
            1,
            16,
        ),
    ],
)
def test_plans(
    parts: dict[str, Any], gpus: int, strategy: str, micro_batch: int, accumulation: int
) -> None:
    plan = make_plan_of(**parts)
    assert (plan.gpus, plan.strategy) == (gpus, strategy)
    assert (plan.micro_batch_size, plan.gradient_accumulation_steps) == (micro_batch, accumulation)
    batch = parts.get("training", {}).get("batchSize", 16)
    assert gpus * micro_batch * accumulation == batch
    assert plan.gpus_per_node * plan.nodes == plan.gpus
    assert plan.reasons


@pytest.mark.parametrize(
    ("parts", "summary"),
    [
        (
            {"resources": {"gpu": {"product": "NVIDIA-H100-80GB-HBM3"}}},
            "1 x NVIDIA-H100-80GB-HBM3, lora, micro-batch 8 x 2",
        ),
        (
            {
                "adapter": FULL,
                "training": {"gradientCheckpointing": "full"},
                "resources": {
                    "gpu": {"count": 16},
                    "nodes": 2,
                    "workspace": SHARED,
                    "strategy": "fsdp",
                },
            },
            "2 nodes x 8 x 80 GiB GPU, full, fsdp, micro-batch 1 x 1, checkpointing full",
        ),
        ({"resources": {"gpu": {"count": 0}}}, "CPU, lora, micro-batch 2 x 8"),
    ],
)
def test_the_summary_is_for_people(parts: dict[str, Any], summary: str) -> None:
    assert make_plan_of(**parts).summary == summary


@pytest.mark.parametrize(
    ("count", "nodes", "per_node"), [(8, 1, 8), (16, 2, 8), (12, 2, 6), (24, 3, 8)]
)
def test_gpus_that_one_node_does_not_have_are_spread_evenly(
    count: int, nodes: int, per_node: int
) -> None:
    plan = make_plan_of(
        training={"batchSize": count}, resources={"gpu": {"count": count}, "workspace": SHARED}
    )
    assert (plan.nodes, plan.gpus_per_node) == (nodes, per_node)
    assert plan.cpu == str(per_node)


def test_several_nodes_are_chosen_only_when_one_is_too_small_and_the_workspace_is_shared() -> None:
    too_large: dict[str, Any] = {"parameters": 70_000_000_000, "layers": 80, "hidden_size": 8192}
    spec = make_spec(
        adapter=FULL,
        training={"maxLength": 512, "batchSize": 32},
        resources={"workspace": SHARED},
    )
    plan = make_plan(spec, make_preparation(**too_large), Inventory())
    assert (plan.nodes, plan.gpus_per_node, plan.strategy) == (4, 8, "fsdp")
    alone = make_spec(adapter=FULL, training={"maxLength": 512})
    with pytest.raises(PlanInfeasibleError, match="on each of 8 GPUs"):
        make_plan(alone, make_preparation(**too_large), Inventory())


def test_a_paired_loss_keeps_two_sequences_together() -> None:
    kto = {"method": "kto", "training": {"batchSize": 2}}
    assert make_plan_of(**kto).micro_batch_size == 2
    smaller = smaller_plan(
        make_spec(**kto),
        make_preparation(),
        make_plan_of(**kto),
        Reason.GPU_OUT_OF_MEMORY,
        Inventory(),
    )
    assert smaller is not None
    assert (smaller.micro_batch_size, smaller.gradient_checkpointing) == (2, "selective")


@pytest.mark.parametrize(
    ("training", "length"),
    [
        ({}, 900),
        ({"maxLength": 512}, 512),
        ({"maxLength": 2048}, 900),
        ({"maxLength": 2048, "packing": True}, 2048),
        ({"packing": True}, 900),
    ],
)
def test_no_more_tokens_are_planned_for_than_the_longest_row_has(
    training: dict[str, Any], length: int
) -> None:
    assert make_plan_of(training=training).max_length == length


def test_the_longest_prompt_is_counted_with_its_completion_already() -> None:
    parts: dict[str, Any] = {
        "method": "grpo",
        "rewards": [{"name": "length", "builtin": "length"}],
        "generation": {"maxCompletionLength": 256},
    }
    assert make_plan_of(**parts).max_length == 900


def test_an_assumed_size_of_the_gpus_is_told() -> None:
    assumed = "GPU memory: 80 GiB assumed: set resources.gpu.product, or resources.gpu.memory."
    assert assumed in make_plan_of().reasons
    assert assumed not in make_plan_of(resources={"gpu": {"memory": "80Gi"}}).reasons


def test_cpu() -> None:
    plan = make_plan_of(resources={"gpu": {"count": 0}})
    assert (plan.gpus, plan.nodes, plan.precision, plan.compile) == (0, 1, "float32", False)
    assert to_gib(plan.host_memory) > plan.memory.total


@pytest.mark.parametrize(
    ("size", "training", "micro_batch"),
    [
        ("small", {}, 8),
        ("large", {}, 2),
        ("large", {"maxLength": 64}, 8),
        ("large", {"batchSize": 1}, 1),
        ("large", {"microBatchSize": 8}, 8),
    ],
)
def test_on_the_cpu_the_micro_batch_keeps_the_memory_modest(
    size: str, training: dict[str, Any], micro_batch: int
) -> None:
    tiny = {"parameters": 1_000_000, "layers": 4, "hidden_size": 64, "vocabulary": 4096}
    preparation = make_preparation(**(tiny if size == "small" else {}))
    spec = make_spec(resources={"gpu": {"count": 0}}, training=training)
    plan = make_plan(spec, preparation, Inventory())
    assert plan.micro_batch_size == micro_batch
    told = "as asked for" if "microBatchSize" in training else "takes at most 16 GiB, or 150%"
    assert any(f"Micro-batch {micro_batch}" in why and told in why for why in plan.reasons)


def test_processes_share_the_weights_that_they_read_as_they_are_stored() -> None:
    """An 8B model in bf16: 15 GiB, a fifth more, and 4 for each process and for the pod."""
    spec = make_spec(resources={"gpu": {"count": 8}})
    shared, own = (
        make_plan(spec, make_preparation(dtype=dtype), Inventory())
        for dtype in ("bfloat16", "float16")
    )
    assert (shared.host_memory, own.host_memory) == ("54Gi", "180Gi")
    assert "Host memory: 8 x 4 GiB for a process, 17.9 GiB for the weights and 4 GiB beside." in (
        shared.reasons
    )
    assert any("8 x 17.9 GiB for the weights" in reason for reason in own.reasons)


def test_of_spread_weights_each_process_makes_room_for_all() -> None:
    """In float32 where all are trained: Accelerate turns them into it before it spreads them."""
    resources = {"gpu": {"count": 4}, "strategy": "fsdp"}
    assert make_plan_of(resources=resources).host_memory == "92Gi"
    assert make_plan_of(resources=resources, adapter=FULL).host_memory == "164Gi"


def test_host_memory_that_is_asked_for_is_held_against_what_is_estimated() -> None:
    plan = make_plan_of(resources={"memory": "20Gi"})
    assert (
        "Host memory 20Gi: as asked for, which is below the estimate of 25.9 GiB." in plan.reasons
    )


def test_what_is_given_wins() -> None:
    plan = make_plan_of(
        training={"gradientCheckpointing": "full", "compile": "always", "maxLength": 512},
        resources={"cpu": "3", "memory": "20Gi"},
    )
    assert plan.gradient_checkpointing == "full"
    assert plan.compile
    assert plan.max_length == 512
    assert (plan.cpu, plan.host_memory) == ("3", "20Gi")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {
                "training": {"batchSize": 32},
                "resources": {"gpu": {"count": 32}, "nodes": 2, "workspace": SHARED},
            },
            "resources.gpu.count is 32 on resources.nodes 2, but a node has at most 8 GPUs",
        ),
        (
            {"resources": {"gpu": {"count": 16}}},
            "takes 2 nodes of at most 8 GPUs, but resources.workspace.accessMode is ReadWriteOnce",
        ),
        (
            {"adapter": {"type": "qlora"}, "resources": {"gpu": {"count": 2}, "strategy": "fsdp"}},
            "resources.strategy is fsdp, which cannot spread the quantised weights",
        ),
        (
            {"method": "ebft", "resources": {"gpu": {"count": 2}, "strategy": "zero3"}},
            "method ebft reads hidden states",
        ),
        (
            {
                "stability": {"policy": "Rollback"},
                "resources": {"gpu": {"count": 2}, "strategy": "fsdp"},
            },
            "stability.policy is Rollback",
        ),
        (
            {"method": "kto", "training": {"batchSize": 9}},
            "the kto loss needs an even number",
        ),
        ({"resources": {"gpu": {"count": 3}}}, "training.batchSize is 16"),
        ({"training": {"microBatchSize": 3}}, "training.microBatchSize is 3"),
        (
            {"resources": {"gpu": {"memory": "8Gi", "count": 1}}},
            "9.5 more than the 7.4 of 8 GiB that may be filled",
        ),
        (
            {"training": {"batchSize": 5}, "resources": {"gpu": {"count": 2}}},
            "cannot be split over 2 GPUs",
        ),
    ],
)
def test_what_cannot_be_planned(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan_of(**parts)


def test_sharding_and_checkpointing_save_memory() -> None:
    spec, preparation = make_spec(adapter=FULL), make_preparation()

    def total(gpus: int, strategy: Any, checkpointing: Any) -> float:
        candidate = Candidate(gpus, strategy, 1, 2048, checkpointing, "bf16")
        return estimate(spec, preparation, candidate).total

    assert total(8, "fsdp", "none") < total(8, "zero2", "none") < total(8, "ddp", "none")
    assert total(1, "single", "full") < total(1, "single", "selective") < total(1, "single", "none")


def test_smaller_plans_one_after_the_other() -> None:
    spec, preparation = make_spec(training={"batchSize": 4}), make_preparation()
    plan = make_plan(spec, preparation, Inventory())
    seen = []
    while True:
        smaller = smaller_plan(spec, preparation, plan, Reason.GPU_OUT_OF_MEMORY, Inventory())
        if smaller is None:
            break
        assert smaller.memory.total < plan.memory.total
        assert len(smaller.reasons) == len(plan.reasons) + 1
        plan = smaller
        seen.append(plan.summary.replace(" x 80 GiB GPU, lora", ""))
        assert plan.gpus * plan.micro_batch_size * plan.gradient_accumulation_steps == 4
    assert seen == [
        "1, micro-batch 2 x 2",
        "1, micro-batch 1 x 4",
        "1, micro-batch 1 x 4, checkpointing selective",
        "1, micro-batch 1 x 4, checkpointing full",
        "2, fsdp, micro-batch 2 x 1, checkpointing selective",
        "2, fsdp, micro-batch 1 x 2, checkpointing selective",
        "2, fsdp, micro-batch 1 x 2, checkpointing full",
        "4, fsdp, micro-batch 1 x 1, checkpointing selective",
        "4, fsdp, micro-batch 1 x 1, checkpointing full",
    ]


def test_a_given_count_of_gpus_is_kept() -> None:
    spec = make_spec(
        training={"microBatchSize": 1, "gradientCheckpointing": "full"},
        resources={"gpu": {"count": 1}},
    )
    plan = make_plan(spec, make_preparation(), Inventory())
    assert (
        smaller_plan(spec, make_preparation(), plan, Reason.GPU_OUT_OF_MEMORY, Inventory()) is None
    )


@pytest.mark.parametrize(
    ("text", "gib"), [("80Gi", 80), ("1Ti", 1024), ("1073741824", 1), ("512Mi", 0.5)]
)
def test_quantities(text: str, gib: float) -> None:
    assert to_gib(text) == gib
    assert from_gib(gib - 0.1) == f"{max(1, int(gib))}Gi"


def test_what_is_no_quantity() -> None:
    with pytest.raises(ValueError, match="80GiB"):
        to_gib("80GiB")
