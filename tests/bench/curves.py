"""Loss curves of the trainer's fast path beside bare TRL's, on a real small model and real data.

The same seed, rows, batches and learning rate; layers compiled and adapters' inputs not cast in
ours. What bf16 itself changes is seen in bare TRL with Liger's kernels beside bare TRL without:
the same sums in another order. Run it on a GPU machine, with what `tests/demo/prepare_demo.py`
makes:

    PYTHONPATH=tests python -m bench.curves ~/.cache/finetune-operator/demo --output curves.json

Each run has a process of its own: Liger replaces functions of Transformers. With `--kind` a run is
made alone, on a CPU, say, and held against those in the file.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.gpu_cases import command, prepare, quantised
from bench.gpu_models import read_rows
from demo.prepare_demo import DATA, MODEL
from finetune_api import names
from finetune_api.trainer import TrainerConfig
from finetune_trainer.data.dataset import EVAL, TRAIN, load_rows
from unit.trainer.builders import make_config

BATCH, RANK, WINDOW = 8, 16, 20
RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
REFERENCES = {"lora": "bare", "qlora": "float32", "full": "float32"}
"""What the others are held against. Bare TRL loses much of what weights in bf16 would learn: those
of full, and the adapter of qlora."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    adapter: str
    kind: str
    """ours, or float8 of ours; bare, or liger, autocast (weights in float32) or float32 of bare."""

    @property
    def name(self) -> str:
        """Name for people, and of its folder."""
        return f"{self.adapter} {self.kind}"


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
    Run("qlora", "float32"),
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


def _alone(run: Run, folder: Path, steps: int) -> Curve:
    """Train in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(train, run, folder, steps).result()


def train(run: Run, folder: Path, steps: int) -> Curve:
    """Train in this process."""
    kind = ours if run.kind in {"ours", "float8"} else bare
    return kind(run, folder, steps)


def ours(run: Run, folder: Path, steps: int) -> Curve:
    """Train by prepare and run, with the plan that the operator would make."""
    root = _root(folder, run)
    command("run", prepare(_config(run, steps), folder, root), folder, root)
    logged = read_rows(root / "workspace/metrics.jsonl")
    held_out = [entry["eval_loss"] for entry in logged if "eval_loss" in entry]
    return Curve([entry["loss"] for entry in logged if "loss" in entry], held_out[-1])


def _root(folder: Path, run: Run) -> Path:
    root = folder / run.name.replace(" ", "-")
    for name in ("workspace", "output"):
        (root / name).mkdir(parents=True)
    return root


def _config(run: Run, steps: int) -> TrainerConfig:
    return make_config(
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
            "compile": "always" if torch.cuda.is_available() else "never",
            "precision": "float8" if run.kind == "float8" else "bf16",
        },
    )


_IGNORED = -100
_LORA = {"rank": RANK, "alpha": 2 * RANK}


def bare(run: Run, folder: Path, steps: int) -> Curve:
    """Train with TRL alone, on the rows that preparation makes for ours."""
    source = folder / "sources/pvc/models" / MODEL
    root = _root(folder, run)
    prepare(_config(run, steps), folder, root)
    data = root / "workspace/data"
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"
    )
    cuda = torch.cuda.is_available()
    torch.manual_seed(42)
    trainer = SFTTrainer(
        model=_bare_model(run, source),
        args=SFTConfig(
            output_dir=str(root / "output"),
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
    model: Any = trainer.model
    others = {weight.dtype for weight in model.parameters()} - {torch.float32}
    if others and run.kind == "float32":
        raise ValueError(f"weights of {run.name} are in {others}: expected all in torch.float32.")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Curve(losses, _held_out(trainer))


def _bare_model(run: Run, source: Path) -> Any:
    dtype = torch.float32 if run.kind in {"autocast", "float32"} else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **quantised(run.adapter))
    if run == Run("qlora", "float32"):
        # What 4 bits stand for, not rounded to bf16. TRL keeps the adapter of a quantised model in
        # bf16, and takes it for one still.
        model = model.dequantize(torch.float32)
        model.is_loaded_in_4bit = False
    return model


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
    parser.add_argument("--kind", choices={run.kind for run in RUNS}, help="only runs of this kind")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3600, help="start no run after that")
    parser.add_argument("--output", type=Path, required=True, help="add all losses to this file")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not torch.cuda.is_available():
        if options.kind is None:
            sys.exit("bench.curves: CUDA sees no GPU: name the --kind that is to run on a CPU.")
        os.environ[names.DEVICE_ENV] = "cpu"
    curves = _read(options.output)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, target in (("models", MODEL), ("data", DATA)):
            (folder / "sources/pvc" / kind).mkdir(parents=True)
            (folder / "sources/pvc" / kind / target).symlink_to((options.folder / target).resolve())
        for run in RUNS:
            if options.adapter not in {None, run.adapter} or options.kind not in {None, run.kind}:
                continue
            if time.monotonic() - started > options.seconds:
                break
            curves[run] = _alone(run, folder, options.steps)
            print(f"{run.name}: held out {curves[run].held_out:.4f}", flush=True)
            options.output.write_text(
                json.dumps({each.name: vars(curve) for each, curve in curves.items()})
            )
    print("| | distance | of | held-out loss | of that |\n|---|---|---|---|---|")
    print("\n".join(_rows(curves)))
    return 0


def _read(path: Path) -> dict[Run, Curve]:
    """Return the curves of earlier runs; where there is no file, none."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return {Run(*name.split()): Curve(**curve) for name, curve in found.items()}


def _rows(curves: dict[Run, Curve]) -> list[str]:
    rows = []
    for run, curve in curves.items():
        reference = Run(run.adapter, REFERENCES[run.adapter])
        other = curves.get(reference)
        if other is None or run == reference:
            continue
        distance = f"{curve.distance(other):.4f}"
        held_out = f"{curve.held_out:.4f} | {other.held_out:.4f}"
        rows.append(f"| {run.name} | {distance} | {reference.name} | {held_out} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
