"""One case of the GPU benchmark, by our trainer and by bare TRL."""
# ruff: noqa: ARG002 - the signatures are those of TrainerCallback

import gc
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench import gpu_models
from finetune_api.metrics import SECONDS
from finetune_api.status import Plan
from finetune_api.trainer import Result, TrainerConfig
from finetune_operator.planning import Inventory, make_plan
from finetune_trainer import cli
from unit.trainer.builders import make_config

GROUP = 4
_ALPHA, _RATE = 32, 1e-5
_LONG_TAILED = 4096
_MANY = 20
"""Times as many packed rows as a case trains on."""


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    model: str
    """Of bench.gpu_models.SHAPES."""
    method: str
    adapter: str
    length: int
    """Tokens of a row, of each side of a pair, or of a prompt."""
    micro_batch: int
    steps: int = 10
    accumulation: int = 1
    rank: int = 16
    precision: str = "auto"
    compile: str = "always"
    checkpointing: str = "none"
    completion: int = 32
    """Most tokens of a completion that grpo writes."""
    packed: bool = False
    """Long-tailed documents, packed in rows of that length."""
    bare: dict[str, Any] | None = field(default_factory=lambda: {"use_liger_kernel": True})
    """What bare TRL is given beside the settings of our plan; None: it does not run."""

    @property
    def name(self) -> str:
        """Name for people."""
        parts = [self.model, self.method, self.adapter, f"{self.length}x{self.micro_batch}"]
        parts += [self.precision] if self.precision != "auto" else []
        parts += ["packed"] if self.packed else []
        parts += [f"rank-{self.rank}"] if self.rank != 16 else []
        parts += [f"accumulation-{self.accumulation}"] if self.accumulation > 1 else []
        parts += {"always": [], "never": ["eager"]}.get(self.compile, ["compile-auto"])
        parts += [f"checkpointing-{self.checkpointing}"] if self.checkpointing != "none" else []
        return "-".join(parts)

    @property
    def batch(self) -> int:
        """Sequences of an optimizer step."""
        return self.micro_batch * self.accumulation

    @property
    def data(self) -> str:
        """The file of its rows."""
        kind = "packed" if self.packed else "rows"
        return f"{self.method}-{kind}-{self.length}-{self.batch}.jsonl"

    @property
    def tokens(self) -> int:
        """Tokens of a step, where rows are of one length."""
        sides = 2 if self.method in {"dpo", "orpo", "reward"} else 1
        written = self.completion if self.method == "grpo" else 0
        return sides * self.batch * (self.length + written)


def measured(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call with an empty GPU, and leave it so."""
    # Transformers says much of what all cases have in common.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - a case that fails is a row of the table
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_ours(case: Case, folder: Path, *options: str) -> dict[str, Any]:
    """Prepare, plan and run as the operator would, and return what was measured."""
    root = folder / "ours" / case.name
    shutil.rmtree(root, ignore_errors=True)
    (root / "workspace").mkdir(parents=True)
    (root / "output").mkdir()
    model = gpu_models.save(case.model, folder / "sources/pvc/models")
    (root / "workspace/model").symlink_to(model)
    write_data(case, folder)
    planned = prepare(make_config(**_spec(case)), folder, root)
    plan = Plan.model_validate(planned["plan"])
    clock = _clock()
    result = command("run", planned, folder, root, *options)
    logged = gpu_models.read_rows(root / "workspace/metrics.jsonl")
    steps = [entry for entry in logged if "loss" in entry]
    losses = [entry["loss"] for entry in steps]
    shutil.rmtree(root / "output")
    return {
        **clock.measured(case),
        "planned": plan.memory.total,
        "memory": plan.memory.to_json(),
        "preparation": planned["preparation"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "verdict": result.stability.verdict if result.stability else "",
        "losses": losses,
        "parts": {name: value for name, value in steps[-1].items() if name.startswith(SECONDS)},
        "profile": _read(root / "workspace/profile/operators.txt"),
    }


def write_data(case: Case, folder: Path) -> None:
    """Write what the case trains on, once."""
    path = folder / "sources/pvc/data" / case.data
    if path.exists():
        return
    rows = case.steps * case.batch + case.batch
    lengths = [case.length] * rows
    if case.packed:
        # Many more than are trained on: only the last row of all is not full.
        tokens = _MANY * rows * case.length
        lengths = gpu_models.long_tailed(tokens, min(case.length, _LONG_TAILED))
    gpu_models.write_data(case.method, lengths, path)


def _spec(case: Case) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    spec: dict[str, Any] = {
        "method": case.method,
        "model": {"source": f"pvc://models/{case.model}"},
        "dataset": {"source": f"pvc://data/{case.data}"},
        "adapter": {"type": case.adapter},
        "training": {
            "maxSteps": case.steps,
            "batchSize": case.batch,
            "microBatchSize": case.micro_batch,
            "learningRate": _RATE,
            "maxLength": case.length + (case.completion if case.method == "grpo" else 0),
            "packing": case.packed,
            "gradientCheckpointing": case.checkpointing,
            "precision": case.precision,
            "compile": case.compile if cuda else "never",
            "checkpoint": {"everySteps": 1000},
        },
    }
    if case.adapter != "full":
        spec["adapter"]["lora"] = {"rank": case.rank, "alpha": _ALPHA}
    if case.method == "grpo":
        spec["rewards"] = [{"name": "length", "builtin": "length"}]
        spec["generation"] = {"groupSize": GROUP, "maxCompletionLength": case.completion}
    return spec


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def prepare(config: TrainerConfig, folder: Path, root: Path) -> dict[str, Any]:
    """Prepare and plan as the operator would; returns what `run` is given."""
    facts = command("prepare", config.to_json(), folder, root).preparation
    if facts is None:
        raise ValueError("prepare returned no facts")
    plan = make_plan(config.spec, facts, Inventory())
    return config.to_json() | {"plan": plan.to_json(), "preparation": facts.to_json()}


def command(name: str, body: dict[str, Any], folder: Path, root: Path, *options: str) -> Result:
    """Run one of the trainer's commands in this process. Raises RuntimeError when it fails."""
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
            *options,
        ]
    )
    result = Result.model_validate_json(end.read_text())
    if code:
        raise RuntimeError(f"{name} ended with {code}: {result.message}")
    return result


def run_bare(case: Case, folder: Path) -> dict[str, Any]:
    """Train with TRL alone: the settings of our plan, and those of the case."""
    source = gpu_models.save(case.model, folder / "sources/pvc/models")
    plan = Plan.model_validate_json(json.dumps(_plan_of(folder / "ours" / case.name)))
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, **quantised(case.adapter)
    )
    adapter = LoraConfig(r=case.rank, lora_alpha=_ALPHA, target_modules="all-linear")
    common: dict[str, Any] = {
        "model": model,
        "processing_class": AutoTokenizer.from_pretrained(source),
        "train_dataset": _bare_rows(case, folder),
        "peft_config": None if case.adapter == "full" else adapter,
    }
    clock = _clock()
    arguments = _arguments(case, plan, folder / "bare" / case.name)
    _bare_trainer(case, common, arguments).train()
    return clock.measured(case)


def _plan_of(root: Path) -> Any:
    return json.loads((root / "job.json").read_text())["plan"]


def quantised(adapter: str) -> dict[str, Any]:
    """Return how bare TRL's model is loaded: as ours for qlora."""
    if adapter != "qlora":
        return {}
    wanted = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": wanted}


def _arguments(case: Case, plan: Plan, output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "max_steps": case.steps,
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
        **(case.bare or {}),
    }


def _bare_rows(case: Case, folder: Path) -> Dataset:
    rows = Dataset.from_list(gpu_models.read_rows(folder / "sources/pvc/data" / case.data))
    return rows.map(lambda row: {"labels": row["input_ids"]}) if case.method == "sft" else rows


def _bare_trainer(case: Case, common: dict[str, Any], arguments: dict[str, Any]) -> Any:
    if case.method == "sft":
        skip = {"skip_prepare_dataset": True}
        config = SFTConfig(**arguments, max_length=case.length, dataset_kwargs=skip)
        return SFTTrainer(args=config, **common)
    if case.method == "dpo":
        return DPOTrainer(args=DPOConfig(**arguments, max_length=case.length), **common)
    online = GRPOConfig(**arguments, num_generations=GROUP, max_completion_length=case.completion)
    return GRPOTrainer(args=online, reward_funcs=_length, **common)


def _length(completions: list[str], **_: Any) -> list[float | None]:
    return [float(len(text)) for text in completions]


class _Clock(TrainerCallback):
    """Notes when each step ended, of whatever Trainer this process makes."""

    ends: list[tuple[float, int]]
    """Seconds, and tokens seen so far."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Training begins with step 0."""
        self.ends.append((time.monotonic(), 0))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step's time ends with what is logged of it."""
        if "loss" in (kwargs["logs"] or {}):
            self.ends.append((time.monotonic(), state.num_input_tokens_seen))

    def measured(self, case: Case) -> dict[str, Any]:
        """Return the median seconds of a step from the third on, tokens/s, and peak memory.

        Packed rows differ in tokens: there tokens/s are those of all these steps.
        """
        steps = [b[0] - a[0] for a, b in zip(self.ends, self.ends[1:], strict=False)]
        seen = [b[1] - a[1] for a, b in zip(self.ends, self.ends[1:], strict=False)]
        # The first compile, or warm caches up.
        warm = steps[2:]
        seconds = median(warm)
        rate = sum(seen[2:]) / sum(warm) if case.packed else case.tokens / seconds
        found = {"seconds": seconds, "tokens_per_second": rate, "steps": steps, "seen": seen}
        if torch.cuda.is_available():
            found["reserved"] = torch.cuda.max_memory_reserved() / 2**30
            found["allocated"] = torch.cuda.max_memory_allocated() / 2**30
        return found


def _clock() -> _Clock:
    os.environ["HF_HUB_OFFLINE"] = "1"
    _Clock.ends = []
    # Every Trainer of this process gets it, ours and TRL's alike.
    callbacks: list[Any] = transformers.trainer.DEFAULT_CALLBACKS
    if _Clock not in callbacks:
        callbacks.append(_Clock)
    return _Clock()
