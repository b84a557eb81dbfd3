"""One case of the GPU benchmark, by our trainer and by bare TRL."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    TrainerCallback,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.status import Plan
from finetune_api.trainer import Result
from finetune_operator.planning import Inventory, make_plan
from finetune_trainer import cli
from unit.trainer.builders import make_config, save_tokenizer, write_rows

STEPS, BATCH, GROUP = 8, 4, 4
_RANK, _ALPHA, _RATE = 16, 32, 1e-5


@dataclass(frozen=True)
class Shape:
    """A Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int
    """Tokens of each row."""


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    method: str
    adapter: str

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.method}-{self.adapter}"


CASES = [
    Case(method, adapter)
    for adapter in ("lora", "full", "qlora")
    for method in ("sft", "dpo", "grpo")
]


def save_shape(shape: Shape, folder: Path) -> None:
    """Save a random model in bf16, a tokenizer with a token per byte, and rows of one length."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = folder / "sources/pvc/models/tiny"
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(model)
    save_tokenizer(model)
    for method in ("sft", "dpo", "grpo"):
        write_rows(folder / f"sources/pvc/data/{method}.jsonl", _rows(method, shape))


def _rows(method: str, shape: Shape) -> list[dict[str, Any]]:
    count = STEPS * BATCH + BATCH
    if method == "sft":
        draw = torch.Generator().manual_seed(1)
        ids = torch.randint(4, 260, (count, shape.length), generator=draw).tolist()
        return [{"input_ids": row} for row in ids]
    quarter = shape.length // 4
    prompts = [f"{index:04} " + "p" * (quarter - 5) for index in range(count)]
    if method == "grpo":
        return [{"prompt": prompt} for prompt in prompts]
    half = quarter - 1
    return [{"prompt": p, "chosen": "c" * half, "rejected": "r" * half} for p in prompts]


def run_ours(case: Case, shape: Shape, folder: Path) -> dict[str, Any]:
    """Prepare, plan and run as the operator would, and return what was measured."""
    clock = _clock()
    spec = _spec(case, shape)
    root = folder / case.name
    (root / "workspace").mkdir(parents=True)
    (root / "output").mkdir()
    config = make_config(**spec)
    preparation = _command("prepare", config.to_json(), folder, root).preparation
    if preparation is None:
        raise ValueError("prepare returned no facts")
    plan = make_plan(config.spec, preparation, Inventory())
    body = config.to_json() | {"plan": plan.to_json(), "preparation": preparation.to_json()}
    result = _command("run", body, folder, root)
    losses = [
        row["loss"]
        for row in map(json.loads, (root / "workspace/metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    return {
        **clock.measured(),
        "planned": plan.memory.total,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "verdict": result.stability.verdict if result.stability else "",
        "losses": losses,
    }


def _spec(case: Case, shape: Shape) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "method": case.method,
        "dataset": {"source": f"pvc://data/{case.method}.jsonl"},
        "adapter": {"type": case.adapter},
        "training": {
            "maxSteps": STEPS,
            "batchSize": BATCH,
            "microBatchSize": BATCH,
            "learningRate": _RATE,
            "maxLength": shape.length,
            "gradientCheckpointing": "none",
            "compile": "never",
            "checkpoint": {"everySteps": 1000},
        },
    }
    if case.method == "grpo":
        spec["rewards"] = [{"name": "length", "builtin": "length"}]
        spec["generation"] = {"groupSize": GROUP, "maxCompletionLength": shape.length // 64}
    return spec


def _command(name: str, body: dict[str, Any], folder: Path, root: Path) -> Result:
    job, end = root / "job.json", root / "end.json"
    job.write_text(json.dumps(body))
    code = cli.main(
        [
            name,
            f"--config={job}",
            f"--workspace={root / 'workspace'}",
            f"--output={root / 'output'}",
            f"--sources={folder / 'sources'}",
            f"--termination-log={end}",
            "--port=0",
        ]
    )
    result = Result.model_validate_json(end.read_text())
    if code:
        raise RuntimeError(f"{name} ended with {code}: {result.message}")
    return result


def run_bare(case: Case, shape: Shape, folder: Path) -> dict[str, Any]:
    """Train with TRL alone, with the settings of our plan."""
    clock = _clock()
    source = folder / "sources/pvc/models/tiny"
    plan = Plan.model_validate_json(json.dumps(_plan_of(folder / case.name)))
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, **_quantised(case.adapter)
    )
    adapter = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules="all-linear")
    common: dict[str, Any] = {
        "model": model,
        "processing_class": AutoTokenizer.from_pretrained(source),
        "train_dataset": _bare_rows(case, folder),
        "peft_config": None if case.adapter == "full" else adapter,
    }
    trainer = _bare_trainer(case, shape, common, _arguments(plan, folder / "bare" / case.name))
    trainer.train()
    return clock.measured()


def _plan_of(root: Path) -> Any:
    return json.loads((root / "job.json").read_text())["plan"]


def _quantised(adapter: str) -> dict[str, Any]:
    if adapter != "qlora":
        return {}
    wanted = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": wanted}


def _arguments(plan: Plan, output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "max_steps": STEPS,
        "learning_rate": _RATE,
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_checkpointing": plan.gradient_checkpointing != "none",
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _bare_rows(case: Case, folder: Path) -> Dataset:
    lines = (folder / f"sources/pvc/data/{case.method}.jsonl").read_text().splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines])
    return rows.map(lambda row: {"labels": row["input_ids"]}) if case.method == "sft" else rows


def _bare_trainer(
    case: Case, shape: Shape, common: dict[str, Any], arguments: dict[str, Any]
) -> Any:
    if case.method == "sft":
        skip = {"skip_prepare_dataset": True}
        config = SFTConfig(**arguments, max_length=shape.length, dataset_kwargs=skip)
        return SFTTrainer(args=config, **common)
    if case.method == "dpo":
        return DPOTrainer(args=DPOConfig(**arguments, max_length=shape.length), **common)
    online = GRPOConfig(
        **arguments, num_generations=GROUP, max_completion_length=shape.length // 64
    )
    return GRPOTrainer(args=online, reward_funcs=_length, **common)


def _length(completions: list[str], **_: Any) -> list[float | None]:
    return [float(len(text)) for text in completions]


class _Clock(TrainerCallback):
    """Notes when each step ended, of whatever Trainer this process makes."""

    ends: list[float]

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        """A step's time ends with what is logged of it."""
        if logs and "loss" in logs:
            self.ends.append(time.monotonic())

    def measured(self) -> dict[str, Any]:
        """Return the median seconds of a step, the first two aside, and the peak of memory."""
        steps = sorted(b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False))
        reserved = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else None
        return {"seconds": steps[len(steps) // 2], "reserved": reserved, "steps": steps}


def _clock() -> _Clock:
    os.environ["HF_HUB_OFFLINE"] = "1"
    _Clock.ends = []
    # Every Trainer of this process gets it, ours and TRL's alike.
    callbacks: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
    if _Clock not in callbacks:
        callbacks.append(_Clock)
    return _Clock()
