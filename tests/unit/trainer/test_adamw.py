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

from finetune_trainer import adamw, adamw_kernel, methods
from finetune_trainer.methods.rounding import RoundingTrainer
from unit.trainer import rounding

Apart = Callable[..., Any]


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    """Return what runs a function of `rounding` on the GPU, or where Triton interprets."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=rounding.begin) as pool:
            yield lambda *call: pool.submit(rounding.run, *call).result()


@pytest.mark.parametrize(("size", "rate"), [(0.5, 1e-4), (1e-8, 0.01)])
def test_a_weight_is_rounded_to_one_of_its_neighbours(
    apart: Apart, size: float, rate: float
) -> None:
    groups = apart(rounding.step, [0.5, 0.0], size, rate)
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


def test_no_two_are_rounded_alike(apart: Apart) -> None:
    ups = torch.stack(apart(rounding.patterns)).float()
    assert ((ups.mean(1) > 0.2) & (ups.mean(1) < 0.8)).all(), ups.mean(1)
    others = torch.corrcoef(ups) - torch.eye(len(ups))
    assert others.abs().max() < 0.15, others


def test_a_weight_without_a_gradient_stays_and_keeps_its_place(apart: Apart) -> None:
    whole, partly = apart(rounding.partly)
    assert torch.equal(partly[1], rounding.made()[1])
    assert not torch.equal(whole[1], partly[1])
    assert torch.equal(whole[0], partly[0])
    assert torch.equal(whole[2], partly[2])


def test_small_changes_add_up(apart: Apart) -> None:
    found = apart(rounding.take, [0.5] * 100, 1e-5)
    before = rounding.flat(rounding.made()).float()
    moved = (found.exact - before).mean()
    assert torch.equal(found.nearest.float(), before)
    steps = (found.rounded.float() - before) / last_bit(before)
    assert (steps * last_bit(before)).mean() == pytest.approx(float(moved), rel=0.05)
    # Each by itself, time and again: not some of them by much.
    assert (steps != 0).float().mean() > 0.95
    assert steps.abs().max() < 25


def test_the_second_moment_decays(apart: Apart) -> None:
    found = apart(rounding.take, [1.0] + [0.0] * 100, 1e-5)
    assert found.exact_squares.mean() == pytest.approx(0.001 * 0.999**100, rel=1e-4)
    assert found.squares.float().mean() == pytest.approx(0.001 * 0.999**100, rel=1e-3)


def test_gradients_are_divided_by_the_scale(apart: Apart) -> None:
    found = apart(rounding.take, [0.5], 0.0001, 8.0)
    assert found.squares.float().mean() == pytest.approx(0.00025, rel=1e-3)


def test_a_step_that_is_to_be_skipped_changes_nothing(apart: Apart) -> None:
    for before, after in apart(rounding.skip):
        assert torch.equal(before, after)


def test_a_resumed_optimizer_rounds_the_same(apart: Apart) -> None:
    uninterrupted, resumed = apart(rounding.resume)
    assert torch.equal(uninterrupted, resumed)


def test_what_is_no_number_stays_none(apart: Apart) -> None:
    first, second = apart(rounding.broken)
    assert torch.isnan(first)
    assert torch.isinf(second)


def test_the_options_are_those_of_pytorch(apart: Apart) -> None:
    (rounded, exact), *moments = apart(rounding.take_with, (0.8, 0.95), 0.5)
    # Three roundings, and the first moment's: of 100 and more last bits that all have moved.
    assert ((rounded.float() - exact) / last_bit(exact).clamp(min=2**-13)).abs().max() < 5
    # Triton's interpreter cuts the first moment off where a GPU rounds it.
    for (moment, of_float32), near in zip(moments, (0.02, 0.005), strict=True):
        assert moment.float().mean() == pytest.approx(float(of_float32.mean()), rel=near)


def test_other_weights_take_the_step_of_pytorch(apart: Apart) -> None:
    ours, theirs = apart(rounding.mixed)
    for part, other in zip(ours, theirs, strict=True):
        assert torch.equal(part, other)


def test_the_state_of_pytorch_is_taken_over(apart: Apart) -> None:
    state = apart(rounding.take_over)
    assert state["step"] == 2
    assert state["exp_avg"].float().mean() == pytest.approx(0.5 * (1 - 0.9**2), rel=0.01)
    assert state["exp_avg_sq"].float().mean() == pytest.approx(0.25 * (1 - 0.999**2), rel=0.01)


@pytest.mark.parametrize(
    "options", [{"amsgrad": True}, {"maximize": True}, {"lr": torch.tensor(0.1)}]
)
def test_what_it_does_not_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RoundingAdamW has no amsgrad, maximize, or rate"):
        adamw.RoundingAdamW([nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize(
    ("cuda", "dtype", "in_rows", "can"),
    [
        (True, torch.bfloat16, True, True),
        (False, torch.bfloat16, True, False),
        (True, torch.float32, True, False),
        (True, torch.bfloat16, False, False),
    ],
)
def test_which_weights_can_be_rounded(
    *, cuda: bool, dtype: torch.dtype, in_rows: bool, can: bool
) -> None:
    weight: Any = SimpleNamespace(is_cuda=cuda, dtype=dtype, is_contiguous=lambda: in_rows)
    assert adamw.can_round(weight) == can


def test_the_kernel_compiles_for_a_gpu() -> None:
    kernel: Any = adamw_kernel.step
    kinds = ["*bf16"] * 4 + ["*fp32"] * 3 + ["i32"] * 2 + ["fp32"] * 5
    source = ASTSource(kernel, dict(zip(kernel.arg_names, kinds, strict=True)), {})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


class _Choosing:
    """The part of Trainer that chooses the optimizer."""

    chosen: tuple[Any, Any]

    def get_optimizer_cls_and_kwargs(self, *_: Any) -> tuple[Any, Any]:
        return self.chosen


class _Trainer(RoundingTrainer, _Choosing):
    def __init__(
        self,
        chosen: tuple[Any, Any],
        kind: DistributedType = DistributedType.NO,
        dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,),
    ) -> None:
        self.model: Any = nn.ModuleList(nn.Linear(2, 2, dtype=dtype) for dtype in dtypes)
        self.chosen = chosen
        self.accelerator = SimpleNamespace(distributed_type=kind)


_FUSED = (torch.optim.AdamW, {"fused": True})


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the trainer take what is in bf16 for weights on a GPU."""
    monkeypatch.setattr(
        methods.rounding, "can_round", lambda weight: weight.dtype is torch.bfloat16
    )


@pytest.mark.usefixtures("on_a_gpu")
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
def test_weights_in_bf16_are_rounded_at_random(
    kind: DistributedType, found: Any, chosen: Any
) -> None:
    trainer = _Trainer(found, kind)
    assert trainer.get_optimizer_cls_and_kwargs(None) == (chosen, found[1])


@pytest.mark.usefixtures("on_a_gpu")
def test_weights_in_float32_leave_the_choice_to_those_in_bf16(
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapters = _Trainer(_FUSED, dtypes=(torch.float32,))
    assert adapters.get_optimizer_cls_and_kwargs(None) == _FUSED
    with_head = _Trainer(_FUSED, dtypes=(torch.float32, torch.bfloat16))
    assert with_head.get_optimizer_cls_and_kwargs(None) == (adamw.RoundingAdamW, _FUSED[1])
    assert not any(record.levelname == "WARNING" for record in caplog.records)


def test_another_optimizer_of_weights_in_bf16_is_told(caplog: pytest.LogCaptureFixture) -> None:
    found: Any = (torch.optim.SGD, {})
    for kind in (DistributedType.NO, DistributedType.FSDP):
        _Trainer(found, kind).get_optimizer_cls_and_kwargs(None)
    _Trainer(found, dtypes=(torch.float32,)).get_optimizer_cls_and_kwargs(None)
    (told,) = caplog.messages
    assert told.startswith("SGD may round weights of bf16 to the nearest: small changes are lost;")
