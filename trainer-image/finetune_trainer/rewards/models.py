"""Reward models: sequence classifiers with one output, from a folder of the workspace."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_trainer.rewards.checked import RewardError


def check_reward_model(folder: Path, source: str, *, scores_chats: bool) -> None:
    """Raise RewardError when what is in folder cannot score completions."""
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RewardError(
            f"is {source}, whose configuration or tokenizer Transformers cannot load: {reason}"
        ) from error
    kind = (config.architectures or ["nothing"])[0]
    if not kind.endswith("ForSequenceClassification") or config.num_labels != 1:
        outputs = f" with {config.num_labels} outputs" if kind.endswith("Classification") else ""
        raise RewardError(
            f"is {source}, which holds {kind}{outputs}, expected a sequence classifier with one "
            "output, such as method reward makes"
        )
    if scores_chats and tokenizer.chat_template is None:
        raise RewardError(
            f"is {source}, whose tokenizer has no chat template, but the prompts are messages: "
            "expected a model that scores chats, or prompts that are text"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise RewardError(f"is {source}, whose tokenizer has neither a padding nor an end token")
    _check_head(config, folder, source)


def _check_head(config: Any, folder: Path, source: str) -> None:
    """Raise RewardError when weights of the head are missing: they would be made up."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    body = f"{model.base_model_prefix}."
    head = {name for name in model.state_dict() if not name.startswith(body)}
    there = {name for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118 - it is no mapping
    missing = sorted(head - there)
    if missing:
        raise RewardError(
            f"is {source}, whose weights lack {', '.join(missing)}: it scores nothing yet"
        )


def load_reward_model(
    folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, frozen, and its tokenizer; TRL names its metrics after the folder."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1)
    model.requires_grad_(requires_grad=False)
    return model, AutoTokenizer.from_pretrained(folder)
