"""What loading a model takes of the node's memory, as the plan counts it."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model import load_whole

SPEC = {
    "method": "sft",
    "model": {"source": "hf://acme/model"},
    "dataset": {"source": "hf://acme/rows"},
    "output": {"claim": "models"},
}


def own_mebibytes() -> float:
    """Return what this process has for itself; pages of mapped files are shared by processes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


@pytest.mark.parametrize(("dtype", "copies"), [(torch.bfloat16, False), (torch.float32, True)])
def test_weights_are_shared_by_processes_that_load_them_as_they_are_stored(
    tmp_path: Path, dtype: torch.dtype, copies: bool
) -> None:
    config = LlamaConfig(
        vocab_size=65536,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    stored: Any = LlamaForCausalLM(config)
    stored.to(torch.bfloat16).save_pretrained(tmp_path)
    del stored
    mebibytes = (tmp_path / "model.safetensors").stat().st_size / 2**20
    gc.collect()
    before = own_mebibytes()
    model = load_whole(tmp_path, FineTuneJobSpec.model_validate(SPEC), dtype)
    # Reads all of them.
    assert sum(float(weight.detach().float().abs().max()) for weight in model.parameters()) > 0
    more = own_mebibytes() - before
    assert more > mebibytes if copies else more < mebibytes / 2
