"""Tiny models, data and jobs for the trainer's tests."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_api.status import Memory, Plan
from finetune_api.trainer import TrainerConfig

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
MAX_POSITIONS = 512


def save_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Save a tokenizer with one token per byte, and one per role."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[1:],
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def save_model(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Save a random Llama of 2 layers with 100,000 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, chat_template)


_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 64},
}


def save_mixture(folder: Path, family: str = "qwen3_moe") -> None:
    """Save a random mixture of 4 experts in each of 2 layers, of which a token sees 2."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts_per_tok": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    config = CONFIG_MAPPING[family](**sizes, **_EXPERTS[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Return short conversations of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus 1?"},
                {"role": "assistant", "content": f"It is {number + 1}." + "!" * (number % 5)},
            ]
        }
        for number in range(count)
    ]


def preference_rows(count: int) -> list[dict[str, Any]]:
    """Return pairs of which the chosen answer is the one with exclamation marks."""
    return [
        {"prompt": f"What is {n} plus 1?", "chosen": f"{n + 1}!!", "rejected": f"{n + 1}??"}
        for n in range(count)
    ]


def label_rows(count: int) -> list[dict[str, Any]]:
    """Return single answers, every other one of them undesirable."""
    return [
        {"prompt": f"What is {n} plus 1?", "completion": f"{n}{'?!'[n % 2]}", "label": n % 2 == 1}
        for n in range(count)
    ]


def turning_rows(count: int, bad: range) -> list[dict[str, Any]]:
    """Return rows that are easily learned, but for a stretch of random characters."""
    letters = random.Random(0)  # noqa: S311 - no secret
    return [
        {
            "prompt": "Say it.",
            "completion": "".join(letters.choices("qwertyuiopasdfgh", k=24))
            if n in bad
            else "a" * 24,
        }
        for n in range(count)
    ]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_plan(**fields: Any) -> Plan:
    """Return a plan for the CPU."""
    defaults: dict[str, Any] = {
        "summary": "CPU",
        "gpus": 0,
        "nodes": 1,
        "gpus_per_node": 0,
        "strategy": "single",
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_length": 128,
        "precision": "float32",
        "gradient_checkpointing": "none",
        "compile": False,
        "cpu": "1",
        "host_memory": "4Gi",
        "memory": Memory(weights=0, gradients=0, optimizer=0, activations=0, total=0),
    }
    return Plan(**(defaults | fields))


def make_config(plan: Plan | None = None, uid: str = "uid-1", **spec: Any) -> TrainerConfig:
    """Return job.json for SFT with LoRA; keyword arguments replace parts of the spec."""
    defaults: dict[str, Any] = {
        "method": "sft",
        "model": {"source": "pvc://models/tiny"},
        "dataset": {"source": "pvc://data/rows.jsonl"},
        "training": {"maxSteps": 6, "batchSize": 4, "learningRate": 0.01},
        "output": {"claim": "out"},
    }
    return TrainerConfig.model_validate(
        {
            "name": "tiny",
            "namespace": "test",
            "uid": uid,
            "attempt": 1,
            "spec": defaults | spec,
            "plan": plan.to_json() if plan else None,
        }
    )
