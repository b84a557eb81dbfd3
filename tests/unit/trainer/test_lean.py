"""What Trainer does in each step, without walking through all modules, comes to the same."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from finetune_trainer.methods.lean import LeanTrainer


class _Stepping:
    """The part of Trainer that sets the mode."""

    model: nn.Module

    def training_step(self, model: nn.Module) -> None:
        model.train()


class _Trainer(LeanTrainer, _Stepping):
    def __init__(self, model: nn.Module, kind: DistributedType = DistributedType.NO) -> None:
        clip = torch.nn.utils.clip_grad_norm_
        self.model = model
        self.optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad])
        self.args = SimpleNamespace(max_grad_norm=1.0)
        self.accelerator = SimpleNamespace(distributed_type=kind, clip_grad_norm_=clip)


@pytest.fixture
def model() -> Any:
    """Return a model with a frozen layer, as an adapter's: the modules within do not train yet."""
    made = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Dropout(), nn.Linear(4, 4))
    for layer in made:
        layer.eval()
    return made


def test_all_modules_train_at_first_and_after_an_evaluation(model: Any) -> None:
    trainer = _Trainer(model)
    for _ in range(2):
        trainer.training_step(model)
        assert all(module.training for module in model.modules())
        model.eval()
        assert not any(module.training for module in model.modules())


def test_gradients_are_clipped_and_dropped(model: Any) -> None:
    trainer = _Trainer(model)
    trainer.training_step(model)
    model(torch.ones(2, 4)).sum().mul(100).backward()
    before = torch.cat([w.grad.flatten() for w in model[2].parameters()]).norm()
    assert trainer._clip_grad_norm(model) == pytest.approx(float(before))
    after = torch.cat([w.grad.flatten() for w in model[2].parameters()]).norm()
    assert float(after) == pytest.approx(1.0, rel=1e-4)
    model.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("limit", [0.5, 1000.0])
def test_a_fused_optimizer_clips_as_it_steps(model: Any, limit: float) -> None:
    other = copy.deepcopy(model)
    trainer = _Trainer(model)
    trainer.args.max_grad_norm = limit
    trainer.optimizer = torch.optim.SGD(model[2].parameters(), lr=1.0, fused=True)
    expected = torch.optim.SGD(other[2].parameters(), lr=1.0)
    for each in (model, other):
        each(torch.ones(2, 4)).sum().mul(100).backward()
    norm = torch.nn.utils.clip_grad_norm_(other[2].parameters(), limit)
    assert trainer._clip_grad_norm(model) == pytest.approx(float(norm))
    trainer.optimizer.step()
    expected.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict())


def test_copies_on_nodes_are_summed_once_a_step(model: Any) -> None:
    trainer = _Trainer(model, DistributedType.FSDP)
    summed: list[bool] = []
    model.set_requires_all_reduce = summed.append
    for is_last in (False, False, True):
        trainer.accelerator.sync_gradients = is_last
        trainer.training_step(model)
    assert summed == [False, False, True]


def test_deepspeed_drops_gradients_itself(model: Any) -> None:
    trainer = _Trainer(model, DistributedType.DEEPSPEED)
    trainer.training_step(model)
    assert "zero_grad" not in vars(model)
