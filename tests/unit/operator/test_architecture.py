"""What a model is made of, held against what Transformers builds and hubs publish."""

import json
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from finetune_api.experts import experts_of_config
from finetune_api.status import Experts
from finetune_operator.planning.architecture import (
    FAMILIES,
    ArchitectureError,
    facts_of_config,
    facts_of_name,
    facts_of_size,
    parse_size,
)

SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "pad_token_id": 0,
}
EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(model_type, EXPERTS.get(model_type, {})) for model_type in sorted(FAMILIES)],
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 32}),
    ("gemma2", {"tie_word_embeddings": False}),
    ("qwen2_moe", EXPERTS["qwen2_moe"] | {"decoder_sparse_step": 2, "mlp_only_layers": [1]}),
    ("qwen3_moe", EXPERTS["qwen3_moe"] | {"mlp_only_layers": [0]}),
    ("smollm3", {"mlp_bias": True}),
]


@pytest.mark.parametrize(("model_type", "change"), VARIANTS)
def test_weights_are_counted_as_transformers_builds_them(
    model_type: str, change: dict[str, Any]
) -> None:
    given = SMALL | change
    config = CONFIG_MAPPING[model_type](**given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    facts = facts_of_config({"model_type": model_type} | given)
    assert facts.parameters == sum(weights.numel() for weights in model.parameters())
    assert facts.architecture == type(model).__name__
    assert facts.tied_embeddings == config.tie_word_embeddings
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (facts.head_dim, facts.kv_heads) == (head_dim, config.num_key_value_heads)
    assert facts.experts == built_experts(model)
    # As the trainer reads them, from all that Transformers knows.
    assert facts.experts == experts_of_config(config.to_dict())


def test_nothing_is_said_of_experts_whose_layers_are_not_known() -> None:
    config = {
        "model_type": "llama4_text",
        "num_hidden_layers": 48,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "intermediate_size": 8192,
    }
    known = experts_of_config(config | {"interleave_moe_layer_step": 1})
    assert known is not None
    assert known.layers == 48
    assert experts_of_config(config | {"interleave_moe_layer_step": 2}) is None


def built_experts(model: Any) -> Experts | None:
    blocks = [layer.mlp for layer in model.get_decoder().layers if hasattr(layer.mlp, "experts")]
    if not blocks:
        return None
    count, _, size = blocks[0].experts.down_proj.shape
    shared = getattr(blocks[0], "shared_expert", None)
    return Experts(
        count=count,
        per_token=blocks[0].gate.top_k,
        # Transformers has the inputs of a layer last.
        size=size,
        shared_size=shared.up_proj.out_features if shared else 0,
        layers=len(blocks),
    )


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        # As their hubs publish them.
        ("hf://HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("hf://HuggingFaceTB/SmolLM3-3B", 3_075_098_624),
        ("hf://meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("hf://meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("hf://unsloth/Meta-Llama-3.1-8B-Instruct@main", 8_030_261_248),
        ("hf://meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
        ("hf://meta-llama/Llama-2-13b-chat-hf", 13_015_864_320),
        ("hf://mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("hf://mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("hf://Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("hf://Qwen/Qwen2.5-72B", 72_706_203_648),
        ("hf://Qwen/Qwen3-8B", 8_190_735_360),
        ("hf://Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("hf://Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("hf://Qwen/Qwen1.5-MoE-A2.7B-Chat", 14_315_784_192),
        ("hf://google/gemma-2-9b-it", 9_241_705_984),
        ("hf://google/gemma-3-1b-it", 999_885_952),
        ("hf://microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("hf://microsoft/phi-4", 14_659_507_200),
        ("pvc://models/smollm2-135m-instruct", 134_515_008),
    ],
)
def test_the_catalogue_knows_popular_models_by_any_of_their_names(
    source: str, parameters: int
) -> None:
    found = facts_of_name(source)
    assert found is not None
    assert found[1].parameters == parameters


@pytest.mark.parametrize("source", ["hf://acme/own-model", "job://llama-3.1-8b", "s3://bucket/x"])
def test_other_models_are_not_in_the_catalogue(source: str) -> None:
    assert facts_of_name(source) is None


@pytest.mark.parametrize("size", ["135M", "1B", "3b", "7B", "8.03B", "20B", "32B", "72B", "100B"])
def test_a_size_alone_gives_a_shape_of_about_that_size(size: str) -> None:
    _, facts = facts_of_size(size)
    assert facts.parameters == parse_size(size)
    built = facts_of_config(
        {
            "model_type": facts.model_type,
            "hidden_size": facts.hidden_size,
            "intermediate_size": facts.intermediate_size,
            "num_hidden_layers": facts.layers,
            "num_attention_heads": facts.heads,
            "num_key_value_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
            "vocab_size": facts.vocabulary,
            "tie_word_embeddings": facts.tied_embeddings,
        }
    )
    assert built.parameters == pytest.approx(facts.parameters, rel=0.05)


@pytest.mark.parametrize("size", ["8", "B", "8Gi", "-8B", "0B"])
def test_what_is_no_size_is_said(size: str) -> None:
    with pytest.raises(ArchitectureError, match="expected 8B or 135M"):
        facts_of_size(size)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has model_type None"),
        ({"model_type": "bert"}, "has model_type bert, whose weights"),
        ({"model_type": "llama"}, "has no number hidden_size"),
        ({"model_type": "mixtral"} | SMALL, "has no number num_experts"),
    ],
)
def test_a_config_that_cannot_be_counted_says_what_to_give(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArchitectureError, match=words) as error:
        facts_of_config(json.loads(json.dumps(config)))
    assert "--parameters" in str(error.value)
