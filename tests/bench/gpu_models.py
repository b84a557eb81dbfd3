"""Random models of real shapes, and rows to train them on."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from finetune_trainer.durable import write_json
from finetune_trainer.sources.fetch import MARKER
from unit.trainer.builders import save_tokenizer, write_rows

_FAMILIES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen2_moe": Qwen2MoeConfig,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
    "gemma3": Gemma3TextConfig,
}


@dataclass(frozen=True)
class Experts:
    """What each layer of a mixture has."""

    count: int
    per_token: int
    size: int
    shared: int | None = None

    def options(self) -> dict[str, Any]:
        """Return them as Transformers' configurations have them."""
        shared = {} if self.shared is None else {"shared_expert_intermediate_size": self.shared}
        return shared | {
            "num_experts": self.count,
            "num_experts_per_tok": self.per_token,
            "moe_intermediate_size": self.size,
        }


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True
    head_dim: int | None = None
    experts: Experts | None = None

    def config(self) -> PreTrainedConfig:
        """Return it as Transformers has it."""
        width = {} if self.head_dim is None else {"head_dim": self.head_dim}
        made: PreTrainedConfig = _FAMILIES[self.family](
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=16384,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            **width,
            **(self.experts.options() if self.experts else {}),
        )
        return made


SHAPES = {
    "tiny": Shape("llama", 64, 128, 2, 4, 2, 260),
    "Llama-3.2-1B": Shape("llama", 2048, 8192, 16, 32, 8, 128256),
    "Llama-3.2-3B": Shape("llama", 3072, 8192, 28, 24, 8, 128256, head_dim=128),
    "Llama-3.1-8B": Shape("llama", 4096, 14336, 32, 32, 8, 128256, tied=False),
    "Qwen2.5-1.5B": Shape("qwen2", 1536, 8960, 28, 12, 2, 151936),
    "Qwen2.5-7B": Shape("qwen2", 3584, 18944, 28, 28, 4, 152064, tied=False),
    "Qwen3-1.7B": Shape("qwen3", 2048, 6144, 28, 16, 8, 151936, head_dim=128),
    "gemma-3-1b": Shape("gemma3", 1152, 6912, 26, 4, 1, 262144, head_dim=256),
    "tiny-mixture": Shape(
        "qwen3_moe", 64, 128, 2, 4, 2, 260, head_dim=16, experts=Experts(8, 2, 32)
    ),
    "Qwen1.5-MoE-A2.7B": Shape(
        "qwen2_moe", 2048, 5632, 24, 16, 16, 151936, tied=False, experts=Experts(60, 4, 1408, 5632)
    ),
    # All weights of the whole one do not fit one GPU.
    "Qwen3-30B-A3B-8-layers": Shape(
        "qwen3_moe",
        2048,
        6144,
        8,
        32,
        4,
        151936,
        tied=False,
        head_dim=128,
        experts=Experts(128, 8, 768),
    ),
}
"""By the names of the models whose shapes they are."""


def save(name: str, models: Path) -> Path:
    """Save a random model in bf16, with a tokenizer of a token per byte, once; return where.

    It is marked as fetched, so that preparation does not copy it.
    """
    folder = models / name
    if not folder.exists():
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            make: Any = AutoModelForCausalLM.from_config
            model = make(SHAPES[name].config(), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        save_tokenizer(folder)
        write_json(folder / MARKER, {"uri": f"pvc://models/{name}"})
    return folder


def long_tailed(tokens: int, longest: int) -> list[int]:
    """Return lengths that sum up to about so many tokens: log-normal, median 400."""
    draw = random.Random(2)  # noqa: S311 - no secret
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(min(longest, max(16, round(400 * draw.lognormvariate(0, 1)))))
    return lengths


def write_data(method: str, lengths: Sequence[int], path: Path) -> None:
    """Write rows of so many tokens each; of pairs each side has so many."""
    write_rows(path, [_row(method, index, length) for index, length in enumerate(lengths)])


def _row(method: str, index: int, length: int) -> dict[str, Any]:
    if method == "sft":
        draw = random.Random(index)  # noqa: S311 - no secret
        return {"input_ids": draw.choices(range(4, 260), k=length)}
    if method == "grpo":
        # Prompts of one batch differ, as real ones do: so there is a mask, which takes memory.
        return {"prompt": f"{index:06} ".ljust(length - index % 3, "p")}
    prompt = f"{index:06} ".ljust(length // 2, "p")
    answer = length - len(prompt) - 1
    match method:
        case "kto":
            return {"prompt": prompt, "completion": "c" * answer, "label": index % 2 == 0}
        case _:
            return {"prompt": prompt, "chosen": "c" * answer, "rejected": "r" * answer}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
