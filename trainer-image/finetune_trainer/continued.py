"""An adapter that another job has made, trained on."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import Plan
from finetune_api.trainer import JobFailure, TrainerConfig
from finetune_trainer import distributed
from finetune_trainer.device import Device
from finetune_trainer.model import load_model
from finetune_trainer.paths import Paths
from finetune_trainer.sources.models import start_of

_OPTIONS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rs_lora": "use_rslora",
    "dora": "use_dora",
}
"""Options of the spec, and what PEFT calls them."""


def check_continued(spec: FineTuneJobSpec, folder: Path) -> None:
    """Raise JobFailure when the adapter in folder is not what the spec asks to train."""
    found = json.loads((folder / "adapter_config.json").read_text())
    if spec.adapter.type == "full":
        raise _failure("adapter.type is full, which trains no adapter: use lora or qlora.")
    writes = spec.method is not Method.REWARD
    if (found["task_type"] == "CAUSAL_LM") != writes:
        kind = "a model that writes" if found["task_type"] == "CAUSAL_LM" else "a reward model"
        raise _failure(f"the adapter is for {kind}, which method {spec.method} does not train.")
    _check_options(spec, found)


def _check_options(spec: FineTuneJobSpec, found: dict[str, Any]) -> None:
    if spec.adapter.lora is None:
        return
    for field, name in _OPTIONS.items():
        wanted = getattr(spec.adapter.lora, field)
        if found[name] != wanted:
            raise _failure(
                f"adapter.lora asks for {field} {wanted}, but the adapter has {found[name]}: leave "
                "adapter.lora out, its options come with the adapter."
            )
    _check_targets(spec.adapter.lora.target_modules, found["target_modules"])


def _check_targets(targets: list[str], names: list[str]) -> None:
    """Compare what the user names with what PEFT has written: whole names, or their last parts."""
    meant = {target: [name for name in names if _is(target, name)] for target in targets}
    all_named = {name for matches in meant.values() for name in matches} == set(names)
    if targets != ["all-linear"] and not (all_named and all(meant.values())):
        layers = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise _failure(
            f"adapter.lora.targetModules is {', '.join(targets)}, but the adapter has "
            f"{', '.join(layers)}: leave adapter.lora out."
        )


def _is(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def load_start(config: TrainerConfig, plan: Plan, paths: Paths, device: Device) -> Any:
    """Return the model that training starts from, with the adapter to continue, if there is one."""
    with distributed.loading(plan, config.spec, device):
        model = load_model(paths.model, config.spec, device)
    if start_of(config.spec.model.source, config.starts, "model.source").adapter is None:
        return model
    # ZeRO-3 wants all weights in one number format.
    as_stored = plan.strategy == "zero3"
    return PeftModel.from_pretrained(
        model, str(paths.adapter), is_trainable=True, autocast_adapter_dtype=not as_stored
    )


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.CONFIG_INVALID, f"model.jobAdapter is continue, but {message}")
