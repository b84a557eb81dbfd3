"""The stability guard in a real training loop: what it stops, what it skips, what it says."""

import math
from typing import Any

import pytest
import torch

from finetune_api.failures import Reason
from finetune_api.trainer import TrainerConfig
from finetune_trainer import export
from finetune_trainer.callbacks.guard import StabilityGuard
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.methods import sft
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.progress import ProgressBoard
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.faults import (
    break_evaluation,
    break_loss,
    fifty_times,
    infinite_gradient,
    no_number,
    out_of_memory,
    run_here,
)

PLACES = [1, 5, 9]


def _job(
    site: Site, policy: str = "Warn", dataset: dict[str, Any] | None = None, **training: Any
) -> TrainerConfig:
    defaults = {
        "maxSteps": 10,
        "batchSize": 4,
        "learningRate": 0.01,
        "checkpoint": {"everySteps": 2, "keep": 1},
    }
    return site.job(
        make_plan(),
        dataset=dataset or {"source": "pvc://data/rows.jsonl"},
        training=defaults | training,
        stability={"policy": policy, "maxRollbacks": 1},
    )


def _weights_are_finite(monkeypatch: pytest.MonkeyPatch, *, scales: bool = True) -> list[bool]:
    """Return a list that grows by one entry per optimizer step that ran.

    `scales` says whether the optimizer is one that leaves weights alone when it is told to.
    """
    seen: list[bool] = []
    original = sft.ResumableSftTrainer._get_grad_norm

    def watching(trainer: Any, model: Any, grad_norm: Any = None) -> Any:
        assert trainer.optimizer_scales == scales
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        seen.append(all(bool(weight.isfinite().all()) for weight in weights))
        return original(trainer, model, grad_norm)

    monkeypatch.setattr(sft.ResumableSftTrainer, "_get_grad_norm", watching)
    return seen


@pytest.mark.parametrize("step", PLACES)
@pytest.mark.parametrize("change", [no_number, infinite_gradient])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch"])
def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    site: Site, monkeypatch: pytest.MonkeyPatch, optimizer: str, change: Any, step: int
) -> None:
    config = _job(site, extra={"optim": optimizer})
    break_loss(monkeypatch, [step], change)
    finite = _weights_are_finite(monkeypatch, scales=optimizer == "adamw_torch_fused")
    assert run_here(site, config) == 0
    assert finite == [True] * 10
    result = site.result()
    assert result.stability is not None
    assert result.stability.verdict == "Unstable"
    found = {(finding.rule, finding.step) for finding in result.stability.findings}
    assert ("gradient-not-finite", step) in found
    losses = [entry["step"] for entry in site.metrics() if "loss" in entry]
    expected = set(range(1, 11)) - ({step} if change is no_number else set())
    assert set(losses) == expected
    assert site.metrics()[-1]["loss"] < site.metrics()[0].get("loss", math.inf)


def test_a_fourth_such_gradient_in_a_row_fails_the_job(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _job(site)
    break_loss(monkeypatch, range(3, 11), no_number)
    assert run_here(site, config) == 81
    assert site.result().message == (
        "the gradient was no finite number in 4 steps in a row, up to step 6: lower "
        "training.learningRate, or look for broken rows in the data; with fp16 or float8, use bf16."
    )


@pytest.mark.parametrize("step", PLACES)
def test_halt_ends_with_the_last_good_checkpoint(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = _job(site, policy="Halt")
    break_loss(monkeypatch, [step], no_number)
    assert run_here(site, config) == 81
    result = site.result()
    assert result.message.startswith(
        f"gradient-not-finite: non_finite_steps is 1 at step {step}, above 0."
    )
    good = {1: "no good checkpoint", 5: "checkpoint 4 as good", 9: "checkpoint 8 as good"}[step]
    assert f"halted with {good}" in result.message
    assert result.step == step - 1
    assert result.stability is not None
    assert [found.severity for found in result.stability.findings] == ["Critical"]
    newest = Checkpoints(site.paths.checkpoints, keep=1).newest_complete()
    assert newest is None if step == 1 else newest is not None


@pytest.mark.parametrize("step", PLACES)
def test_a_finding_that_is_not_critical_ends_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = _job(site, policy="Halt", maxSteps=24)
    break_loss(monkeypatch, [step + 10], fifty_times)
    assert run_here(site, config) == 0
    result = site.result()
    assert result.stability is not None
    assert result.stability.verdict == "Warning"
    found = [(finding.rule, finding.step) for finding in result.stability.findings]
    assert found == [("loss-jump", step + 10)]


def test_a_resumed_run_finds_what_an_uninterrupted_one_finds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _job(site, maxSteps=24)
    with monkeypatch.context() as patch:
        break_loss(patch, [14, 15, 19], fifty_times)
        break_loss(patch, [18], out_of_memory)
        assert run_here(site, config) == 80
    break_loss(monkeypatch, [19], fifty_times)
    assert run_here(site, config) == 0
    result = site.result()
    assert result.stability is not None
    found = [(finding.rule, finding.step) for finding in result.stability.findings]
    # The two jumps before the interruption count.
    assert found == [("loss-jump", 14), ("loss-jumps-repeated", 19)]


def test_findings_that_are_no_numbers_outlive_an_interruption(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _job(
        site,
        dataset={"source": "pvc://data/rows.jsonl", "evalFraction": 0.1},
        evalEverySteps=4,
        logEverySteps=5,
    )
    with monkeypatch.context() as patch:
        break_evaluation(patch, [4])
        # Skipped, and not logged yet.
        break_loss(patch, [3], no_number)
        break_loss(patch, [5], out_of_memory)
        assert run_here(site, config) == 80
    assert run_here(site, config) == 0
    stability = site.result().stability
    assert stability is not None
    found = {(finding.rule, finding.step) for finding in stability.findings}
    assert {("eval-loss-not-finite", 4), ("gradient-not-finite", 5)} <= found
    (evaluation,) = [entry for entry in site.metrics() if "eval_loss" in entry.get("notFinite", {})]
    assert (evaluation["step"], evaluation["notFinite"]["eval_loss"]) == (4, "nan")


def test_a_restarted_guard_says_nothing_until_it_has_recalled(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    board, metrics = ProgressBoard(), MetricsLog(site.paths.metrics)
    metrics.append(4, {"eval_loss": math.inf})
    checkpoints = Checkpoints(site.paths.checkpoints, keep=1)
    guard = StabilityGuard(_job(site), board, checkpoints, MetricsLog(site.paths.metrics))
    assert board.report().stability is None
    guard.recall(4)
    assert board.stability is not None
    assert [found.rule for found in board.stability.findings] == ["eval-loss-not-finite"]
    # It was said when it was found.
    assert [record for record in caplog.records if record.message == "stability"] == []


@pytest.mark.parametrize("step", PLACES)
def test_gpu_memory_that_runs_out_has_its_own_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = _job(site)
    break_loss(monkeypatch, [step], out_of_memory)
    assert run_here(site, config) == 80
    assert site.result().reason == Reason.GPU_OUT_OF_MEMORY
    assert site.result().step == step - 1


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_full_disk_leaves_no_half_checkpoint(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = _job(site)
    saves = 0
    original = torch.save

    def full(value: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal saves
        # One of the files of a checkpoint is its optimizer.
        saves += str(target).endswith("optimizer.pt")
        if saves == number:
            raise OSError(28, "No space left on device")
        original(value, target, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert run_here(site, config) == 74
    assert site.result().reason == Reason.STORAGE_FULL
    newest = Checkpoints(site.paths.checkpoints, keep=1).newest_complete()
    expected = 2 * (number - 1)
    assert (0 if newest is None else int(newest.name.removeprefix("checkpoint-"))) == expected
    assert run_here(site, config) == 0
    assert site.result().step == 10


def test_findings_outlive_a_process_that_ended_while_it_handed_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _job(site)
    with monkeypatch.context() as patch:
        break_loss(patch, [5], no_number)
        patch.setattr(export, "hand_over", _fail)
        assert run_here(site, config) == 70
    assert run_here(site, config) == 0
    stability = site.result().stability
    assert stability is not None
    assert ("gradient-not-finite", 5) in {(one.rule, one.step) for one in stability.findings}


def _fail(*_: Any) -> None:
    raise RuntimeError("the node is on fire")
