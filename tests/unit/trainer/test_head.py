"""The output head's gradients are TRL's, wherever they are made."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from finetune_trainer.head import LogProbabilities, gradients_in_forward, tokens_of_a_tile
from finetune_trainer.methods.head import HeadTrainer

TOKENS, WIDTH, VOCABULARY, COLUMNS = 700, 16, 500, 64
"""Two tiles for ours, the last of which is not full, and eight for TRL's."""
Found = tuple[list[Tensor], list[Tensor]]


def found(
    function: Any,
    temperature: float = 1.0,
    *options: Any,
    dtype: torch.dtype = torch.float32,
    trained: bool = False,
    biased: bool = False,
) -> Found:
    """Return outputs, and gradients of hidden states and of what is trained."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=trained)
    bias = torch.randn(VOCABULARY, dtype=dtype) if biased else None
    targets = torch.randint(VOCABULARY, (TOKENS,))
    outputs = function.apply(hidden, weight, bias, targets, temperature, COLUMNS, *options)
    factors = torch.full((TOKENS,), -1 / 77) if trained else torch.linspace(-1, 1, TOKENS)
    (outputs[0] * factors).sum().backward()
    gradients = [each.grad for each in (hidden, weight) if each.grad is not None]
    return [each.detach() for each in outputs if each is not None], gradients


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "options", [(1.0,), (0.7, 30.0), (1.0, None, 0.5), (1.0, None, 1.0, ("is_top1",))]
)
def test_all_that_it_gives_is_what_trl_gives(options: Any, trained: bool) -> None:
    ours, theirs = (
        found(function, *options, trained=trained)
        for function in (LogProbabilities, ChunkedLogProbFunction)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_bias_is_added() -> None:
    ours, theirs = (
        found(function, biased=True) for function in (LogProbabilities, ChunkedLogProbFunction)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("cast", [False, True])
def test_in_bf16_gradients_are_as_near_as_those_of_trl(trained: bool, cast: bool) -> None:
    # Under autocast weights and hidden states stay in float32.
    dtype = torch.float32 if cast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        ours, theirs = (
            found(function, dtype=dtype, trained=trained)
            for function in (LogProbabilities, ChunkedLogProbFunction)
        )
    # Both have the same logits.
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=1e-3)
    for gradient, other in zip(ours[1], theirs[1], strict=True):
        assert gradient.dtype == other.dtype == dtype
        assert (gradient - other).float().norm() < 0.005 * other.float().norm()


def test_a_trained_head_has_no_gradient_where_the_loss_weighs_tokens_differently() -> None:
    hidden = torch.randn(3, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    outputs = LogProbabilities.apply(hidden, weight, None, torch.tensor([1, 2, 3]), 1.0, COLUMNS)
    (outputs[0] * torch.tensor([1.0, 1.0, 2.0])).sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isnan().all())


@pytest.mark.parametrize(
    ("width", "vocabulary", "trained", "tokens"),
    [(4096, 128256, False, 1536), (3072, 128256, True, 4352), (2048, 262144, False, 512)],
)
def test_a_tile_is_no_larger_than_what_trl_holds(
    width: int, vocabulary: int, trained: bool, tokens: int
) -> None:
    hidden = torch.empty(8192, width, device="meta")
    weight = torch.empty(vocabulary, width, device="meta", requires_grad=trained)
    theirs = 2 * 4096 * 32768 + 4 * 8192 * width + (2 * vocabulary * width if trained else 0)
    assert tokens_of_a_tile(hidden, weight, 32768) == tokens
    assert 2 * vocabulary * tokens <= theirs < 2 * vocabulary * (tokens + 256)


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
    arguments = (
        torch.randn(3, WIDTH, requires_grad=hidden),
        torch.randn(VOCABULARY, WIDTH, requires_grad=weight),
        None if bias is None else torch.randn(VOCABULARY, requires_grad=bias),
        torch.tensor([1, 2, 3]),
        1.0,
        COLUMNS,
    )
    with gradients_in_forward(weighs_alike=weighs_alike):
        assert (head().apply(*arguments) != "TRL's") == is_ours
        with torch.no_grad():
            assert head().apply(*arguments) == "TRL's"
        assert head().apply(arguments[0][:0], *arguments[1:]) == "TRL's"
    assert head() is Chosen


def head() -> Any:
    """Return what TRL's models ask now."""
    return vars(utils)["_ChunkedLogProbFunction"]


def test_what_fails_leaves_trl_as_it_was() -> None:
    with pytest.raises(ValueError, match="a batch"), gradients_in_forward(weighs_alike=True):
        raise ValueError("a batch")
    assert head() is ChunkedLogProbFunction


def test_models_with_the_fused_head_of_trl_ask_for_it() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.lm_head.requires_grad_(False)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    tokens = torch.randint(VOCABULARY, (2, 9))
    labels = tokens.clone()
    labels[:, :4] = -100
    gradients, functions = [], []
    for within in (False, True):
        model.zero_grad()
        if within:
            with gradients_in_forward(weighs_alike=False):
                output = model(tokens, labels=labels, fused_lm_head=True)
        else:
            output = model(tokens, labels=labels, fused_lm_head=True)
        functions.append(made_by(output.log_probs))
        output.loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert functions == ["ChunkedLogProbFunctionBackward", "LogProbabilitiesBackward"]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def made_by(found: Tensor) -> str:
    """Return the name of the function of ours or TRL's that a tensor comes from."""
    step: Any = found.grad_fn
    while not step.name().startswith(("ChunkedLogProb", "LogProb")):
        step = step.next_functions[0][0]
    name: str = step.name()
    return name


class Trainer:
    """What HeadTrainer is mixed into."""

    def compute_loss(self) -> Any:
        """Return what TRL's models would ask now."""
        return head()


class Mixed(HeadTrainer, Trainer):
    """A trainer on some device."""

    def __init__(self, device: str, has_own_ways: bool) -> None:
        self.args = SimpleNamespace(device=torch.device(device))
        self.has_own_ways = has_own_ways


@pytest.mark.parametrize(
    ("device", "has_own_ways", "is_ours"),
    [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)],
)
def test_only_a_trainer_with_whole_weights_on_a_gpu_asks_for_it(
    device: str, has_own_ways: bool, is_ours: bool
) -> None:
    chosen = Mixed(device, has_own_ways).compute_loss()
    assert (chosen is not ChunkedLogProbFunction) == is_ours
    assert math.isfinite(found(chosen)[0][0].sum())
