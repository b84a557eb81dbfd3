"""Packed rows: several documents behind each other in one row, none of which sees another."""
# ruff: noqa: SLF001 - models say by private names what their attention can do

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from trl.data_utils import pack_dataset

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.trainer import JobFailure

_TOGETHER = 10_000
"""Documents that are packed at a time: the last row of each time stays partly empty."""

_IGNORED = -100
"""Label of a token that is not learned."""


def check_packs(spec: FineTuneJobSpec, folder: Path) -> None:
    """Raise JobFailure when the model in folder would let packed documents see each other.

    Attention keeps them apart by their positions; recurrent layers and convolutions do not.
    """
    if not spec.training.packing:
        return
    with_code = spec.model.trust_remote_code
    config = AutoConfig.from_pretrained(folder, trust_remote_code=with_code)
    own = with_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    model: Any = None if own else MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model is None:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"training.packing is true, but model.source {spec.model.source} runs Python code of "
            "its own, in which packed documents might see each other: set it to false.",
        )
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    by_position = model._supports_flex_attn or model._supports_flash_attn
    if not by_position or model._is_stateful or "conv" in kinds:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"training.packing is true, but in a {config.model_type} (model.source "
            f"{spec.model.source}) packed documents would see each other: set it to false.",
        )


def pack(rows: Dataset, length: int, strategy: str) -> Dataset:
    """Return rows of at most length tokens, with the lengths of their documents in seq_lengths."""
    # The others find what the first has cached.
    with PartialState().main_process_first():
        documents = rows.select_columns(["input_ids", "labels"])
        packed: Dataset = pack_dataset(documents, length, strategy, {"batch_size": _TOGETHER})
    return packed


@dataclass(frozen=True)
class PackedCollator:
    """Makes a micro-batch of packed rows; all are of one size, so that nothing is compiled anew.

    Positions begin at 0 with each document, and each token of padding is a document of its own.
    """

    length: int
    padding: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the micro-batch; its attention mask says only what is no padding."""
        shape = len(rows), self.length
        batch = {
            "input_ids": torch.full(shape, self.padding),
            "labels": torch.full(shape, _IGNORED),
            "position_ids": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
        }
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            lengths = row.get("seq_lengths", [size])
            batch["input_ids"][index, :size] = torch.tensor(row["input_ids"])
            batch["labels"][index, :size] = torch.tensor(row["labels"])
            batch["position_ids"][index, :size] = torch.cat([torch.arange(n) for n in lengths])
            batch["attention_mask"][index, :size] = 1
        # The first token of a document follows none.
        batch["labels"][batch["position_ids"] == 0] = _IGNORED
        return batch


class PackedTrainer:
    """Mixed into a TRL trainer: packed rows go through the model as documents of their own."""

    attention: str | None = None
    """The kind of attention that packed rows take; None leaves the model's own."""

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Go forward and backward; with checkpointing, layers run again on the way back."""
        with _attention(self.model, self.attention):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def prediction_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Go forward."""
        with _attention(self.model, self.attention):
            return super().prediction_step(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Go forward without the attention mask: given one, models do not look for documents."""
        seen = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return super().compute_loss(model, seen, *args, **kwargs)  # type: ignore[misc]


def attention_for(model: Any, *, cuda: bool) -> str | None:
    """Return the attention for packed rows: on a GPU one that skips what no token may see.

    SDPA would be given a mask with an entry for each pair of tokens.
    """
    dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    return "flex_attention" if cuda and model._supports_flex_attn and not dropout else None


@contextmanager
def _attention(model: Any, name: str | None) -> Iterator[None]:
    """Run with another attention; what the model writes outside of it is one token at a time."""
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = name or usual
    try:
        yield
    finally:
        config._attn_implementation = usual
