"""What must hold whatever a job says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from datasets import Dataset

from finetune_api.spec import Method
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.device import choose_device
from finetune_trainer.methods import module_of
from finetune_trainer.methods.extra import OWNED
from finetune_trainer.methods.setup import Setup
from finetune_trainer.paths import Paths
from unit.trainer.builders import make_config, make_plan


class _Recorded(dict[str, Any]):
    """Stands for a TRL configuration: what it was made from."""

    __getattr__ = dict.get


@pytest.mark.parametrize("method", list(Method))
def test_what_we_set_is_owned(
    method: Method, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A field that both we and training.extra set would fail only once GPUs are taken."""
    given: dict[str, Any] = {}

    def trainer(*, args: dict[str, Any], **_: object) -> Any:
        given.update(args)
        return SimpleNamespace(model=torch.nn.Module())

    module = module_of(method)
    monkeypatch.setattr(module, module.CONFIGURATION.__name__, _Recorded)
    monkeypatch.setattr(module, f"Resumable{method.value.title()}Trainer", trainer)
    module.build(_setup(tmp_path, method))
    assert given
    assert given.keys() - OWNED.keys() == set()


def _setup(folder: Path, method: Method) -> Setup:
    fields: dict[str, Any] = {"method": method}
    if method is Method.GRPO:
        fields["rewards"] = [{"name": "short", "builtin": "length"}]
    config = make_config(**fields)
    plan, nothing = make_plan(), Dataset.from_dict({})
    return Setup(
        config=config,
        plan=plan,
        device=choose_device(plan, config.spec.training),
        paths=Paths(folder, folder, folder),
        model=cast("Any", None),
        tokenizer=cast("Any", SimpleNamespace(pad_token_id=0)),
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
