"""The vLLM servers that a plan asks for."""

from itertools import pairwise
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import Plan, Preparation, RolloutPlan
from finetune_operator.planning import (
    Inventory,
    Node,
    PlanInfeasibleError,
    make_plan,
    smaller_plan,
)
from finetune_operator.planning.architecture import facts_of_name
from unit.operator.builders import make_preparation, make_spec

H100 = "NVIDIA-H100-80GB-HBM3"
LLAMA = "meta-llama/Llama-3.1-8B"
PROMPT = 512
SHARED = {"accessMode": "ReadWriteMany"}
MEMORIES = (24, 32, 40, 48, 64, 80, 96, 141, 180)
MORE = "so more have to be added"
LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def preparation_of(model: str = LLAMA, completion: int = 512) -> Preparation:
    named = facts_of_name(f"hf://{model}")
    assert named is not None
    preparation = make_preparation()
    lengths = {"max_tokens": PROMPT + completion, "mean_tokens": 256.0}
    rows = preparation.dataset.model_copy(update=lengths)
    return preparation.model_copy(update={"model": named[1], "dataset": rows})


def plan_of(
    model: str = LLAMA,
    *,
    completion: int = 512,
    batch: int = 64,
    gpu: dict[str, Any] | None = None,
    adapter: str = "lora",
    nodes: int | None = None,
    inventory: Inventory | None = None,
    **rollout: Any,
) -> Plan:
    spec = make_spec(
        method="grpo",
        adapter={"type": adapter},
        training={"batchSize": batch},
        generation={"maxCompletionLength": completion},
        rewards=[{"name": "length", "builtin": "length"}],
        rollout={"mode": "server", **rollout},
        resources={
            "gpu": gpu or {"product": H100},
            "nodes": nodes or "auto",
            "workspace": SHARED,
        },
    )
    return make_plan(spec, preparation_of(model, completion), inventory or Inventory())


def servers_of(*arguments: Any, **options: Any) -> RolloutPlan:
    rollout = plan_of(*arguments, **options).rollout
    assert rollout is not None
    return rollout


def step_seconds(rollout: RolloutPlan, prefetch: int) -> float:
    times = (rollout.writing_seconds, rollout.training_seconds)
    return max(times) if prefetch else sum(times)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(PlanInfeasibleError) as error:
        plan_of(*arguments, **options)
    return str(error.value)


def test_a_server_beside_the_trainer() -> None:
    plan = plan_of()
    rollout = servers_of()
    assert plan.gpus == 1
    assert plan.memory.rollout == 0
    assert (rollout.mode, rollout.replicas, rollout.tensor_parallel_size) == ("server", 1, 1)
    assert (rollout.gpus, rollout.gpu_memory_utilization) == (1, 0.9)
    assert rollout.max_model_length == plan.max_length == 1024
    assert rollout.weights == 14.96
    # 0.9 x 79.6 GiB, without weights and 2 GiB.
    assert rollout.kv_cache == pytest.approx(54.72, abs=0.01)
    assert rollout.kv_tokens == pytest.approx(rollout.kv_cache * 2**30 / 131_072, abs=100)
    assert rollout.sequences == 256


@pytest.mark.parametrize("mode", ["auto", "local"])
def test_a_trainer_that_writes_itself_needs_no_server(mode: str) -> None:
    assert plan_of(mode=mode).rollout is None


def test_methods_that_write_nothing_need_no_server() -> None:
    assert make_plan(make_spec(), make_preparation(), Inventory()).rollout is None


@pytest.mark.parametrize(("replicas", "size"), [(3, 2), (2, 4), (1, 8)])
def test_what_is_asked_for_wins(replicas: int, size: int) -> None:
    rollout = servers_of(replicas=replicas, tensorParallelSize=size)
    assert (rollout.replicas, rollout.tensor_parallel_size) == (replicas, size)
    assert rollout.gpus == replicas * size
    assert "as asked for" in rollout.reasons[0]


def test_times_are_what_the_limits_of_the_gpu_allow() -> None:
    rollout = servers_of()
    # 64 sequences see 512 tokens each in the mean: 15 GiB of weights, and 4 GiB of keys and values.
    token = (2 * 8_030_261_248 + 64 * 512 * 131_072) / (0.7 * 3.35e12) + 2e-3
    # Eight prompts of 256 tokens: 2 FLOPs a weight, without the embedding, and little attention.
    prompts = 8 * 256 * 2 * 7.505e9 / (0.4 * 989e12)
    assert rollout.writing_seconds == pytest.approx(512 * token + prompts, rel=0.01)
    # 4 FLOPs a frozen weight, 2 more for the likelihoods that correct for vLLM's.
    training = 64 * 768 * 6 * 7.505e9 / (0.4 * 989e12)
    assert rollout.training_seconds == pytest.approx(training, rel=0.05)


def test_more_servers_are_taken_as_long_as_they_save_gpu_time() -> None:
    chosen = servers_of(batch=512, completion=4096, prefetch=1, maxStaleness=1)
    assert chosen.gpus > 1
    for replicas in range(1, 9):
        for size in (1, 2, 4, 8):
            other = servers_of(
                batch=512,
                completion=4096,
                prefetch=1,
                maxStaleness=1,
                replicas=replicas,
                tensorParallelSize=size,
            )
            least = (1 + chosen.gpus) * step_seconds(chosen, 1)
            assert (1 + other.gpus) * step_seconds(other, 1) >= least * 0.999


def test_a_trainer_that_waits_for_completions_gets_them_sooner() -> None:
    alone = servers_of(gpu={"product": H100, "count": 1})
    eight = servers_of(gpu={"product": H100, "count": 8})
    assert eight.gpus > alone.gpus
    assert eight.writing_seconds < alone.writing_seconds


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("batch", [64, 512])
@pytest.mark.parametrize("model", [LLAMA, "Qwen/Qwen2.5-32B"])
def test_more_gpu_memory_never_costs_more_gpu_time(model: str, batch: int, prefetch: int) -> None:
    times = []
    for memory in MEMORIES[1:]:
        gpu = {"memory": f"{memory}Gi", "count": 4}
        rollout = servers_of(
            model, batch=batch, gpu=gpu, adapter="qlora", prefetch=prefetch, maxStaleness=prefetch
        )
        times.append((4 + rollout.gpus) * step_seconds(rollout, prefetch))
    assert all(later <= earlier * 1.001 for earlier, later in pairwise(times))


@pytest.mark.parametrize("model", [LLAMA, "Qwen/Qwen2.5-32B", "meta-llama/Llama-3.1-70B"])
def test_more_gpu_memory_never_makes_a_server_need_more_gpus(model: str) -> None:
    needed = []
    for memory in MEMORIES:
        for size in (1, 2, 4, 8):
            gpu = {"memory": f"{memory}Gi", "count": 8}
            try:
                servers_of(model, gpu=gpu, adapter="qlora", tensorParallelSize=size)
            except PlanInfeasibleError:
                continue
            needed.append(size)
            break
    assert len(needed) > 1
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("batch", [64, 512, 2048])
def test_longer_completions_never_get_fewer_gpus(batch: int, count: int, prefetch: int) -> None:
    gpu = {"memory": "180Gi", "count": count}
    options = {"batch": batch, "gpu": gpu, "prefetch": prefetch, "maxStaleness": prefetch}
    gpus = [servers_of(completion=length, **options).gpus for length in LENGTHS]
    assert gpus == sorted(gpus)
    fixed = {**options, "tensorParallelSize": 1}
    replicas = [servers_of(completion=length, **fixed).replicas for length in LENGTHS]
    assert replicas == sorted(replicas)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tensorParallelSize": 3},
            (
                "rollout.tensorParallelSize is 3, but over the GPUs of one node vLLM can split"
                " this model by 1, 2, 4 or 8 only: choose one of these, or auto."
            ),
        ),
        (
            {"tensorParallelSize": 1, "gpu": {"memory": "16Gi"}, "adapter": "qlora"},
            (
                "rollout.tensorParallelSize is 1, but 1 GPU of 16 GiB cannot hold 15.0 GiB of"
                " weights on each and the keys and values of one sequence of 1024 tokens: choose"
                " 2, 4 or 8, or auto."
            ),
        ),
        (
            {
                "model": "meta-llama/Llama-3.1-70B",
                "gpu": {"memory": "48Gi"},
                "adapter": "qlora",
                "inventory": Inventory(gpus_per_node=2),
            },
            (
                "rollout.tensorParallelSize is auto, but 2 GPUs of 48 GiB cannot hold 65.7 GiB"
                " of weights on each and the keys and values of one sequence of 1024 tokens: nor"
                " can any size that vLLM can split this model by on one node (1 or 2): choose"
                " GPUs with more memory, or rollout.mode local."
            ),
        ),
        (
            {"gpu": {"count": 0}},
            (
                "rollout.mode is server, whose vLLM is planned on GPUs only, but"
                " resources.gpu.count is 0: set rollout.mode to local, or ask for GPUs."
            ),
        ),
        (
            {"mode": "colocate", "tensorParallelSize": 4, "gpu": {"product": H100, "count": 2}},
            (
                "rollout.tensorParallelSize is 4, but the trainer has 2 GPUs on a node, which"
                " vLLM in its processes cannot share evenly: choose a divisor, or auto."
            ),
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    options: dict[str, Any], message: str
) -> None:
    assert refusal(**options) == message


def node(product: str, gpus: int) -> Node:
    return Node(product=product, gpus=gpus, mebibytes=None)


def test_gpus_that_cannot_serve_are_passed_over() -> None:
    inventory = Inventory(nodes=(node("NVIDIA-L40S", 8), node(H100, 8)))
    any_gpu = {"product": "auto"}
    job: dict[str, Any] = {"gpu": any_gpu, "batch": 8, "adapter": "qlora", "inventory": inventory}
    split = plan_of("Qwen/Qwen2.5-32B", **job)
    assert split.gpu_product == "NVIDIA-L40S"
    assert split.rollout is not None
    assert split.rollout.tensor_parallel_size > 1
    assert plan_of("Qwen/Qwen2.5-32B", tensorParallelSize=1, **job).gpu_product == H100


def test_the_nodes_limit_the_servers() -> None:
    options: dict[str, Any] = {"batch": 512, "completion": 4096, "prefetch": 1, "maxStaleness": 1}
    assert servers_of(**options).gpus == 2
    two = servers_of(**options, inventory=Inventory(nodes=(node(H100, 2),)))
    assert two.gpus == 1
    one = servers_of(**options, inventory=Inventory(nodes=(node(H100, 1),)))
    assert one.gpus == 1
    assert any(MORE in reason for reason in one.reasons)


@pytest.mark.parametrize(("nodes", "is_there"), [(2, False), (3, True)])
def test_a_server_is_on_one_node(nodes: int, *, is_there: bool) -> None:
    gpu = {"product": H100, "count": 4}
    inventory = Inventory(nodes=nodes * (node(H100, 4),))
    spread = servers_of(tensorParallelSize=4, replicas=1, gpu=gpu, nodes=2, inventory=inventory)
    assert any(MORE in reason for reason in spread.reasons) is not is_there


def test_vllm_on_the_trainers_gpus_takes_part_of_them() -> None:
    plan, awake = plan_of(mode="colocate"), servers_of(mode="colocate")
    assert (awake.gpus, awake.replicas, awake.tensor_parallel_size) == (0, 1, 1)
    # Weights, 64 sequences of 1024 tokens, and 2 GiB.
    assert plan.memory.rollout == pytest.approx(14.96 + 8 + 2, abs=0.01)
    assert awake.gpu_memory_utilization == pytest.approx(24.96 / 79.6, abs=0.01)
    # Asleep while training it leaves room for what the trainer holds then.
    asleep = plan_of(mode="colocate", sleep=True)
    assert asleep.memory.rollout == 2
    assert asleep.micro_batch_size >= plan.micro_batch_size


def test_vllm_is_spread_where_the_trainer_is() -> None:
    plan = plan_of("meta-llama/Llama-3.1-70B", mode="colocate")
    assert plan.rollout is not None
    assert plan.strategy == "fsdp"
    assert plan.rollout.tensor_parallel_size == plan.gpus_per_node
    assert plan.memory.total < 80 * 0.92
    split = plan_of(mode="colocate", tensorParallelSize=4)
    assert split.gpus == 4


def test_a_trainer_on_more_gpus_still_has_servers() -> None:
    spec = make_spec(
        method="grpo",
        training={"batchSize": 8, "microBatchSize": 1, "gradientCheckpointing": "full"},
        rewards=[{"name": "length", "builtin": "length"}],
        rollout={"mode": "server"},
        resources={"gpu": {"product": H100}},
    )
    plan = make_plan(spec, preparation_of(), Inventory())
    larger = smaller_plan(spec, preparation_of(), plan, Reason.GPU_OUT_OF_MEMORY, Inventory())
    assert larger is not None
    assert larger.gpus > plan.gpus
    assert larger.rollout is not None
    assert plan.rollout is not None
    assert larger.rollout.training_seconds < plan.rollout.training_seconds
    assert larger.rollout.kv_cache >= plan.rollout.kv_cache / 2
