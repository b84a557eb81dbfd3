"""What a vLLM server needs."""

import pytest

from finetune_api.status import ModelFacts
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.vllm import (
    kv_bytes_per_gpu,
    smallest_server,
    tensor_parallel_sizes,
)


def facts(name: str) -> ModelFacts:
    named = facts_of_name(f"hf://{name}")
    assert named is not None
    return named[1]


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


def test_keys_and_values_shrink_until_each_gpu_has_one_head() -> None:
    model = facts("Qwen/Qwen2.5-7B")
    assert [kv_bytes_per_gpu(model, size) for size in (1, 2, 4, 8)] == [57344, 28672, 14336, 14336]
    assert kv_bytes_per_gpu(facts("meta-llama/Llama-3.1-8B"), 1) == 131_072


def test_the_smallest_server_holds_what_is_written_at_once() -> None:
    model = facts("meta-llama/Llama-3.1-8B")
    server = smallest_server(model, 80, 64 * 1024)
    assert server is not None
    assert (server.tensor_parallel_size, server.weights_gib) == (1, 14.96)
    assert server.kv_tokens >= 64 * 1024
    larger = smallest_server(model, 24, 64 * 1024)
    assert larger is not None
    assert larger.tensor_parallel_size == 2


def test_a_model_that_no_node_serves_has_no_server() -> None:
    assert smallest_server(facts("meta-llama/Llama-3.1-70B"), 16, 1024) is None
