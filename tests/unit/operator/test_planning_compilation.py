"""When compiling pays, and what it does to checkpointing."""

import math
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import Preparation
from finetune_operator.planning import Inventory, PlanInfeasibleError, make_plan, smaller_plan
from finetune_operator.planning.candidates import candidates
from finetune_operator.planning.compilation import Compilation, compilation
from finetune_operator.planning.products import PRODUCTS
from unit.operator.builders import make_plan_of, make_preparation, make_spec


def compiled(
    steps: int, product: str = "NVIDIA-H100-80GB-HBM3", gpus: int = 1, **training: Any
) -> bool:
    """Tell whether a job of so many steps of 3,200 tokens each is compiled."""
    return make_plan_of(
        training={"maxSteps": steps, **training},
        resources={"gpu": {"product": product, "memory": "80Gi", "count": gpus}},
    ).compile


def changed(preparation: Preparation, **rows: int) -> Preparation:
    """Return a preparation whose rows are others."""
    dataset = preparation.dataset.model_copy(update=rows)
    return preparation.model_copy(update={"dataset": dataset})


def test_what_is_saved_has_to_be_more_than_it_costs() -> None:
    # A step is 3,200 tokens of 30 GFLOP at 0.4 of the peak, 0.24 s; 20 % of 620 steps is 30 s.
    assert not compiled(20)
    assert not compiled(560)
    assert compiled(680)


def test_it_pays_sooner_where_training_takes_longer_or_more_is_saved() -> None:
    assert compiled(560, "NVIDIA-A100-SXM4-80GB")
    assert not compiled(680, gpus=2)
    assert compiled(1360, gpus=2)
    assert compiled(560, precision="float8")


def test_rows_of_one_length_are_compiled_once() -> None:
    rows = {"max_tokens": 200, "mean_tokens": 200}
    spec, preparation = make_spec(), make_preparation()
    costs = [
        compilation(spec, made, 1, 200, "bf16").cost
        for made in (preparation, changed(preparation, **rows))
    ]
    assert costs == [30, 15]


def test_every_completion_of_a_group_is_trained_on() -> None:
    def training(groups: int) -> float:
        spec = make_spec(
            method="grpo",
            rewards=[{"name": "short", "builtin": "length"}],
            generation={"groupSize": groups},
            training={"batchSize": 16, "epochs": 1},
        )
        return compilation(spec, make_preparation(), 1, 900, "bf16").training["none"]

    assert training(8) == pytest.approx(2 * training(4))


def test_a_gpu_that_is_not_known_counts_as_a_fast_one() -> None:
    assert not compiled(560, "Somebodys-GPU")
    assert compiled(680, "Somebodys-GPU")


def test_packed_rows_are_counted_as_they_are_filled() -> None:
    tokens: dict[str, Any] = {"packing": True, "maxLength": 4096}
    assert compiled(50, **tokens)
    # Without steps the data decides: 600,000 tokens in three epochs, however long the rows.
    assert not make_plan_of(training=tokens).compile


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (
            {"maxSteps": 10_000},
            (
                "Compile on: it saves 20% of about 41 min of training without it, by arithmetic in"
                " bf16, and takes 30 s."
            ),
        ),
        (
            {"maxSteps": 20},
            (
                "Compile off: it saves 20% of about 5 s of training without it, by arithmetic in"
                " bf16, and takes 30 s."
            ),
        ),
        (
            {"maxSteps": 10_000, "gradientCheckpointing": "full"},
            (
                "Compile on: it saves 20% of about 61 min of training without it, by arithmetic in"
                " bf16, and takes 30 s."
            ),
        ),
        ({"compile": "never"}, "Compile never: as asked for."),
    ],
)
def test_the_plan_says_what_was_estimated(training: dict[str, Any], words: str) -> None:
    assert words in make_plan_of(training=training).reasons


@pytest.mark.parametrize("memory", range(12, 80, 4))
@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_not_compiling_for_time_never_costs_gpus(kind: str, memory: int) -> None:
    def gpus(compile_: str) -> float:
        try:
            plan = make_plan_of(
                adapter={"type": kind},
                training={"maxSteps": 5, "compile": compile_},
                resources={"gpu": {"memory": f"{memory}Gi"}},
            )
        except PlanInfeasibleError:
            return math.inf
        return plan.gpus

    assert gpus("auto") == min(gpus("always"), gpus("never"))


def test_layers_are_compiled_for_memory_too_and_the_plan_says_so() -> None:
    parts: dict[str, Any] = {
        "training": {"maxSteps": 5, "gradientCheckpointing": "full"},
        "resources": {"gpu": {"memory": "18944Mi", "count": 1}},
    }
    with pytest.raises(PlanInfeasibleError):
        make_plan_of(**parts | {"training": parts["training"] | {"compile": "never"}})
    plan = make_plan_of(**parts)
    assert plan.compile
    assert plan.reasons[-1].endswith("takes 30 s; but layers as they are take more memory.")


def test_compiling_may_pay_because_it_spares_checkpointing() -> None:
    kinds: dict[Any, float] = {"none": 50, "selective": 60, "full": 70}
    estimated = Compilation(cost=15, training=kinds, share=0.2)
    assert not estimated.pays("none")
    assert estimated.seconds("none", False) < estimated.seconds("none", True)
    assert estimated.seconds("none", True) < estimated.seconds("selective", False)
    short = replace(estimated, training={kind: time / 5 for kind, time in kinds.items()})
    assert short.seconds("full", False) < short.seconds("none", True)


def test_float8_that_is_not_compiled_is_said_to_lose() -> None:
    reason = make_plan_of(training={"maxSteps": 20, "precision": "float8"}).reasons[-1]
    assert reason.endswith("takes 30 s; without it quantising to float8 is not fused.")
    reason = make_plan_of(training={"compile": "never", "precision": "float8"}).reasons[-1]
    assert reason == "Compile never: as asked for; without it quantising to float8 is not fused."


@pytest.mark.parametrize(
    ("compile_", "ways"),
    [("never", ["none", "selective", "full"]), ("always", ["none", "full"])],
)
def test_selective_comes_before_full_where_layers_are_not_compiled(
    compile_: str, ways: list[str]
) -> None:
    training = {"compile": compile_, "microBatchSize": 1}
    spec = make_spec(training=training, resources={"gpu": {"count": 1}})
    preparation = make_preparation()
    found = candidates(spec, preparation, Inventory())
    assert [candidate.checkpointing for candidate in found] == ways
    plan = make_plan(spec, preparation, Inventory())
    smaller = smaller_plan(spec, preparation, plan, Reason.GPU_OUT_OF_MEMORY, Inventory())
    assert smaller is not None
    assert smaller.gradient_checkpointing == ways[1]


def test_only_gpus_before_ampere_are_without_a_speed_in_bf16() -> None:
    without = {name.split("-")[1] for name, product in PRODUCTS.items() if not product.bf16}
    assert without == {"T4", "V100"}
