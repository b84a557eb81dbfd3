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


@pytest.mark.parametrize(
    ("parts", "gpus", "strategy", "micro_batch", "accumulation"),
    [
        ({}, 1, "single", 8, 2),
        ({"training": {"batchSize": 12}}, 1, "single", 4, 3),
        ({"training": {"batchSize": 7}}, 1, "single", 1, 7),
        ({"training": {"microBatchSize": 2}}, 1, "single", 2, 8),
        ({"resources": {"gpu": {"count": 4}}}, 4, "ddp", 4, 1),
        ({"resources": {"gpu": {"count": 4}, "strategy": "zero3"}}, 4, "zero3", 4, 1),
        ({"adapter": FULL}, 1, "single", 1, 16),
        (
            {"adapter": FULL, "resources": {"gpu": {"count": 2}, "strategy": "fsdp"}},
            2,
            "fsdp",
            4,
            2,
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


def test_the_summary_is_for_people() -> None:
    plan = make_plan_of(resources={"gpu": {"product": "NVIDIA-H100-80GB-HBM3"}})
    assert plan.summary == "1 x NVIDIA-H100-80GB-HBM3, lora, micro-batch 8 x 2"


def test_an_assumed_size_of_the_gpus_is_told() -> None:
    assumed = "GPU memory: 80 GiB assumed: set resources.gpu.memory."
    assert assumed in make_plan_of().reasons
    assert assumed not in make_plan_of(resources={"gpu": {"memory": "80Gi"}}).reasons


def test_cpu() -> None:
    plan = make_plan_of(resources={"gpu": {"count": 0}})
    assert (plan.gpus, plan.nodes, plan.precision, plan.compile) == (0, 1, "float32", False)
    assert plan.micro_batch_size == 8
    assert to_gib(plan.host_memory) > plan.memory.total


def test_what_is_given_wins() -> None:
    plan = make_plan_of(
        training={"gradientCheckpointing": "full", "compile": "always", "maxLength": 512},
        resources={"cpu": "3", "memory": "20Gi"},
    )
    assert plan.gradient_checkpointing == "full"
    assert plan.compile
    assert plan.max_length == 512
    assert (plan.cpu, plan.host_memory) == ("3", "20Gi")


@pytest.mark.parametrize(("steps", "compiled"), [(10, False), (1000, True)])
def test_compiling_has_to_pay(steps: int, compiled: bool) -> None:
    assert make_plan_of(training={"maxSteps": steps}).compile is compiled


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"resources": {"gpu": {"count": 16}}}, "resources.gpu.count is 16"),
        ({"resources": {"gpu": {"count": 4}, "nodes": 2}}, "resources.nodes is 2"),
        ({"resources": {"gpu": {"count": 3}}}, "training.batchSize is 16"),
        ({"training": {"microBatchSize": 3}}, "training.microBatchSize is 3"),
        ({"resources": {"gpu": {"memory": "8Gi", "count": 1}}}, "offers 7.4 of its 8 GiB"),
        ({"resources": {"gpu": {"count": 0}, "nodes": 2}}, "resources.nodes is 2"),
        (
            {"training": {"batchSize": 5}, "resources": {"gpu": {"count": 2}}},
            "cannot be split over 2 GPUs",
        ),
    ],
)
def test_what_cannot_be_planned(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan_of(**parts)


@pytest.mark.parametrize(
    ("adapter", "length", "checkpointing", "micro_batch", "measured"),
    [
        # Peaks reserved on one H100 80GB by LoRA rank 16 and QLoRA on an 8B Llama.
        ({"type": "lora"}, 4096, "none", 2, 51.8),
        ({"type": "lora"}, 2048, "full", 2, 18.75),
        ({"type": "qlora"}, 2048, "full", 2, 8.31),
    ],
)
def test_the_estimate_is_near_what_was_measured_and_not_below(
    adapter: dict[str, Any], length: int, checkpointing: Any, micro_batch: int, measured: float
) -> None:
    candidate = Candidate(1, "single", micro_batch, length, checkpointing, "bf16")
    memory = estimate(make_spec(adapter=adapter), make_preparation().model, candidate)
    assert measured * 0.97 <= memory.total <= measured * 1.35


def test_sharding_and_checkpointing_save_memory() -> None:
    spec, model = make_spec(adapter=FULL), make_preparation().model

    def total(gpus: int, strategy: Any, checkpointing: Any) -> float:
        candidate = Candidate(gpus, strategy, 1, 2048, checkpointing, "bf16")
        return estimate(spec, model, candidate).total

    assert total(8, "fsdp", "none") < total(8, "zero2", "none") < total(8, "ddp", "none")
    assert total(1, "single", "full") < total(1, "single", "selective") < total(1, "single", "none")


def test_smaller_plans() -> None:
    spec, preparation = make_spec(), make_preparation()
    plan = make_plan(spec, preparation, Inventory())
    halved = smaller_plan(spec, preparation, plan, Reason.GPU_OUT_OF_MEMORY)
    assert halved is not None
    assert (halved.micro_batch_size, halved.gradient_accumulation_steps) == (4, 4)
    assert halved.memory.total < plan.memory.total
    assert halved.summary.endswith("micro-batch 4 x 4")


@pytest.mark.parametrize(
    ("text", "gib"), [("80Gi", 80), ("1Ti", 1024), ("1073741824", 1), ("512Mi", 0.5)]
)
def test_quantities(text: str, gib: float) -> None:
    assert to_gib(text) == gib
    assert from_gib(gib - 0.1) == f"{max(1, int(gib))}Gi"


def test_what_is_no_quantity() -> None:
    with pytest.raises(ValueError, match="80GiB"):
        to_gib("80GiB")
