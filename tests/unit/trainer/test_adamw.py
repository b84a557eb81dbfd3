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


def test_a_weight_is_rounded_to_one_of_its_neighbours(interpreted: Interpreted) -> None:
    found = interpreted(rounding.take, [0.5], 0.0001)
    rounded, exact = found.rounded.float(), found.exact
    last = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)
    distance = (rounded - exact) / last
    assert distance.abs().max() < 1
    assert not torch.equal(rounded, exact.bfloat16().float())
    # Of so many, the mean of what varies by less than one is that near to what is expected.
    assert abs(distance.mean()) < 4 / len(distance) ** 0.5


def test_small_changes_add_up(interpreted: Interpreted) -> None:
    found = interpreted(rounding.take, [0.5] * 100, 1e-5)
    before = rounding.flat(rounding.made()).float()
    moved = (found.exact - before).mean()
    assert torch.equal(found.nearest.float(), before)
    assert (found.rounded.float() - before).mean() == pytest.approx(float(moved), rel=0.05)


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
