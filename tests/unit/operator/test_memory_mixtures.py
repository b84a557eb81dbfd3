"""What is held of mixtures of experts, against what Transformers, PEFT and bitsandbytes build."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from finetune_api.spec import Method
from finetune_operator.planning.architecture import facts_of_config
from finetune_operator.planning.memory import Candidate
from finetune_operator.planning.memory.adapters import adapter_weights
from finetune_operator.planning.memory.states import states
from finetune_trainer.adapter import lora_config
from unit.operator.builders import make_spec

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 8,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 192,
    },
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 128},
}
EXPERTS = {
    "mixtral": ["q_proj", "w1", "w2", "w3"],
    "qwen2_moe": ["q_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3_moe": ["q_proj", "gate_proj", "up_proj", "down_proj"],
}
DENSE_TOO = {"mlp_only_layers": [1]}
VARIANTS = [
    *((family, {}) for family in MIXTURES),
    ("qwen2_moe", DENSE_TOO),
    ("qwen3_moe", DENSE_TOO),
]
CANDIDATE = Candidate(
    gpus=1,
    strategy="single",
    micro_batch_size=1,
    max_length=256,
    checkpointing="none",
    precision="bf16",
)


def shape(family: str, change: dict[str, Any]) -> Any:
    return CONFIG_MAPPING[family](**SHAPE | MIXTURES[family] | change)


def built(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_an_adapter_has_as_many_weights_as_peft_makes(
    family: str, change: dict[str, Any], named: bool
) -> None:
    lora: dict[str, Any] = {"rank": 8} | ({"targetModules": EXPERTS[family]} if named else {})
    spec = make_spec(adapter={"type": "lora", "lora": lora})
    config = shape(family, change)
    model = built(config)
    options = lora_config(spec.adapter, Method.SFT, model)
    assert options is not None
    made = get_peft_model(model, options)
    expected = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    assert adapter_weights(spec, facts_of_config(config.to_dict())) == expected


@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_spread_weights_count_two_of_the_largest_layers(
    family: str, change: dict[str, Any]
) -> None:
    config = shape(family, change)
    spec = make_spec(adapter={"type": "lora"})
    candidate = replace(CANDIDATE, gpus=4, strategy="fsdp")
    found = states(spec, facts_of_config(config.to_dict()), candidate)
    model = built(config)
    layers = model.get_decoder().layers
    largest = max(sum(weight.numel() for weight in layer.parameters()) for layer in layers)
    outside = 2 * config.vocab_size * config.hidden_size
    expected = 2 * (model.num_parameters() / 4 + 2 * largest + outside)
    # The last norm is no layer's.
    assert found.weights == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("family", "change"), VARIANTS)
def test_experts_are_not_quantised(
    family: str, change: dict[str, Any], bits: int, tmp_path: Path
) -> None:
    config = shape(family, change)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    wanted = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=wanted
    )
    spec = make_spec(adapter={"type": "qlora", "quantization": {"bits": bits}})
    found = states(spec, facts_of_config(config.to_dict()), CANDIDATE)
    expected = sum(weight.nbytes for weight in model.parameters())
    # Norms, which stay as they are, count as if quantised.
    assert found.weights == pytest.approx(expected, rel=5e-3)
