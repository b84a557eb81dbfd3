"""Loads the base model in the plan's number format, quantised for qlora."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from finetune_api.spec import FineTuneJobSpec, Method, Quantization
from finetune_trainer.device import Device


def load_model(folder: Path, spec: FineTuneJobSpec, device: Device) -> PreTrainedModel:
    """Return the model on the CPU, or, when quantised for a GPU, on this process's GPU."""
    options: dict[str, Any] = {}
    if spec.adapter.type == "qlora":
        options["quantization_config"] = _quantization(spec, device)
        if device.cuda:
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    return load_whole(folder, spec, device.dtype, **options)


def load_whole(
    folder: Path, spec: FineTuneJobSpec, dtype: torch.dtype, **options: Any
) -> PreTrainedModel:
    """Return the model that the method trains: it writes, or gives each sequence one number."""
    options |= {"dtype": dtype, "trust_remote_code": spec.model.trust_remote_code}
    model: PreTrainedModel
    if spec.method is Method.REWARD:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model


def decoder_layers(model: Any) -> torch.nn.ModuleList | None:
    """Return the layers of a model, with or without an adapter; None when it does not name them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers: torch.nn.ModuleList | None = getattr(base.get_decoder(), "layers", None)
    return layers


def _quantization(spec: FineTuneJobSpec, device: Device) -> BitsAndBytesConfig:
    wanted = spec.adapter.quantization or Quantization()
    if wanted.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=wanted.double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16 if device.cuda else torch.float32,
    )
