"""The adapter that is trained, and whether the model has the layers that it names."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from finetune_api.failures import Reason
from finetune_api.spec import Adapter, Lora, Method
from finetune_api.trainer import JobFailure

if TYPE_CHECKING:
    from peft import LoraConfig

_ALL_LINEAR = ["all-linear"]


def lora_config(adapter: Adapter, method: Method) -> "LoraConfig | None":
    """Return PEFT's configuration, or None when all weights are trained."""
    from peft import LoraConfig

    if adapter.type == "full":
        return None
    lora = adapter.lora or Lora()
    targets = lora.target_modules
    alpha = float(lora.alpha)
    return LoraConfig(
        task_type="SEQ_CLS" if method is Method.REWARD else "CAUSAL_LM",
        r=lora.rank,
        # A float works, and vLLM wants a whole number where it is one.
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == _ALL_LINEAR else targets,
        use_rslora=lora.rs_lora,
        use_dora=lora.dora,
    )


def check_targets(adapter: Adapter, model: Path) -> None:
    """Raise JobFailure when an adapter's target is no layer of the model, or its output head."""
    targets = (adapter.lora or Lora()).target_modules
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


def _failure(message: str) -> JobFailure:
    return JobFailure(Reason.CONFIG_INVALID, f"adapter.lora.targetModules: {message}")
