"""The model's tokenizer, with the chat template that the job trains with."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_api.failures import Reason
from finetune_api.spec import Model
from finetune_api.trainer import JobFailure

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load_tokenizer(folder: Path, model: Model) -> PreTrainedTokenizerBase:
    """Return the tokenizer in folder; model.chatTemplate replaces its own template.

    Raises JobFailure when there is none, or none that Transformers can load.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"model.source {model.source} has no tokenizer that Transformers can load: expected "
            f"tokenizer.json beside the weights ({_first_line(error)}).",
        ) from error
    if tokenizer.eos_token is None:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"model.source {model.source} has a tokenizer without an end-of-sequence token, so "
            "that a model could not learn to stop: name one as eos_token in tokenizer_config.json.",
        )
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def chat_template(tokenizer: Any) -> str | None:
    """Return the template in use; of named variants, the default one."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a template that marks what the assistant says, or None when there is none.

    It is the tokenizer's own when that has `{% generation %}`, else TRL's version of it for the
    families that TRL knows.
    """
    from trl.chat_template_utils import get_training_chat_template

    own = chat_template(tokenizer)
    if own is None:
        return None
    try:
        patched = get_training_chat_template(tokenizer)
    except ValueError:
        return own if _GENERATION.search(own) else None
    return patched or own


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
