"""Loss curves of the trainer's fast path beside bare TRL's, on a real small model and real data.

The same seed, rows, batches and learning rate; layers compiled and adapters' inputs not cast in
ours. What bf16 itself changes is seen in bare TRL with Liger's kernels beside bare TRL without:
the same sums in another order. Run it on a GPU machine, with what `tests/demo/prepare_demo.py`
makes:

    PYTHONPATH=tests python -m bench.curves ~/.cache/finetune-operator/demo --output curves.json
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.gpu_cases import command, quantised
from bench.gpu_models import read_rows
from demo.prepare_demo import DATA, MODEL
from finetune_api import names
from finetune_operator.planning import Inventory, make_plan
from finetune_trainer.data.dataset import EVAL, TRAIN, load_rows
from unit.trainer.builders import make_config

BATCH, RANK, WINDOW = 8, 16, 20
RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}


@dataclass(frozen=True)
class Run:
    """One training run."""

    adapter: str
    kind: str
    """ours, or float8 of ours; bare, or liger, autocast (weights in float32) or float32 of bare."""


RUNS = [
    Run("lora", "ours"),
    Run("lora", "bare"),
    Run("lora", "liger"),
    Run("lora", "float8"),
    Run("full", "ours"),
    Run("full", "bare"),
    Run("full", "liger"),
    Run("full", "autocast"),
    Run("full", "float32"),
    Run("qlora", "ours"),
    Run("qlora", "bare"),
]


@dataclass(frozen=True)
class Curve:
    """What a run logged."""

    losses: list[float]
    """One for each step."""
    held_out: float
    """After the last."""

    def distance(self, other: "Curve") -> float:
        """Return how far the means over 20 steps are apart at most."""
        pairs = zip(_means(self.losses), _means(other.losses), strict=True)
        return max(abs(a - b) for a, b in pairs)


def _means(losses: list[float]) -> list[float]:
    last = len(losses) - WINDOW + 1
    return [sum(losses[start : start + WINDOW]) / WINDOW for start in range(max(1, last))]


def ours(run: Run, folder: Path, steps: int) -> Curve:
    """Train by prepare and run, with the plan that the operator would make."""
    root = folder / f"{run.adapter}-{run.kind}"
    for name in ("workspace", "output"):
        (root / name).mkdir(parents=True)
    cuda = torch.cuda.is_available()
    config = make_config(
        model={"source": f"pvc://models/{MODEL}"},
        dataset={"source": f"pvc://data/{DATA}", "evalFraction": 0.1},
        adapter={"type": run.adapter} | ({} if run.adapter == "full" else {"lora": _LORA}),
        training={
            "maxSteps": steps,
            "batchSize": BATCH,
            "microBatchSize": BATCH,
            "learningRate": RATES[run.adapter],
            "scheduler": "constant",
            "warmupRatio": 0,
            "gradientCheckpointing": "none",
            "compile": "always" if cuda else "never",
            "precision": "float8" if run.kind == "float8" else "bf16",
        },
    )
    facts = command("prepare", config.to_json(), folder, root).preparation
    if facts is None:
        raise ValueError("prepare returned no facts")
    plan = make_plan(config.spec, facts, Inventory())
    body = config.to_json() | {"plan": plan.to_json(), "preparation": facts.to_json()}
    command("run", body, folder, root)
    logged = read_rows(root / "workspace/metrics.jsonl")
    held_out = [entry["eval_loss"] for entry in logged if "eval_loss" in entry]
    return Curve([entry["loss"] for entry in logged if "loss" in entry], held_out[-1])


_IGNORED = -100
_LORA = {"rank": RANK, "alpha": 2 * RANK}


def bare(run: Run, folder: Path, steps: int) -> Curve:
    """Train with TRL alone, on the rows that ours was trained on."""
    source = folder / "sources/pvc/models" / MODEL
    data = folder / f"{run.adapter}-ours/workspace/data"
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"
    )
    cuda = torch.cuda.is_available()
    torch.manual_seed(42)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32 if run.kind in {"autocast", "float32"} else torch.bfloat16,
            **quantised(run.adapter),
        ),
        args=SFTConfig(
            output_dir=str(folder / "bare"),
            max_steps=steps,
            learning_rate=RATES[run.adapter],
            lr_scheduler_type="constant",
            per_device_train_batch_size=BATCH,
            gradient_checkpointing=False,
            bf16=run.kind != "float32",
            use_cpu=not cuda,
            use_liger_kernel=run.kind == "liger" and cuda,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=load_rows(data, TRAIN),
        eval_dataset=load_rows(data, EVAL),
        processing_class=AutoTokenizer.from_pretrained(source),
        peft_config=None if run.adapter == "full" else adapter,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Curve(losses, _held_out(trainer))


def _held_out(trainer: SFTTrainer) -> float:
    """Return the mean loss of a held-out token, as ours logs it."""
    total, tokens = 0.0, 0
    model: Any = trainer.model
    model.eval()
    for batch in trainer.get_eval_dataloader():
        count = int((batch["labels"][:, 1:] != _IGNORED).sum())
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)  # type: ignore[no-untyped-call]
            total += float(loss) * count
        tokens += count
    return total / tokens


def main() -> int:
    """Run all and print how far they are apart."""
    parser = argparse.ArgumentParser(prog="bench.curves", description=__doc__)
    parser.add_argument("folder", type=Path, help="with the demo's model and data")
    parser.add_argument("--adapter", choices=RATES, help="only runs with this one")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3600, help="start no run after that")
    parser.add_argument("--output", type=Path, required=True, help="write all losses there")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not torch.cuda.is_available():
        os.environ[names.DEVICE_ENV] = "cpu"
    curves: dict[str, Curve] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, target in (("models", MODEL), ("data", DATA)):
            (folder / "sources/pvc" / kind).mkdir(parents=True)
            (folder / "sources/pvc" / kind / target).symlink_to((options.folder / target).resolve())
        for run in RUNS:
            if options.adapter not in {None, run.adapter}:
                continue
            if time.monotonic() - started > options.seconds:
                break
            torch.compiler.reset()
            train: Callable[..., Curve] = ours if run.kind in {"ours", "float8"} else bare
            curve = train(run, folder, options.steps)
            curves[f"{run.adapter} {run.kind}"] = curve
            print(f"{run}: held out {curve.held_out:.4f}", flush=True)
            options.output.write_text(json.dumps({key: vars(each) for key, each in curves.items()}))
    print("\n".join(starmap(_row, _pairs(curves))))
    return 0


def _pairs(curves: dict[str, Curve]) -> list[tuple[str, Curve, Curve]]:
    found = []
    for name, curve in curves.items():
        reference = curves.get(f"{name.split()[0]} bare")
        if reference is not None and not name.endswith("bare"):
            found.append((name, curve, reference))
    return found


def _row(name: str, curve: Curve, reference: Curve) -> str:
    cells = [name, f"{curve.distance(reference):.4f}", f"{curve.held_out:.4f}"]
    return f"| {' | '.join([*cells, f'{reference.held_out:.4f}'])} |"


if __name__ == "__main__":
    sys.exit(main())
