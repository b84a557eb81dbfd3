"""Weights that are spread over the GPUs of each of several nodes."""

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_operator.planning import Inventory, PlanInfeasibleError, smaller_plan
from finetune_operator.planning.memory import Candidate, estimate
from unit.operator.builders import make_plan_of, make_preparation, make_spec

FULL = {"type": "full"}
SHARED = {"accessMode": "ReadWriteMany"}
TWO_NODES = {"nodes": 2, "workspace": SHARED}


def of_two_nodes(memory: int, **more: Any) -> dict[str, Any]:
    """Return resources of two nodes with eight GPUs each, of so many GiB."""
    return {"gpu": {"memory": f"{memory}Gi", "count": 16}, **TWO_NODES, **more}


@pytest.mark.parametrize(
    ("parts", "gpus", "strategy", "micro_batch"),
    [
        ({"resources": of_two_nodes(80)}, 16, "ddp", 1),
        ({"resources": of_two_nodes(40), "adapter": FULL}, 16, "hsdp", 1),
        ({"resources": of_two_nodes(24), "adapter": FULL}, 16, "fsdp", 1),
        ({"resources": of_two_nodes(80, strategy="hsdp")}, 16, "hsdp", 1),
        ({"resources": {"strategy": "hsdp", "workspace": SHARED}}, 16, "hsdp", 1),
        ({"resources": {"strategy": "hsdp", **TWO_NODES}}, 4, "hsdp", 4),
    ],
)
def test_weights_are_spread_no_farther_than_they_must(
    parts: dict[str, Any], gpus: int, strategy: str, micro_batch: int
) -> None:
    plan = make_plan_of(**parts)
    assert (plan.gpus, plan.strategy, plan.micro_batch_size) == (gpus, strategy, micro_batch)
    assert 1 < plan.nodes < plan.gpus == plan.nodes * plan.gpus_per_node


def test_one_node_has_no_copies() -> None:
    plan = make_plan_of(adapter=FULL, resources={"gpu": {"memory": "40Gi", "count": 8}})
    assert (plan.nodes, plan.strategy) == (1, "fsdp")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"resources": {"gpu": {"count": 8}, "strategy": "hsdp"}},
            "nodes is auto, resources.gpu.count 8 .* ReadWriteOnce: set resources.nodes to 2 and",
        ),
        (
            {"resources": {"gpu": {"count": 2}, "strategy": "hsdp", **TWO_NODES}},
            "nodes is 2, resources.gpu.count 2 .* set resources.gpu.count to auto, or use strategy",
        ),
        (
            {
                "resources": {
                    "gpu": {"count": 4},
                    "strategy": "hsdp",
                    "nodes": 4,
                    "workspace": SHARED,
                }
            },
            "ReadWriteMany: set resources.gpu.count to auto, or use strategy",
        ),
        (
            {"resources": {"strategy": "hsdp"}},
            "set resources.nodes to 2 and resources.workspace.accessMode to ReadWriteMany, or use",
        ),
        (
            {"resources": of_two_nodes(80, strategy="hsdp"), "adapter": {"type": "qlora"}},
            "resources.strategy is hsdp, which cannot spread the quantised weights",
        ),
        (
            {"resources": of_two_nodes(80, strategy="hsdp"), "training": {"batchSize": 8}},
            "cannot be split over 16 GPUs",
        ),
    ],
)
def test_what_cannot_have_a_copy_on_each_node(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanInfeasibleError, match=words):
        make_plan_of(**parts)


def test_a_copy_on_each_node_takes_what_its_gpus_hold() -> None:
    spec, preparation = make_spec(adapter=FULL), make_preparation()

    def weights(gpus: int, strategy: Any, nodes: int) -> float:
        candidate = Candidate(gpus, strategy, 1, 2048, "full", "bf16", nodes=nodes)
        return estimate(spec, preparation, candidate).weights

    assert weights(16, "hsdp", 2) == weights(32, "hsdp", 4) == weights(8, "fsdp", 1)
    assert weights(16, "fsdp", 2) < weights(16, "hsdp", 2)


def test_why_weights_stay_within_a_node_or_do_not() -> None:
    within, over_all = (
        " ".join(make_plan_of(adapter=FULL, resources=of_two_nodes(memory)).reasons)
        for memory in (40, 24)
    )
    assert "weights stay within the node and only gradients pass between nodes" in within
    assert "the model does not fit the GPUs of one node, so weights are spread over" in over_all


@pytest.mark.parametrize(("count", "per_node"), [(8, 4), ("auto", 2)])
def test_the_ways_out_of_a_refused_hsdp_work(count: int | str, per_node: int) -> None:
    gpu = {"count": count}
    with pytest.raises(PlanInfeasibleError, match=r"resources.nodes to 2 and .* ReadWriteMany"):
        make_plan_of(resources={"gpu": gpu, "strategy": "hsdp"})
    plan = make_plan_of(resources={"gpu": gpu, "strategy": "hsdp", **TWO_NODES})
    assert (plan.nodes, plan.gpus_per_node) == (2, per_node)


def test_a_smaller_plan_keeps_a_copy_on_each_node() -> None:
    parts: dict[str, Any] = {"adapter": FULL, "resources": of_two_nodes(40)}
    plan = make_plan_of(**parts)
    smaller = smaller_plan(
        make_spec(**parts), make_preparation(), plan, Reason.GPU_OUT_OF_MEMORY, Inventory()
    )
    assert smaller is not None
    assert (smaller.strategy, smaller.gradient_checkpointing) == ("hsdp", "selective")
    assert smaller.memory.weights == plan.memory.weights
    assert smaller.memory.total < plan.memory.total
