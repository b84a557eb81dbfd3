"""Beside bare TRL with the same seed, rows and settings, training comes to the same losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.data.dataset import TRAIN, load_rows
from unit.trainer.builders import make_plan
from unit.trainer.conftest import Site
from unit.trainer.faults import run_here

STEPS, RATE, LIMIT = 20, 0.01, 0.1


# Clipping divides where PyTorch multiplies. TRL keeps what it trains on a quantised base in bf16,
# where the last digit of a gradient decides which way a weight is rounded.
@pytest.mark.parametrize(("adapter", "near"), [("lora", 1e-4), ("qlora", 0.03), ("full", 1e-4)])
def test_losses_are_those_of_trl(site: Site, adapter: str, near: float) -> None:
    lora = {} if adapter == "full" else {"lora": {"rank": 4, "alpha": 8, "dropout": 0}}
    config = site.job(
        make_plan(micro_batch_size=2, gradient_accumulation_steps=2),
        adapter={"type": adapter} | lora,
        training={
            "maxSteps": STEPS,
            "batchSize": 4,
            "learningRate": RATE,
            "scheduler": "constant",
            "warmupRatio": 0,
            "weightDecay": 0,
            "maxGradNorm": LIMIT,
        },
    )
    assert run_here(site, config) == 0, site.result().message
    losses = [entry["loss"] for entry in site.metrics() if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    assert losses == pytest.approx(bare_losses(site, adapter), abs=near)


def bare_losses(site: Site, adapter: str) -> list[float]:
    """Train with TRL alone."""
    torch.manual_seed(42)
    arguments: dict[str, Any] = {
        "output_dir": str(site.root / "bare"),
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": LIMIT,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    trainer = SFTTrainer(
        model=load(site.model, adapter),
        args=SFTConfig(**arguments),
        train_dataset=load_rows(site.paths.workspace / "data", TRAIN),
        processing_class=AutoTokenizer.from_pretrained(site.model),
        peft_config=None
        if adapter == "full"
        else LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0, target_modules="all-linear"
        ),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def load(folder: Path, adapter: str) -> Any:
    """Return the model, for qlora in 4 bits."""
    options: dict[str, Any] = {"dtype": torch.float32}
    if adapter == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return AutoModelForCausalLM.from_pretrained(folder, **options)
