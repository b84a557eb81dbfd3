"""What must hold whatever a job says."""

from pathlib import Path
from typing import Any, cast

import pytest
from datasets import Dataset

from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.device import choose_device
from finetune_trainer.methods import sft
from finetune_trainer.methods.extra import OWNED
from finetune_trainer.methods.setup import Setup
from finetune_trainer.paths import Paths
from unit.trainer.builders import make_config, make_plan


def test_what_we_set_is_owned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A field that both we and training.extra set would fail only once GPUs are taken."""
    given: dict[str, Any] = {}

    def trainer(*, args: dict[str, Any], **_: object) -> None:
        given.update(args)

    monkeypatch.setattr(sft, "SFTConfig", dict)
    monkeypatch.setattr(sft, "ResumableSftTrainer", trainer)
    sft.build(_setup(tmp_path))
    assert given
    assert given.keys() - OWNED.keys() == set()


def _setup(folder: Path) -> Setup:
    config, plan, nothing = make_config(), make_plan(), Dataset.from_dict({})
    return Setup(
        config=config,
        plan=plan,
        device=choose_device(plan, config.spec.training),
        paths=Paths(folder, folder, folder),
        model=cast("Any", None),
        tokenizer=cast("Any", None),
        train=nothing,
        held_out=nothing,
        longest=10,
    )


def test_a_complete_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for text in ("first", "second"):
        staged = checkpoints.staging / "checkpoint-5"
        staged.mkdir(parents=True)
        (staged / "weights").write_text(text)
        checkpoints.publish(5)
    newest = checkpoints.newest_complete()
    assert newest is not None
    assert (newest / "weights").read_text() == "first"
