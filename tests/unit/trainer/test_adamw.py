"""AdamW that rounds at random: PyTorch's results in expectation, where rounding loses them."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from accelerate.utils import DistributedType
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from finetune_trainer import adamw
from finetune_trainer.methods import lean
from unit.trainer import rounding

Interpreted = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreted]:
    """Return what runs a function of `rounding` where Triton interprets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            yield lambda function, *options: pool.submit(function, *options).result()


@pytest.mark.parametrize(("size", "rate"), [(0.5, 1e-4), (1e-8, 0.01)])
def test_a_weight_is_rounded_to_one_of_its_neighbours(
    interpreted: Interpreted, size: float, rate: float
) -> None:
    groups = interpreted(rounding.step, [0.5, 0.0], size, rate)
    for rounded, exact in groups:
        distance = (rounded.float() - exact) / last_bit(exact)
        assert distance.abs().max() < 1.01
        # Of so many, the mean of what varies by less than one is that near to what is expected.
        for mean in (distance.mean(), (distance * exact.sign()).mean()):
            assert abs(mean) < 3 / len(distance) ** 0.5
    first, second = (rounded for rounded, _ in groups)
    assert (first == second).float().mean() < 0.9


def last_bit(numbers: torch.Tensor) -> torch.Tensor:
    """Return what the last of 8 significant bits is worth."""
    return torch.exp2(torch.floor(torch.log2(numbers.abs())) - 7)


def test_no_two_are_rounded_alike(interpreted: Interpreted) -> None:
    ups = torch.stack(interpreted(rounding.patterns)).float()
    assert ((ups.mean(1) > 0.2) & (ups.mean(1) < 0.8)).all(), ups.mean(1)
    others = torch.corrcoef(ups) - torch.eye(len(ups))
    assert others.abs().max() < 0.15, others


def test_a_weight_without_a_gradient_stays_and_keeps_its_place(interpreted: Interpreted) -> None:
    whole, partly = interpreted(rounding.partly)
    assert torch.equal(partly[1], rounding.made()[1])
    assert not torch.equal(whole[1], partly[1])
    assert torch.equal(whole[0], partly[0])
    assert torch.equal(whole[2], partly[2])


def test_small_changes_add_up(interpreted: Interpreted) -> None:
    found = interpreted(rounding.take, [0.5] * 100, 1e-5)
    before = rounding.flat(rounding.made()).float()
    moved = (found.exact - before).mean()
    assert torch.equal(found.nearest.float(), before)
    steps = (found.rounded.float() - before) / last_bit(before)
    assert (steps * last_bit(before)).mean() == pytest.approx(float(moved), rel=0.05)
    # Each by itself, time and again: not some of them by much.
    assert (steps != 0).float().mean() > 0.95
    assert steps.abs().max() < 25


def test_the_second_moment_decays(interpreted: Interpreted) -> None:
    found = interpreted(rounding.take, [1.0] + [0.0] * 100, 1e-5)
    assert found.exact_squares.mean() == pytest.approx(0.001 * 0.999**100, rel=1e-4)
    assert found.squares.float().mean() == pytest.approx(0.001 * 0.999**100, rel=1e-3)


def test_gradients_are_divided_by_the_scale(interpreted: Interpreted) -> None:
    found = interpreted(rounding.take, [0.5], 0.0001, 8.0)
    assert found.squares.float().mean() == pytest.approx(0.00025, rel=1e-3)


def test_a_step_that_is_to_be_skipped_changes_nothing(interpreted: Interpreted) -> None:
    for before, after in interpreted(rounding.skip):
        assert torch.equal(before, after)


def test_a_resumed_optimizer_rounds_the_same(interpreted: Interpreted) -> None:
    uninterrupted, resumed = interpreted(rounding.resume)
    assert torch.equal(uninterrupted, resumed)


def test_what_is_no_number_stays_none(interpreted: Interpreted) -> None:
    first, second = interpreted(rounding.broken)
    assert torch.isnan(first)
    assert torch.isinf(second)


def test_the_kernel_compiles_for_a_gpu() -> None:
    kernel: Any = adamw._kernel
    kinds = ["*bf16"] * 4 + ["*fp32"] * 3 + ["i32"] * 2 + ["fp32"] * 5
    source = ASTSource(kernel, dict(zip(kernel.arg_names, kinds, strict=True)), {})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


class _Choosing:
    """The part of Trainer that chooses the optimizer."""

    chosen: tuple[Any, Any]

    def get_optimizer_cls_and_kwargs(self, *_: Any) -> tuple[Any, Any]:
        return self.chosen


class _Trainer(lean.LeanTrainer, _Choosing):
    def __init__(self, chosen: tuple[Any, Any], kind: DistributedType = DistributedType.NO) -> None:
        self.model: Any = nn.Linear(2, 2)
        self.chosen = chosen
        self.accelerator = SimpleNamespace(distributed_type=kind)


_FUSED = (torch.optim.AdamW, {"fused": True})


@pytest.mark.parametrize(
    ("kind", "found", "chosen"),
    [
        (DistributedType.NO, _FUSED, adamw.RoundingAdamW),
        (DistributedType.MULTI_GPU, _FUSED, adamw.RoundingAdamW),
        (DistributedType.FSDP, _FUSED, torch.optim.AdamW),
        (DistributedType.DEEPSPEED, _FUSED, torch.optim.AdamW),
        (DistributedType.NO, (torch.optim.AdamW, {}), torch.optim.AdamW),
        (DistributedType.NO, (torch.optim.SGD, {"fused": True}), torch.optim.SGD),
    ],
)
def test_a_model_in_bf16_is_rounded_at_random(
    monkeypatch: pytest.MonkeyPatch, kind: DistributedType, found: Any, chosen: Any
) -> None:
    monkeypatch.setattr(lean, "is_rounded", lambda weight: weight.requires_grad)
    trainer = _Trainer(found, kind)
    assert trainer.get_optimizer_cls_and_kwargs(None) == (chosen, found[1])


def test_adapters_and_other_formats_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _Trainer(_FUSED)
    assert trainer.get_optimizer_cls_and_kwargs(None) == _FUSED
    monkeypatch.setattr(lean, "is_rounded", lambda weight: weight.requires_grad)
    trainer.model.peft_config = {}
    assert trainer.get_optimizer_cls_and_kwargs(None) == _FUSED


def test_a_model_in_bf16_that_is_rounded_to_the_nearest_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = _Trainer((torch.optim.SGD, {}))
    trainer.get_optimizer_cls_and_kwargs(None)
    assert not caplog.records
    trainer.model.to(torch.bfloat16)
    trainer.get_optimizer_cls_and_kwargs(None)
    assert caplog.messages == ["weights are rounded to the nearest in bf16: small changes are lost"]
