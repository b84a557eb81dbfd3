"""Policy Rollback: back to good weights, past the bad data, with a lower learning rate."""

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.status import Rollback
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.durable import write_json
from finetune_trainer.methods import grpo, sft
from finetune_trainer.metrics_log import MetricsLog
from finetune_trainer.stability import rollback as module
from unit.trainer.builders import chat_rows, make_plan
from unit.trainer.conftest import Site
from unit.trainer.faults import (
    break_evaluation,
    break_loss,
    broken_rank,
    more_than_double,
    no_number,
    run_here,
)
from unit.trainer.processes import start_process
from unit.trainer.ranks import LIMIT_SECONDS, free_port
from unit.trainer.test_grpo import grpo_job


def _job(site: Site, **training: Any) -> TrainerConfig:
    fraction = 0.1 if "evalEverySteps" in training else 0
    defaults = {
        "maxSteps": 10,
        "batchSize": 4,
        "learningRate": 0.01,
        "checkpoint": {"everySteps": 2, "keep": 1},
    }
    return site.job(
        make_plan(),
        dataset={"source": "pvc://data/rows.jsonl", "evalFraction": fraction},
        training=defaults | training,
        stability={"policy": "Rollback", "maxRollbacks": 2},
    )


def _after(config: TrainerConfig, *rollbacks: Rollback) -> TrainerConfig:
    """Return the next attempt's config."""
    return config.model_copy(update={"rollbacks": list(rollbacks)})


def _batches(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[torch.Tensor]]:
    """Return a table that fills with the tokens that each optimizer step sees."""
    seen: dict[int, list[torch.Tensor]] = {}
    original = sft.ResumableSftTrainer.compute_loss

    def watching(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen.setdefault(trainer.state.global_step + 1, []).append(inputs["input_ids"].clone())
        return original(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.ResumableSftTrainer, "compute_loss", watching)
    return seen


def _rates(site: Site) -> dict[int, float]:
    return {entry["step"]: entry["learning_rate"] for entry in site.metrics() if "loss" in entry}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Any
) -> tuple[dict[int, float], dict[int, list[torch.Tensor]]]:
    site = Site(tmp_path_factory.mktemp("undisturbed"))
    for folder in (site.paths.workspace, site.paths.output):
        folder.mkdir()
    shutil.copytree(tiny_model, site.model)
    site.write_data(chat_rows(40))
    with pytest.MonkeyPatch.context() as patch:
        batches = _batches(patch)
        assert run_here(site, _job(site)) == 0
    return _rates(site), batches


@pytest.mark.parametrize(("bad", "good"), [(1, 0), (6, 4), (9, 8)])
def test_training_goes_on_past_the_bad_step_with_half_the_rate(
    site: Site, monkeypatch: pytest.MonkeyPatch, undisturbed: Any, bad: int, good: int
) -> None:
    rates, batches = undisturbed
    config = _job(site)
    with monkeypatch.context() as patch:
        break_loss(patch, [bad], no_number)
        assert run_here(site, config) == 82
    result = site.result()
    expected = Rollback(
        rule="gradient-not-finite", step=bad, to_step=good, learning_rate_factor=0.5
    )
    assert (result.reason, result.rollback) == ("RolledBack", expected)
    seen = _batches(monkeypatch)
    assert run_here(site, _after(config, expected)) == 0
    assert sorted(seen) == list(range(bad + 1, 11))
    for step, tokens in seen.items():
        assert all(torch.equal(*pair) for pair in zip(tokens, batches[step], strict=True))
    steps = [*range(1, good + 1), *range(bad + 1, 11)]
    assert list(_rates(site)) == steps
    for step in steps:
        factor = 0.5 if step > bad else 1
        assert _rates(site)[step] == pytest.approx(rates[step] * factor, rel=1e-6)
    stability = site.result().stability
    assert stability is not None
    assert (stability.verdict, stability.findings[0].severity) == ("Warning", "Warning")


def test_the_last_step_has_no_step_after_it_to_go_on_with(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _job(site)
    break_loss(monkeypatch, [10], no_number)
    assert run_here(site, config) == 81
    expected = "Training cannot go on from checkpoint 8: no step is left of the 10: "
    assert expected in site.result().message


def test_the_checkpoint_before_an_unproven_stretch_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out rows tell of all steps since they were last looked at."""
    config = _job(site, evalEverySteps=4)
    with monkeypatch.context() as patch:
        break_evaluation(patch, [8])
        assert run_here(site, config) == 82
    rollback = site.result().rollback
    assert rollback == Rollback(
        rule="eval-loss-not-finite", step=8, to_step=4, learning_rate_factor=0.5
    )
    assert run_here(site, _after(config, rollback)) == 0


def test_factors_multiply_and_then_the_job_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch, undisturbed: Any
) -> None:
    config = _job(site)
    rollbacks: list[Rollback] = []
    for step in (3, 6):
        with monkeypatch.context() as patch:
            break_loss(patch, [step], no_number)
            assert run_here(site, _after(config, *rollbacks)) == 82
        rollback = site.result().rollback
        assert rollback is not None
        rollbacks.append(rollback)
    assert [(entry.step, entry.to_step) for entry in rollbacks] == [(3, 2), (6, 4)]
    assert [entry.learning_rate_factor for entry in rollbacks] == [0.5, 0.25]
    with monkeypatch.context() as patch:
        break_loss(patch, [9], no_number)
        assert run_here(site, _after(config, *rollbacks)) == 81
    assert "stability.maxRollbacks is 2, and all were used" in site.result().message
    assert run_here(site, _after(config, *rollbacks)) == 0
    rates, _ = undisturbed
    factors = {step: rate / rates[step] for step, rate in _rates(site).items() if rates[step]}
    assert factors == pytest.approx({2: 1, 4: 0.5, 7: 0.25, 8: 0.25, 9: 0.25, 10: 0.25})


def test_the_checkpoint_before_a_slow_divergence_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bad steps make the finding; with keep 1 only spoilt checkpoints would be left."""
    config = _job(site, maxSteps=40)
    with monkeypatch.context() as patch:
        break_loss(patch, range(16, 41), more_than_double)
        assert run_here(site, config) == 82
    rollback = site.result().rollback
    assert rollback == Rollback(rule="loss-diverged", step=25, to_step=14, learning_rate_factor=0.5)
    assert run_here(site, _after(config, rollback)) == 0
    assert site.result().step == 40


@pytest.mark.parametrize("point", ["rewind", "publish", "write_json"])
def test_a_rollback_that_is_interrupted_is_done_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    checkpoints, metrics = (
        Checkpoints(site.paths.checkpoints, keep=1),
        MetricsLog(site.paths.metrics),
    )
    for step in (4, 6):
        metrics.append(step, {"loss": 1.0})
        _stage(checkpoints, step)
    rollback = Rollback(rule="loss-diverged", step=7, to_step=4, learning_rate_factor=0.5)
    owner: Any = {"rewind": metrics, "publish": checkpoints, "write_json": module}[point]
    with monkeypatch.context() as patch:
        patch.setattr(owner, point, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            module.carry_out([rollback], checkpoints, metrics)
    for _ in range(2):
        module.carry_out([rollback], checkpoints, metrics)
        newest = checkpoints.newest_complete()
        assert newest is not None
        assert newest.name == "checkpoint-7"
        assert load_file(newest / "weights.safetensors")["weight"].item() == 4
        assert [entry["step"] for entry in metrics.entries] == [4]


def _stage(checkpoints: Checkpoints, step: int) -> None:
    staged = checkpoints.staging / f"checkpoint-{step}"
    write_json(staged / "trainer_state.json", {"global_step": step, "epoch": 0.5})
    save_file({"weight": torch.tensor([float(step)])}, staged / "weights.safetensors")
    checkpoints.publish(step, good=4)


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_that_is_gone_is_an_error(site: Site) -> None:
    checkpoints = Checkpoints(site.paths.checkpoints, keep=1)
    rollback = Rollback(rule="loss-diverged", step=7, to_step=4, learning_rate_factor=0.5)
    with pytest.raises(JobFailure, match="checkpoint 4, to which training goes back after rule"):
        module.carry_out([rollback], checkpoints, MetricsLog(site.paths.metrics))


def test_completions_that_are_used_twice_are_skipped_together(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"maxSteps": 6, "batchSize": 16, "checkpoint": {"everySteps": 1}}
    stability = {"policy": "Rollback"}
    options: dict[str, Any] = {
        "training": training,
        "grpo": {"iterations": 2},
        "stability": stability,
    }
    config = grpo_job(site, **options)
    with monkeypatch.context() as patch:
        break_loss(patch, [3], no_number, grpo.ResumableGrpoTrainer)
        assert run_here(site, config) == 82
    rollback = site.result().rollback
    assert rollback is not None
    assert (rollback.step, rollback.to_step) == (4, 2)
    assert run_here(site, _after(config, rollback)) == 0
    assert [entry["step"] for entry in site.metrics() if "loss" in entry] == [1, 2, 5, 6]


def test_processes_go_back_together(site: Site) -> None:
    """Only the second has bad numbers; what both reduce has them too."""
    plan = make_plan(
        gpus=2, gpus_per_node=2, strategy="ddp", micro_batch_size=2, gradient_accumulation_steps=1
    )
    config = _job(site).model_copy(update={"plan": plan})
    arguments = site.arguments("run", config)
    (site.root / "termination-log").write_text("")
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "FINETUNE_DEVICE": "cpu",
    }
    processes = [
        start_process(
            broken_rank, arguments, 6, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    for process in processes:
        process.join(LIMIT_SECONDS)
    assert [process.exitcode for process in processes] == [82, 82]
    rollback = site.result().rollback
    assert rollback is not None
    assert (rollback.step, rollback.to_step) == (6, 4)
