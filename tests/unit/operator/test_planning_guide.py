"""The rows of the usual hardware guides: sizes x adapters, short sequences, 8 GPUs a node.

Memory is the upper end of each row. docs/memory.md tells why some plans take more GPUs.
"""

from typing import Any

import pytest

from finetune_api.status import Plan, Preparation
from finetune_operator.planning import Inventory, make_plan
from finetune_operator.planning.architecture import facts_of_name
from unit.operator.builders import make_preparation, make_spec

SHARED = {"accessMode": "ReadWriteMany"}
REWARD = [{"name": "length", "builtin": "length"}]


def preparation_of(model: str) -> Preparation:
    named = facts_of_name(f"hf://{model}")
    assert named is not None
    preparation = make_preparation()
    rows = preparation.dataset.model_copy(update={"max_tokens": 1024})
    return preparation.model_copy(update={"model": named[1], "dataset": rows})


def plan_of(model: str, memory: str, *, batch: int = 32, **parts: Any) -> Plan:
    spec = make_spec(
        training={"batchSize": batch},
        resources={"gpu": {"memory": memory}, "workspace": SHARED},
        **parts,
    )
    return make_plan(spec, preparation_of(model), Inventory())


@pytest.mark.parametrize(
    ("model", "adapter", "memory", "gpus"),
    [
        ("meta-llama/Llama-3.2-3B", "qlora", "8Gi", 1),
        ("meta-llama/Llama-3.2-3B", "lora", "12Gi", 1),
        ("meta-llama/Llama-3.2-3B", "full", "32Gi", 1),
        ("meta-llama/Llama-3.1-8B", "qlora", "14Gi", 1),
        ("meta-llama/Llama-3.1-8B", "lora", "24Gi", 1),
        ("meta-llama/Llama-3.1-8B", "full", "80Gi", 1),
        ("Qwen/Qwen2.5-14B", "qlora", "20Gi", 1),
        ("Qwen/Qwen2.5-14B", "lora", "40Gi", 1),
        ("Qwen/Qwen2.5-14B", "full", "141Gi", 1),
        ("Qwen/Qwen2.5-32B", "qlora", "32Gi", 1),
        ("Qwen/Qwen2.5-32B", "lora", "80Gi", 1),
        # The guides say 2 to 4.
        ("Qwen/Qwen2.5-32B", "full", "80Gi", 16),
        ("meta-llama/Llama-3.1-70B", "qlora", "48Gi", 1),
        # The guides say 2.
        ("meta-llama/Llama-3.1-70B", "lora", "80Gi", 4),
        # The guides say 4 to 8.
        ("meta-llama/Llama-3.1-70B", "full", "80Gi", 32),
    ],
)
def test_sizes_and_adapters(model: str, adapter: str, memory: str, gpus: int) -> None:
    assert plan_of(model, memory, adapter={"type": adapter}).gpus == gpus


@pytest.mark.parametrize(
    ("model", "adapter", "memory", "trainers", "servers"),
    [
        # The guides say 1 + 1.
        ("Qwen/Qwen2.5-0.5B", "lora", "24Gi", 1, 1),
        ("meta-llama/Llama-3.2-3B", "lora", "24Gi", 1, 1),
        ("meta-llama/Llama-3.1-8B", "lora", "80Gi", 1, 1),
        ("meta-llama/Llama-3.1-8B", "full", "80Gi", 1, 1),
        # The guides say 1 to 2 + 1 to 2.
        ("Qwen/Qwen2.5-14B", "lora", "80Gi", 1, 1),
        # The guides say 2 to 4 + 2 to 4.
        ("Qwen/Qwen2.5-32B", "lora", "80Gi", 1, 1),
        ("meta-llama/Llama-3.1-70B", "lora", "80Gi", 4, 4),
    ],
)
def test_trainers_and_servers_of_grpo(
    model: str, adapter: str, memory: str, trainers: int, servers: int
) -> None:
    plan = plan_of(
        model,
        memory,
        method="grpo",
        adapter={"type": adapter},
        rewards=REWARD,
        rollout={"mode": "server"},
    )
    assert plan.gpus == trainers
    assert plan.rollout is not None
    assert plan.rollout.gpus == servers


@pytest.mark.parametrize(
    ("method", "more"), [("dpo", True), ("kto", True), ("orpo", False), ("sft", False)]
)
def test_methods_with_a_reference_hold_the_model_twice(method: str, more: bool) -> None:
    plan = plan_of("meta-llama/Llama-3.2-1B", "80Gi", method=method, adapter={"type": "full"})
    assert (plan.memory.reference == plan.memory.weights) == more
    lora = plan_of("meta-llama/Llama-3.2-1B", "80Gi", method=method)
    assert lora.memory.reference == 0
