"""Reads what the plan rests on from the model's own files, without loading a weight."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from finetune_api.experts import experts_of_config
from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec, Method
from finetune_api.status import ModelFacts
from finetune_api.trainer import JobFailure

UNLIMITED = 1 << 20
"""Positions of a model that knows no limit."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_facts(folder: Path, source: str, *, trust_remote_code: bool) -> ModelFacts:
    """Return the architecture and the size of the model in folder; source is for messages.

    Raises JobFailure when it is no causal language model that Transformers can load.
    """
    raw = _raw_config(folder, source)
    _check_supported(raw, source, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    parameters, dtype, size = _weights(folder, source)
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = text.hidden_size
    return ModelFacts(
        architecture=(config.architectures or [type(config).__name__])[0],
        model_type=config.model_type,
        parameters=parameters,
        hidden_size=width,
        intermediate_size=_first(text, ("intermediate_size", "n_inner", "ffn_dim"), 4 * width),
        experts=experts_of_config(text.to_dict()),
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=_first(text, ("num_key_value_heads",), heads),
        head_dim=_first(text, ("head_dim",), width // heads),
        vocabulary=text.vocab_size,
        max_positions=_first(text, ("max_position_embeddings",), UNLIMITED),
        tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        weights_bytes=size,
        dtype=dtype,
    )


def check_writes(spec: FineTuneJobSpec, facts: ModelFacts) -> None:
    """Raise JobFailure for a reward model that is to write, or a model that cannot become one."""
    scores = facts.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if spec.method is Method.REWARD and not scores and not spec.model.trust_remote_code:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"model.source {spec.model.source} is a {facts.model_type}, of which Transformers can "
            "make no sequence classifier, as method reward needs: choose another model.",
        )
    if spec.method is not Method.REWARD and facts.architecture.endswith("SequenceClassification"):
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"model.source {spec.model.source} is a reward model ({facts.architecture}), which "
            f"method {spec.method} cannot train: name a causal language model.",
        )


def _first(config: PretrainedConfig, names: tuple[str, ...], default: int) -> int:
    """Return the first attribute that is set: families name the same thing differently."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return default


def _raw_config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / "config.json"
    if path.exists():
        config: dict[str, Any] = json.loads(path.read_text())
        return config
    found = ", ".join(sorted(file.name for file in folder.iterdir() if file.name[0] != "."))
    if (folder / "adapter_config.json").exists():
        message = f"model.source {source} is an adapter: name its base model, or a merged model."
    else:
        message = (
            f"model.source {source} has no config.json (found {found}): name a model's folder."
        )
    raise JobFailure(Reason.MODEL_NOT_FOUND, message)


def _check_supported(raw: dict[str, Any], source: str, *, trust_remote_code: bool) -> None:
    model_type = raw.get("model_type")
    known = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if known or (trust_remote_code and "auto_map" in raw):
        return
    if "auto_map" in raw:
        message = (
            f"model.source {source} needs Python code of its own (model_type {model_type}): set "
            "model.trustRemoteCode to true if you trust it."
        )
    elif model_type in CONFIG_MAPPING:
        message = (
            f"model.source {source} is a {model_type}, which is no causal language model: "
            "choose one that generates text from left to right."
        )
    else:
        message = (
            f"model.source {source} has model_type {model_type}, which this trainer's Transformers "
            "does not know: choose a causal language model that it can load."
        )
    raise JobFailure(Reason.MODEL_UNSUPPORTED, message)


def _weights(folder: Path, source: str) -> tuple[int, str, int]:
    """Return the number of weights, their number format and the bytes of their files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return _pickled_weights(folder, source)
    _check_index(folder, source)
    counts: dict[str, int] = {}
    for file in files:
        for dtype, numbers in _tensors(file, source):
            counts[dtype] = counts.get(dtype, 0) + numbers
    main = max(counts, key=lambda name: counts[name])
    size = sum(file.stat().st_size for file in files)
    return sum(counts.values()), _DTYPES.get(main, main.lower()), size


def _check_index(folder: Path, source: str) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    named = set(json.loads(index.read_text())["weight_map"].values())
    absent = sorted(name for name in named if not (folder / name).exists())
    if absent:
        raise JobFailure(
            Reason.MODEL_NOT_FOUND,
            f"model.source {source} lacks {absent[0]} ({len(absent)} of {len(named)} weight files "
            "that its index names are missing): complete it.",
        )


def _tensors(file: Path, source: str) -> Iterator[tuple[str, int]]:
    """Yield the format and the number of weights of each tensor, from the file's header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = stream.read(length) if length < size else b""
    try:
        entries = {key: tensor for key, tensor in json.loads(header).items() if key[0] != "_"}
    except ValueError:
        entries = None
    end = max((t["data_offsets"][1] for t in entries.values()), default=0) if entries else 0
    if not entries or 8 + length + end != size:
        raise JobFailure(
            Reason.MODEL_UNSUPPORTED,
            f"model.source {source} has a damaged weight file: {file.name} is {size} bytes and its "
            f"header speaks of {8 + length + end}: copy it again.",
        )
    for tensor in entries.values():
        yield tensor["dtype"], math.prod(tensor["shape"])


def _pickled_weights(folder: Path, source: str) -> tuple[int, str, int]:
    import torch

    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise JobFailure(
            Reason.MODEL_NOT_FOUND,
            f"model.source {source} has a config.json but no weights: expected model*.safetensors.",
        )
    parameters, dtype = 0, "float32"
    for file in files:
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        parameters += sum(tensor.numel() for tensor in tensors.values())
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    return parameters, dtype, sum(file.stat().st_size for file in files)
