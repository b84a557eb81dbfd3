"""Termination messages of containers that did what they should, or not."""

from typing import Any

from finetune_api.failures import Reason
from finetune_api.status import Artifact, DatasetFacts, ModelFacts, Preparation
from finetune_api.trainer import Result

PREPARED = Result.succeeded(
    preparation=Preparation(
        model=ModelFacts(
            architecture="Qwen3ForCausalLM", model_type="qwen3", parameters=596_049_920,
            hidden_size=1024, intermediate_size=3072, layers=28, heads=16, kv_heads=8,
            head_dim=128, vocabulary=151_936, max_positions=40_960, tied_embeddings=True,
            weights_bytes=1_192_099_840, dtype="bfloat16",
        ),
        dataset=DatasetFacts(
            format="chat", rows=1000, eval_rows=100, tokens=200_000, max_tokens=900,
            mean_tokens=200.0, p95_tokens=600,
        ),
    )
).to_message()  # fmt: skip


def trained(job: str = "job") -> str:
    """Return the message of a trainer that has made an adapter."""
    return Result.succeeded(
        step=63,
        metrics={"train_loss": 1.5, "eval_loss": 1.25, "eval_loss_before": 3.5, "epoch": 1.0},
        measured={"tokens_per_second": 1234.5, "gpu_memory_gib": 20.0},
        artifact=Artifact(uri=f"pvc://models/{job}", kind="adapter", size_bytes=1000),
    ).to_message()


TRAINED = trained()


def failed(reason: Reason, message: str = "It broke.", **fields: Any) -> str:
    """Return the message of a failure."""
    return Result.failed(reason, message, **fields).to_message()
