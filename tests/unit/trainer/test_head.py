"""The output head's gradients are TRL's, wherever they are made."""

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from finetune_trainer.head import LogProbabilities, gradients_in_forward, tokens_of_a_tile
from finetune_trainer.methods.head import HeadTrainer
from unit.trainer import head_kernels
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.faults import run_here

TOKENS, WIDTH, VOCABULARY = 700, 16, 500
COLUMNS, TILE = 64, 256
"""Of TRL's tiles, and tokens of ours: the last of both are not full."""
FACTORS = {False: torch.linspace(-1, 1, TOKENS), True: torch.full((TOKENS,), -1 / 77)}
"""Of the tokens in the loss; all alike where the head is trained."""
Found = tuple[list[Tensor], list[Tensor]]


def ours(*options: Any, **fields: Any) -> Found:
    """Return what our function gives."""
    return found(LogProbabilities, TILE, *options, **fields)


def theirs(*options: Any, **fields: Any) -> Found:
    """Return what TRL's function gives."""
    return found(ChunkedLogProbFunction, COLUMNS, *options, **fields)


def found(
    function: Any,
    size: int,
    temperature: float = 1.0,
    *options: Any,
    dtype: torch.dtype = torch.float32,
    trained: bool = False,
    biased: bool = False,
) -> Found:
    """Return outputs, and gradients of hidden states and of what is trained.

    Of numbers that bf16 has.
    """
    torch.manual_seed(0)
    drawn = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH), torch.randn(VOCABULARY)
    hidden, weight, bias = (each.bfloat16().to(dtype) for each in drawn)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    hidden.requires_grad_()
    weight.requires_grad_(trained)
    arguments = (hidden, weight, bias if biased else None, targets, temperature, size)
    outputs = function.apply(*arguments, *options)
    (outputs[0] * FACTORS[trained]).sum().backward()
    gradients = [each.grad for each in (hidden, weight) if each.grad is not None]
    return [each.detach() for each in outputs if each is not None], gradients


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "options", [(1.0,), (0.7, 30.0), (1.0, None, 0.5), (1.0, None, 1.0, ("is_top1",))]
)
def test_all_that_it_gives_is_what_trl_gives(options: Any, trained: bool) -> None:
    expected = theirs(*options, trained=trained)
    torch.testing.assert_close(ours(*options, trained=trained), expected, atol=1e-4, rtol=1e-4)


def test_a_bias_is_added() -> None:
    torch.testing.assert_close(ours(biased=True), theirs(biased=True), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_in_bf16_it_is_about_as_near_to_what_is_right_as_trl(trained: bool) -> None:
    _, exact = theirs(dtype=torch.float64, trained=trained)
    mine, others = (
        [float((gradient - right).norm() / right.norm()) for gradient, right in pairs]
        for pairs in (
            zip(function(dtype=torch.bfloat16, trained=trained)[1], exact, strict=True)
            for function in (ours, theirs)
        )
    )
    # It is rounded when the factor is not yet known, and once more.
    assert all(error < 1.3 * other for error, other in zip(mine, others, strict=True))


def test_kernels_give_what_pytorch_does() -> None:
    """Triton decides when it is imported whether it interprets: in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            process.submit(head_kernels.compare).result()


def test_a_trained_head_has_no_gradient_where_the_loss_weighs_tokens_differently() -> None:
    hidden = torch.randn(3, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    outputs = LogProbabilities.apply(hidden, weight, None, torch.tensor([1, 2, 3]), 1.0, TILE)
    (outputs[0] * torch.tensor([1.0, 1.0, 2.0])).sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isnan().all())


@pytest.mark.parametrize(
    ("width", "vocabulary", "tokens", "trained", "expected"),
    [
        (4096, 128256, 8192, False, 1024),
        (4096, 128256, 1024, False, 256),
        (4096, 128256, 512, False, 0),
        (3072, 128256, 8192, True, 4096),
        (2560, 262144, 8192, False, 512),
        (2560, 262144, 1024, False, 0),
    ],
)
def test_tiles_are_no_larger_than_what_trl_holds(
    width: int, vocabulary: int, tokens: int, trained: bool, expected: int
) -> None:
    hidden = torch.empty(tokens, width, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(vocabulary, width, dtype=torch.bfloat16, device="meta")
    assert tokens_of_a_tile(hidden, weight.requires_grad_(trained), 32768) == expected


def test_weights_in_float32_have_no_gradient_to_cast() -> None:
    hidden = torch.empty(8192, 3072, device="meta")
    weight = torch.empty(128256, 3072, device="meta", requires_grad=True)
    assert tokens_of_a_tile(hidden, weight, 32768) == 1024


class Chosen:
    """Stands in for a function that computes the head."""

    @staticmethod
    def apply(*_: Any) -> str:
        """Say that it was chosen."""
        return "TRL's"


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "weighs_alike", "is_ours"),
    [
        (True, False, None, False, True),
        (True, True, None, True, True),
        (True, True, None, False, False),
        (True, True, False, True, False),
        (True, False, True, True, False),
        (False, False, None, True, False),
    ],
)
def test_it_takes_what_it_can(
    monkeypatch: pytest.MonkeyPatch,
    hidden: bool,
    weight: bool,
    bias: bool | None,
    weighs_alike: bool,
    is_ours: bool,
) -> None:
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Chosen)
    monkeypatch.setattr(utils, "_use_triton", lambda _: True)
    arguments = (
        torch.randn(TILE, WIDTH, requires_grad=hidden),
        torch.randn(VOCABULARY, WIDTH, requires_grad=weight),
        None if bias is None else torch.randn(VOCABULARY, requires_grad=bias),
        torch.zeros(TILE, dtype=torch.int64),
        1.0,
        VOCABULARY,
    )
    with gradients_in_forward(weighs_alike=weighs_alike):
        assert (head().apply(*arguments) != "TRL's") == is_ours
        with torch.no_grad():
            assert head().apply(*arguments) == "TRL's"
        for others in (arguments[0][:-1], arguments[0].bfloat16(), arguments[0][:0]):
            assert head().apply(others, *arguments[1:]) == "TRL's"
        with torch.autocast("cpu", torch.bfloat16):
            assert head().apply(*arguments) == "TRL's"
    assert head() is Chosen


def head() -> Any:
    """Return what TRL's models ask now."""
    return vars(utils)["_ChunkedLogProbFunction"]


def test_what_fails_leaves_trl_as_it_was() -> None:
    with pytest.raises(ValueError, match="a batch"), gradients_in_forward(weighs_alike=True):
        raise ValueError("a batch")
    assert head() is ChunkedLogProbFunction


def test_without_triton_it_is_left_to_trl() -> None:
    arguments = torch.randn(TILE, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH)
    with gradients_in_forward(weighs_alike=True):
        outputs = head().apply(*arguments, None, torch.zeros(TILE).long(), 1.0, VOCABULARY)
    assert "ChunkedLogProbFunction" in outputs[0].grad_fn.name()


PAIRS = [{"prompt": f"number {number}", "chosen": "a", "rejected": "b"} for number in range(8)]


@pytest.mark.parametrize(
    ("method", "adapter", "is_ours"),
    [
        ("sft", "lora", True),
        ("sft", "full", True),
        ("dpo", "lora", True),
        ("dpo", "full", False),
        ("kto", "lora", True),
        ("kto", "full", False),
    ],
)
def test_jobs_learn_the_same(
    site: Site,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    adapter: str,
    is_ours: bool,
) -> None:
    """As on a GPU, but for the kernels; and with TRL's function alone."""
    monkeypatch.setattr(utils, "_use_triton", lambda _: True)
    if method != "sft":
        site.write_data(PAIRS)
    config = site.job(
        make_plan(micro_batch_size=2, gradient_accumulation_steps=2),
        method=method,
        adapter={"type": adapter},
        training={"maxSteps": 3, "batchSize": 4, "learningRate": 0.01},
    )
    other = Site(tmp_path_factory.mktemp("other") / "site")
    shutil.copytree(site.root, other.root)
    used = noted(monkeypatch)
    assert run_here(site, config) == 0, site.result().message
    assert bool(used) == is_ours
    monkeypatch.setattr("finetune_trainer.head.tokens_of_a_tile", lambda *_: 0)
    used.clear()
    assert run_here(other, config) == 0, other.result().message
    assert not used
    # AdamW takes no notice of the gradient's size.
    for name in ("loss", "grad_norm"):
        found_here, expected = (
            [entry[name] for entry in each.metrics() if name in entry] for each in (site, other)
        )
        assert len(expected) == 3
        assert found_here == pytest.approx(expected, rel=1e-3)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the tokens of each call of our function."""
    calls: list[int] = []
    forward = LogProbabilities.forward

    def noting(ctx: Any, hidden: Tensor, *others: Any) -> Any:
        calls.append(len(hidden))
        return forward(ctx, hidden, *others)

    monkeypatch.setattr(LogProbabilities, "forward", staticmethod(noting))
    return calls


def test_with_spread_weights_it_is_left_to_trl() -> None:
    assert Mixed(has_own_ways=True).compute_loss() is ChunkedLogProbFunction
    assert Mixed(has_own_ways=False).compute_loss() is not ChunkedLogProbFunction


class Trainer:
    """What HeadTrainer is mixed into."""

    def compute_loss(self) -> Any:
        """Return what TRL's models would ask now."""
        return head()


class Mixed(HeadTrainer, Trainer):
    """A trainer of some strategy."""

    def __init__(self, *, has_own_ways: bool) -> None:
        self.has_own_ways = has_own_ways
