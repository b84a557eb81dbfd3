"""However a run is interrupted, it ends with the same losses and one artifact."""

import json
import shutil
import signal
from typing import Any

import pytest

from finetune_api.trainer import TrainerConfig
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.processes import Interruption

# Dropout makes the random state matter, and logging every third step the sums between logs.
_SPEC: dict[str, Any] = {
    "dataset": {"source": "pvc://data/rows.jsonl", "evalFraction": 0.1},
    "adapter": {"type": "lora", "lora": {"rank": 4, "dropout": 0.2}},
    "training": {
        "maxSteps": 14,
        "batchSize": 4,
        "learningRate": 0.01,
        "checkpoint": {"everySteps": 4, "keep": 2},
        "evalEverySteps": 5,
        "logEverySteps": 3,
    },
    "evaluation": {"samplePrompts": ["What is 1 plus 1?"], "sampleMaxTokens": 4},
}


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Any
) -> list[dict[str, Any]]:
    site = Site(tmp_path_factory.mktemp("uninterrupted"))
    shutil.copytree(tiny_model, site.model)
    from unit.trainer.builders import chat_rows

    site.write_data(chat_rows(40))
    assert site.run(_job(site)) == 0
    return site.metrics()


def _job(site: Site) -> TrainerConfig:
    return site.job(plan=make_plan(), **_SPEC)


@pytest.mark.parametrize(
    "interruption",
    [
        pytest.param(Interruption("step", 3), id="before the first checkpoint"),
        pytest.param(Interruption("step", 7), id="between two checkpoints"),
        pytest.param(Interruption("step", 11), id="in the second epoch"),
        pytest.param(Interruption("checkpoint", 2), id="while a checkpoint is written"),
        pytest.param(Interruption("export"), id="while the model is handed over"),
        pytest.param(Interruption("handed over"), id="after the model was handed over"),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    site: Site, uninterrupted: list[dict[str, Any]], interruption: Interruption
) -> None:
    config = _job(site)
    assert site.run(config, interruption) == -signal.SIGKILL
    assert site.run(config) == 0
    assert site.metrics() == uninterrupted
    result = site.result()
    assert result.step == 14
    assert result.artifact is not None
    assert [path.name for path in site.paths.output.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("interruption", "checkpoint"),
    [
        pytest.param(Interruption("step", 6, signal.SIGTERM), 6, id="in a step"),
        pytest.param(Interruption("evaluation", 3, signal.SIGTERM), 5, id="in an evaluation"),
    ],
)
def test_sigterm_saves_a_checkpoint_and_ends_as_preempted(
    site: Site, uninterrupted: list[dict[str, Any]], interruption: Interruption, checkpoint: int
) -> None:
    config = _job(site)
    assert site.run(config, interruption) == 75
    result = site.result()
    assert (result.reason, result.step) == ("Preempted", checkpoint)
    assert result.checkpoint_step == checkpoint
    assert f"checkpoint {checkpoint} is complete" in result.message
    assert (site.paths.checkpoints / f"checkpoint-{checkpoint}").exists()
    assert site.run(config) == 0
    assert site.metrics() == uninterrupted


def test_sigterm_before_training_ends_at_once(site: Site) -> None:
    assert site.run(_job(site), Interruption("evaluation", 1, signal.SIGTERM)) == 75
    assert site.result().message == "stopped by SIGTERM; nothing was trained yet."
    assert site.result().checkpoint_step is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_newest_checkpoint_is_ignored(
    site: Site, uninterrupted: list[dict[str, Any]], damage: str
) -> None:
    config = _job(site)
    assert site.run(config, Interruption("step", 11)) == -signal.SIGKILL
    newest = site.paths.checkpoints / "checkpoint-8"
    optimizer = newest / "optimizer.pt"
    content = optimizer.read_bytes()
    if damage == "truncated":
        optimizer.write_bytes(content[:-10])
    elif damage == "flipped":
        optimizer.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        optimizer.unlink()
    else:
        (newest / "manifest.json").unlink()
    assert site.run(config) == 0
    assert site.metrics() == uninterrupted


def test_old_checkpoints_are_removed(site: Site) -> None:
    assert site.run(_job(site)) == 0
    names = sorted(path.name for path in site.paths.checkpoints.iterdir() if path.name[0] != ".")
    assert names == ["checkpoint-12", "checkpoint-14"]


def test_a_second_run_after_success_repeats_nothing(site: Site) -> None:
    config = _job(site)
    assert site.run(config) == 0
    first = site.result()
    before = {path: path.stat().st_mtime_ns for path in site.artifact.rglob("*")}
    shutil.rmtree(site.paths.workspace)
    assert site.run(config) == 0
    assert site.result() == first
    assert {path: path.stat().st_mtime_ns for path in site.artifact.rglob("*")} == before


def test_answers_before_training_survive_a_resume(site: Site) -> None:
    config = _job(site)
    site.run(config, Interruption("step", 7))
    site.paths.answers_before.write_text('["remembered"]')
    assert site.run(config) == 0
    samples = json.loads((site.artifact / "samples.json").read_text())
    assert samples[0]["before"] == "remembered"
