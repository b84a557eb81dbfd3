"""What a vLLM server needs."""

import pytest

from finetune_api.status import Experts, ModelFacts
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.vllm import (
    kv_bytes_per_gpu,
    server_for,
    server_of,
    tensor_parallel_sizes,
)


def facts(name: str) -> ModelFacts:
    named = facts_of_name(f"hf://{name}")
    assert named is not None
    return named[1]


LLAMA = facts("meta-llama/Llama-3.1-8B")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("meta-llama/Llama-3.1-8B", [1, 2, 4, 8]),
        # 28 heads.
        ("Qwen/Qwen2.5-7B", [1, 2, 4]),
        # 14 heads.
        ("Qwen/Qwen2.5-0.5B", [1, 2]),
        # 9 heads.
        ("HuggingFaceTB/SmolLM2-135M", [1]),
    ],
)
def test_a_model_is_split_where_its_heads_divide(name: str, sizes: list[int]) -> None:
    assert tensor_parallel_sizes(facts(name)) == sizes


def test_no_server_is_split_over_more_gpus_than_a_node_has() -> None:
    assert tensor_parallel_sizes(LLAMA, 4) == [1, 2, 4]
    assert tensor_parallel_sizes(LLAMA, 1) == [1]


def test_experts_are_split_where_their_width_divides() -> None:
    experts = Experts(count=8, per_token=2, size=1500, layers=LLAMA.layers)
    model = LLAMA.model_copy(update={"experts": experts})
    assert tensor_parallel_sizes(model) == [1, 2, 4]


def test_keys_and_values_shrink_until_each_gpu_has_one_head() -> None:
    model = facts("Qwen/Qwen2.5-7B")
    assert [kv_bytes_per_gpu(model, size) for size in (1, 2, 4, 8)] == [57344, 28672, 14336, 14336]
    assert kv_bytes_per_gpu(LLAMA, 1) == 131_072


def test_a_server_of_its_own_fills_nine_tenths_of_each_gpu() -> None:
    server = server_of(LLAMA, 80, 2)
    assert server.weights_gib == pytest.approx(14.96 / 2, abs=0.01)
    assert server.taken_gib == pytest.approx(0.9 * 80)
    assert server.kv_tokens == int(server.kv_gib * 2**30 / 65_536)


def test_what_does_not_fit_writes_nothing() -> None:
    server = server_of(LLAMA, 16, 1)
    assert server.kv_gib < 0
    assert server.sequences(1) == 0


def test_vllm_writes_no_more_at_once_than_its_limit() -> None:
    assert server_of(LLAMA, 80, 1).sequences(64) == 256
    assert server_of(LLAMA, 80, 1).sequences(4096) == 110


def test_a_server_for_some_tokens_takes_no_more_than_they_need() -> None:
    server = server_for(LLAMA, 1, 8192)
    assert (server.kv_gib, server.kv_tokens) == (1.0, 8192)
    assert server.taken_gib == pytest.approx(14.96 + 1 + 2, abs=0.01)
