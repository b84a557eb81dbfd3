"""The adapter that is trained, and whether the model has the layers that it names."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from finetune_api.failures import Reason
from finetune_api.spec import Adapter, Lora, Method
from finetune_api.trainer import JobFailure

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_ALL_LINEAR = ["all-linear"]


def lora_config(adapter: Adapter, method: Method, model: "PreTrainedModel") -> "LoraConfig | None":
    """Return PEFT's configuration, or None when all weights are trained."""
    from peft import LoraConfig

    if adapter.type == "full":
        return None
    lora = adapter.lora or Lora()
    targets = lora.target_modules
    alpha = float(lora.alpha)
    config = LoraConfig(
        task_type="SEQ_CLS" if method is Method.REWARD else "CAUSAL_LM",
        r=lora.rank,
        # A float works, and vLLM wants a whole number where it is one.
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == _ALL_LINEAR else targets,
        use_rslora=lora.rs_lora,
        use_dora=lora.dora,
    )
    if targets == _ALL_LINEAR:
        _leave_experts(config, model)
    return config


def _leave_experts(config: "LoraConfig", model: "PreTrainedModel") -> None:
    """Keep all-linear to linear layers where a mixture's experts are one parameter of each layer.

    PEFT would adapt router and experts too. For each step it then adds the adapter to a copy of all
    experts and computes the gradient of the whole copy; and it takes no dropout and no DoRA.
    """
    found = copy.deepcopy(config)
    _name_experts(found, model)
    if found.target_parameters:
        config.target_modules = found.target_modules


def _name_experts(config: "LoraConfig", model: Any) -> None:
    """Turn what names experts into target_parameters, as PEFT does; ValueError when it cannot."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    convert_peft_config_for_transformers(config, model, None)


def check_targets(adapter: Adapter, model: Path) -> None:
    """Raise JobFailure when an adapter's target is no layer of the model, or its output head."""
    lora = adapter.lora or Lora()
    targets = lora.target_modules
    files = sorted(model.glob("*.safetensors"))
    if adapter.type == "full" or targets == _ALL_LINEAR or not files:
        return
    weights = {
        key.removesuffix(".weight")
        for file in files
        for key in safe_open(file, "pt").keys()  # noqa: SIM118 - it is no mapping
        if key.endswith(".weight")
    }
    layers = sorted({name.rsplit(".", 1)[-1] for name in weights if "norm" not in name})
    for target in targets:
        if target.split(".")[-1] == "lm_head":
            raise _failure(f"{target} is the output head, which gets no adapter: remove it.")
        if not any(name == target or name.endswith(f".{target}") for name in weights):
            raise _failure(
                f"{json.dumps(target)} is no layer of the model: it has {', '.join(layers)}."
            )
    _check_experts(lora, model)


def _check_experts(lora: Lora, model: Path) -> None:
    from peft import LoraConfig

    model_type = json.loads((model / "config.json").read_text())["model_type"]
    found = LoraConfig(target_modules=lora.target_modules)
    try:
        _name_experts(found, SimpleNamespace(config=SimpleNamespace(model_type=model_type)))
    except ValueError as error:
        raise _failure(str(error)) from error
    if found.target_parameters and (lora.dropout or lora.dora):
        option = "dora" if lora.dora else "dropout"
        raise _failure(
            f"{', '.join(lora.target_modules)} include experts, whose adapters cannot have "
            f"{option}: leave adapter.lora.{option} out, or name layers of the attention only."
        )


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.CONFIG_INVALID, f"adapter.lora.targetModules: {message}")
