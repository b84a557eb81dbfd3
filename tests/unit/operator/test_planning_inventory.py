"""What the cluster's nodes mean to a plan."""

from itertools import combinations
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import Plan
from finetune_operator.api import ApiError
from finetune_operator.nodes import Nodes
from finetune_operator.planning import (
    Inventory,
    Node,
    PlanInfeasibleError,
    make_plan,
    smaller_plan,
)
from unit.operator.builders import Life, make_plan_of, make_preparation, make_spec, prepared_pod

L4, A100, H100 = "NVIDIA-L4", "NVIDIA-A100-SXM4-40GB", "NVIDIA-H100-80GB-HBM3"
SLICE = "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"
MORE = "so more have to be added"
WIDE: dict[str, Any] = {"accessMode": "ReadWriteMany"}


def node_body(
    product: str | None = H100,
    gpus: int = 8,
    *,
    name: str = "node",
    memory: str | None = None,
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
    unschedulable: bool = False,
    ready: str = "True",
) -> dict[str, Any]:
    found = dict(labels or {})
    if product is not None:
        found[names.GPU_PRODUCT_LABEL] = product
    if memory is not None:
        found["nvidia.com/gpu.memory"] = memory
    return {
        "metadata": {"name": name, "labels": found, "resourceVersion": "1"},
        "spec": {"unschedulable": unschedulable, "taints": taints or []},
        "status": {
            "allocatable": {"cpu": "64", names.GPU_RESOURCE: str(gpus)},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def node(*arguments: Any, **options: Any) -> Node:
    """Return a node; arguments as for node_body."""
    found = Node.parse(node_body(*arguments, **options))
    assert found is not None
    return found


def plan_on(*nodes: Node, **parts: Any) -> Plan:
    return make_plan(make_spec(**parts), make_preparation(), Inventory(nodes=nodes))


def said(plan: Plan) -> str:
    return " ".join(plan.reasons)


@pytest.mark.parametrize(
    "body",
    [
        node_body(gpus=0),
        node_body(product=None),
        node_body(unschedulable=True),
        node_body(ready="False"),
        node_body(ready="Unknown"),
        {"metadata": {"name": "bare"}},
    ],
)
def test_a_node_whose_gpus_cannot_be_had_is_left_out(body: dict[str, Any]) -> None:
    assert Node.parse(body) is None


def test_the_smallest_gpu_that_fits_is_chosen_and_is_what_pods_ask_for() -> None:
    plan = plan_on(node(H100), node(L4, 1), adapter={"type": "qlora"})
    assert (plan.gpu_product, plan.gpus, plan.nodes) == (L4, 1, 1)
    assert plan.summary.startswith(f"1 x {L4}")
    assert f"there are also {H100}" in said(plan)


def test_one_large_gpu_comes_before_several_small_ones() -> None:
    small = node("NVIDIA-Small", 8, memory="12288")
    alone = plan_on(small)
    assert (alone.gpu_product, alone.gpus > 1) == ("NVIDIA-Small", True)
    both = plan_on(small, node("NVIDIA-H200", 1))
    assert (both.gpu_product, both.gpus) == ("NVIDIA-H200", 1)


def test_memory_is_what_the_label_says_and_else_what_the_product_has() -> None:
    assert "of 22 GiB on each" in said(plan_on(node(L4), adapter={"type": "qlora"}))
    custom = plan_on(node("NVIDIA-New", memory="49152"))
    assert custom.gpu_product == "NVIDIA-New"
    assert "of 48 GiB on each" in said(custom)
    assert "assumed" not in said(custom)
    assert "80 GiB assumed" in said(plan_on(node("NVIDIA-New")))


def test_nodes_that_the_job_may_not_run_on_do_not_count() -> None:
    taint = [{"key": "team", "value": "a", "effect": "NoSchedule"}]
    nodes = node(H100, labels={"zone": "z1"}), node(L4, taints=taint)
    job: dict[str, Any] = {"adapter": {"type": "qlora"}}
    assert plan_on(*nodes, **job).gpu_product == H100
    tolerates = {"tolerations": [{"key": "team", "value": "a"}]}
    assert plan_on(*nodes, **job, resources=tolerates).gpu_product == L4
    selects = tolerates | {"nodeSelector": {"zone": "z1"}}
    assert plan_on(*nodes, **job, resources=selects).gpu_product == H100
    nowhere = plan_on(*nodes, **job, resources={"nodeSelector": {"zone": "z9"}})
    assert nowhere.gpu_product is None
    assert "no node that the job may run on has any now" in said(nowhere)


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "team", "operator": "Exists"}, True),
        ({"key": "team", "value": "a", "effect": "NoExecute"}, True),
        ({"key": "team", "value": "b"}, False),
        ({"key": "team", "value": "a", "effect": "NoSchedule"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_taints_are_tolerated_as_the_scheduler_has_it(
    toleration: dict[str, str], tolerated: bool
) -> None:
    tainted = node(taints=[{"key": "team", "value": "a", "effect": "NoExecute"}])
    assert tainted.takes(make_spec(resources={"tolerations": [toleration]})) is tolerated


@pytest.mark.parametrize(
    "taint",
    [
        {"key": "team", "effect": "PreferNoSchedule"},
        {"key": names.GPU_RESOURCE, "value": "present", "effect": "NoSchedule"},
    ],
)
def test_taints_that_keep_no_gpu_job_away(taint: dict[str, str]) -> None:
    assert node(taints=[taint]).takes(make_spec())


def test_without_gpu_nodes_the_plan_is_that_for_the_usual_gpu() -> None:
    unknown, none = make_plan_of(), plan_on()
    assert none.reasons[1:] == unknown.reasons
    assert "so they have to be added" in none.reasons[0]
    assert none.model_copy(update={"reasons": unknown.reasons}) == unknown


def test_a_product_that_no_node_has_is_planned_for_all_the_same() -> None:
    plan = plan_on(node(L4), resources={"gpu": {"product": H100}})
    assert plan.gpu_product == H100
    assert f"no node that the job may run on has {H100} now" in said(plan)
    there = plan_on(node(L4), node(H100), resources={"gpu": {"product": H100}})
    assert "no node" not in said(there)


def test_a_part_of_a_products_name_is_refused_unless_a_node_has_it() -> None:
    named: dict[str, Any] = {"resources": {"gpu": {"product": "H100"}}}
    with pytest.raises(PlanInfeasibleError, match=f"did you mean {H100} or"):
        plan_on(node(H100), **named)
    assert plan_on(node("H100", memory="81559"), **named).gpu_product == "H100"


def test_a_job_for_a_part_of_a_products_name_ends_and_says_why() -> None:
    parts: dict[str, Any] = {"resources": {"gpu": {"product": "L4"}}}
    life = Life(**parts)
    life.step(0)
    life.step(10, prepared_pod(**parts), inventory=Inventory(nodes=(node(L4),)))
    assert life.phase == "Failed"
    assert (
        f"resources.gpu.product is L4, but nodes call a GPU by its full name: did you mean {L4}"
        in (life.message)
    )


def test_memory_that_is_asked_for_without_a_product_is_not_looked_up() -> None:
    asked: dict[str, Any] = {"resources": {"gpu": {"memory": "40Gi"}}}
    assert plan_on(node(L4), **asked) == make_plan_of(**asked)


def test_more_gpus_than_there_are_is_a_reason_and_no_refusal() -> None:
    several: dict[str, Any] = {"gpu": {"count": 4}, "workspace": WIDE}
    assert MORE not in said(plan_on(node(L4, 4), adapter={"type": "qlora"}, resources=several))
    plan = plan_on(node(L4, 2), adapter={"type": "qlora"}, resources=several)
    assert (plan.gpus, plan.nodes, plan.gpus_per_node) == (4, 2, 2)
    assert MORE in said(plan)


def test_nodes_to_be_added_are_like_those_there() -> None:
    """So a job that only larger nodes could take is told so, and does not wait for them."""
    job: dict[str, Any] = {"resources": {"gpu": {"count": 4}}}
    with pytest.raises(PlanInfeasibleError, match="takes 2 nodes of at most 2 GPUs, but") as here:
        plan_on(node(H100, 1), node(H100, 2), **job)
    assert "set it to ReadWriteMany, or ask for 2 GPUs or fewer" in str(here.value)
    elsewhere = {"gpu": {"count": 4, "product": H100}}
    plan = plan_on(node(L4, 2), resources=elsewhere)
    assert (plan.gpu_product, plan.gpus, plan.nodes) == (H100, 4, 1)


def test_several_nodes_are_taken_when_there_are_so_many() -> None:
    job: dict[str, Any] = {
        "training": {"batchSize": 64},
        "resources": {"gpu": {"count": 4}, "workspace": WIDE},
    }
    plan = plan_on(node(H100, 2), node(H100, 2), **job)
    assert (plan.nodes, plan.gpus_per_node) == (2, 2)
    assert MORE not in said(plan)
    single = plan_on(node(H100, 2), node(H100, 2), node(H100, 4), **job)
    assert (single.nodes, single.gpus_per_node) == (1, 4)


def test_slices_and_old_gpus_are_refused_only_when_there_is_nothing_else() -> None:
    assert plan_on(node(SLICE), node(H100), node("Tesla-T4")).gpu_product == H100
    with pytest.raises(PlanInfeasibleError, match="a slice of a GPU") as refused:
        plan_on(node(SLICE), node("Tesla-T4"), node(f"{H100}-SHARED"))
    assert "Tesla-T4, which cannot compute in bf16" in str(refused.value)


def test_what_fits_no_kind_of_gpu_is_refused_with_what_would_fit() -> None:
    with pytest.raises(PlanInfeasibleError, match="22 GiB that may be filled: it would fit with"):
        plan_on(node(L4, 1), node(L4, 1), adapter={"type": "full"})


def test_what_is_at_odds_is_said_as_without_nodes() -> None:
    job: dict[str, Any] = {"training": {"batchSize": 9}, "resources": {"gpu": {"count": 2}}}
    with pytest.raises(PlanInfeasibleError) as usual:
        make_plan_of(**job)
    with pytest.raises(PlanInfeasibleError) as here:
        plan_on(node(H100), **job)
    assert str(here.value) == str(usual.value)


POOLS = (
    node(L4, 1),
    node(L4, 8),
    node(A100, 4),
    node(H100, 2),
    node("NVIDIA-H200", 8),
    node(SLICE),
)
JOBS: list[dict[str, Any]] = [
    {},
    {"adapter": {"type": "qlora"}},
    {"adapter": {"type": "full"}, "resources": {"workspace": WIDE}},
    {"training": {"batchSize": 32, "maxLength": 8192, "packing": True}},
    {"method": "dpo", "training": {"batchSize": 32}, "resources": {"workspace": WIDE}},
]


def cost(plan: Plan, nodes: tuple[Node, ...]) -> tuple[bool, int, float]:
    """Return how bad a plan is: on GPUs that are not there, spread over many, taking memory."""
    memory = {one.product: make_memory(one.product) for one in nodes}
    spread = 0 if plan.gpus == 1 else min(plan.nodes, 2)
    return MORE in said(plan), spread, plan.gpus * memory[plan.gpu_product or ""]


def make_memory(product: str) -> float:
    from finetune_operator.planning.products import PRODUCTS

    return PRODUCTS[product].memory_gib if product in PRODUCTS else 0.0


@pytest.mark.parametrize("parts", JOBS, ids=str)
def test_more_nodes_never_make_the_plan_worse(parts: dict[str, Any]) -> None:
    plans: dict[frozenset[int], tuple[bool, int, float] | None] = {}
    for size in range(1, len(POOLS) + 1):
        for chosen in combinations(range(len(POOLS)), size):
            nodes = tuple(POOLS[index] for index in chosen)
            try:
                plans[frozenset(chosen)] = cost(plan_on(*nodes, **parts), nodes)
            except PlanInfeasibleError:
                plans[frozenset(chosen)] = None
    assert None not in [found for chosen, found in plans.items() if 4 in chosen]
    for fewer, before in plans.items():
        for more in set(range(len(POOLS))) - fewer:
            after = plans[fewer | {more}]
            assert before is None or (after is not None and after <= before)


@pytest.mark.parametrize("parts", JOBS, ids=str)
def test_the_order_of_nodes_does_not_matter(parts: dict[str, Any]) -> None:
    assert plan_on(*POOLS, **parts) == plan_on(*reversed(POOLS), **parts)


@pytest.mark.parametrize("parts", JOBS, ids=str)
def test_more_memory_never_spreads_the_plan_wider(parts: dict[str, Any]) -> None:
    spreads: list[int] = []
    for gib in (16, 24, 40, 48, 80, 96, 141, 192):
        nodes = node("NVIDIA-New", 4, memory=str(1024 * gib)), node(A100, 4)
        try:
            plan = plan_on(*nodes, **parts)
        except PlanInfeasibleError:
            assert not spreads
            continue
        spreads.append(plan.gpus)
    assert spreads == sorted(spreads, reverse=True)
    assert spreads


def test_a_smaller_plan_stays_on_the_product_of_the_plan() -> None:
    spec, preparation = make_spec(adapter={"type": "qlora"}), make_preparation()
    inventory = Inventory(nodes=(node(L4, 4), node(H100, 8)))
    plan: Plan | None = make_plan(spec, preparation, inventory)
    products, gpus = [], []
    while plan is not None:
        products.append(plan.gpu_product)
        gpus.append(plan.gpus)
        assert L4 in plan.summary
        plan = smaller_plan(spec, preparation, plan, Reason.GPU_OUT_OF_MEMORY, inventory)
    assert set(products) == {L4}
    assert gpus == sorted(gpus)


def test_a_smaller_plan_says_that_its_gpus_have_to_be_added() -> None:
    spec = make_spec(resources={"workspace": WIDE})
    preparation, inventory = make_preparation(), Inventory(nodes=(node(L4, 1),))
    plans: list[Plan] = [make_plan(spec, preparation, inventory)]
    while (
        plan := smaller_plan(spec, preparation, plans[-1], Reason.GPU_OUT_OF_MEMORY, inventory)
    ) is not None:
        plans.append(plan)
    added = [sum(MORE in reason for reason in plan.reasons) for plan in plans]
    assert added == [int(plan.nodes > 1) for plan in plans]
    assert {plan.nodes for plan in plans} == {1, 2, 4}
    assert {plan.gpus_per_node for plan in plans} == {1}


def test_a_job_is_planned_with_the_nodes_there_are_and_stays_so() -> None:
    pod = prepared_pod(adapter={"type": "qlora"})
    life = Life(adapter={"type": "qlora"})
    life.step(0)
    life.step(10, pod, inventory=Inventory(nodes=(node(L4, 1), node(H100))))
    planned = life.body["status"]["plan"]
    assert planned["gpuProduct"] == L4
    life.step(20, pod, inventory=Inventory(nodes=(node(H100),)))
    assert life.body["status"]["plan"] == planned


class Listing:
    """An API server with nodes on two pages."""

    def __init__(self, *bodies: dict[str, Any]) -> None:
        self.bodies = bodies
        self.code = 0
        self.lists = 0

    async def pages(self, _resource: Any, _namespace: None, selector: str) -> Any:
        assert selector == names.GPU_PRODUCT_LABEL
        self.lists += 1
        for body in self.bodies:
            yield [body], "9"
            if self.code:
                raise ApiError("LIST", "nodes", self.code, "no")


def watched(api: Listing) -> Nodes:
    given: Any = api
    return Nodes(given)


def names_of(nodes: Nodes) -> list[str] | None:
    found = nodes.inventory().nodes
    return None if found is None else sorted(one.product for one in found)


@pytest.mark.asyncio
async def test_nodes_are_those_listed_and_then_those_watched() -> None:
    api = Listing(node_body(L4, name="a"), node_body(H100, name="b"))
    nodes = watched(api)
    await nodes.refresh()
    assert names_of(nodes) == [H100, L4]
    nodes.put(node_body(H100, name="b", unschedulable=True))
    assert names_of(nodes) == [L4]
    nodes.put(node_body(A100, name="c"))
    nodes.forget(node_body(L4, name="a"))
    assert names_of(nodes) == [A100]
    await nodes.refresh()
    assert names_of(nodes) == [H100, L4], "a deletion that the watch has missed is made up for"


@pytest.mark.asyncio
async def test_without_the_right_to_list_nodes_plans_do_without() -> None:
    api = Listing(node_body(L4, name="a"))
    api.code = 403
    nodes = watched(api)
    await nodes.refresh()
    await nodes.refresh()
    assert nodes.inventory() == Inventory()
    assert (nodes.known, api.lists) == (False, 1)


@pytest.mark.asyncio
async def test_an_api_server_that_is_away_leaves_what_is_known() -> None:
    api = Listing(node_body(L4, name="a"))
    nodes = watched(api)
    await nodes.refresh()
    api.code = 503
    await nodes.refresh()
    assert names_of(nodes) == [L4]
