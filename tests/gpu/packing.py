"""Holds packed rows against their documents alone, and times them.

Run it on a machine with a GPU, from the root of the checkout, with the trainer's packages (on a
CPU it does the same with a tiny model and SDPA):

    PYTHONPATH=crds:trainer-image:tests .venv/bin/python tests/gpu/packing.py

It ends with exit code 1 when loss or gradients differ, when documents that see each other would
not be noticed, or when a second micro-batch makes the compiler work again.
"""
# ruff: noqa: T201 - what it prints is its result

import itertools
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_api.status import Plan
from finetune_trainer.device import Device
from finetune_trainer.packing import PackedCollator
from finetune_trainer.paths import Paths
from finetune_trainer.prepare import prepare
from finetune_trainer.progress import ProgressBoard
from finetune_trainer.run import build
from unit.trainer.builders import make_config, make_plan, save_tokenizer, write_rows

CUDA = torch.cuda.is_available()
LENGTH, DOCUMENTS, STEPS = (4096, 400, 8) if CUDA else (512, 60, 2)
LIMITS = {"bf16": (0.001, 0.25 if CUDA else 0.05), "float32": (1e-5, 0.001)}
"""Relative differences of loss and gradient: sums are made in another order. Compiled layers also
round at other places than those that run the documents alone: in bf16 only the loss, and documents
that see each other, tell much; float32 proves that they do not."""


@dataclass(frozen=True)
class Case:
    """What is held against the documents alone."""

    precision: str
    checkpointing: str
    compile: bool

    @property
    def plan(self) -> Plan:
        """The plan for micro-batches of two rows."""
        return make_plan(
            gpus=int(CUDA),
            gpus_per_node=int(CUDA),
            precision=self.precision,
            gradient_accumulation_steps=1,
            max_length=LENGTH,
            gradient_checkpointing=self.checkpointing,
            compile=self.compile,
        )


CASES = (
    Case("bf16", "none", compile=CUDA),
    Case("bf16", "full", compile=False),
    Case("float32", "selective", compile=CUDA),
)


def save_model(folder: Path) -> None:
    """Save a random Llama of 120 million weights, or of 1 million for the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width = 1024 if CUDA else 128
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=8 if CUDA else 2,
        num_attention_heads=16 if CUDA else 4,
        num_key_value_heads=4 if CUDA else 2,
        max_position_embeddings=LENGTH,
        # Else what attention sees hardly matters in a model that has learned nothing.
        initializer_range=0.08,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    untyped: Any = LlamaForCausalLM
    untyped(config).save_pretrained(folder)
    save_tokenizer(folder)


def make_trainer(root: Path, case: Case) -> Any:
    """Return the trainer of a job with packing, as the trainer's `run` makes it."""
    plan = case.plan
    config = make_config(
        plan,
        adapter={"type": "full"},
        training={"maxSteps": 1, "batchSize": 2, "packing": True, "maxLength": LENGTH},
    )
    paths = Paths(root / "workspace", root / "output", root / "sources")
    prepare(config, paths)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    trainer = build(config, plan, paths, ProgressBoard(), Device(cuda=CUDA, dtype=dtype)).trainer
    trainer.model.train()
    # A step asks it which weights there are.
    trainer.create_optimizer()
    return trainer


def step(trainer: Any, batch: dict[str, torch.Tensor], tokens: int) -> float:
    """Go forward and backward; gradients add up."""
    return float(trainer.training_step(trainer.model, batch, torch.tensor(tokens)))


def gradient(trainer: Any) -> torch.Tensor:
    """Return the gradient, and forget it."""
    weights = [weight for weight in trainer.model.parameters() if weight.grad is not None]
    found = torch.cat([weight.grad.float().flatten() for weight in weights])
    trainer.model.zero_grad()
    return found


def alone(trainer: Any, rows: list[dict[str, Any]], tokens: int) -> tuple[float, torch.Tensor]:
    """Return loss and gradient of the rows' documents, each on its own and with usual attention."""
    packed, trainer.attention = trainer.attention, None
    loss = 0.0
    with torch.compiler.set_stance("force_eager"):
        for row in rows:
            ends = list(itertools.accumulate(row["seq_lengths"]))
            for first, last in itertools.pairwise([0, *ends]):
                document = {name: row[name][first:last] for name in ("input_ids", "labels")}
                loss += step(trainer, PackedCollator(last - first, 0)([document]), tokens)
    trainer.attention = packed
    return loss, gradient(trainer)


def differs(trainer: Any, case: Case) -> bool:
    """Print how far packed rows are from their documents, and documents that see each other."""
    rows = sorted(trainer.train_dataset, key=lambda row: len(row["seq_lengths"]))[-2:]
    batch = trainer.data_collator(rows)
    tokens = int((batch["labels"] != -100).sum())
    expected, wanted = alone(trainer, rows, tokens)
    mixed = batch | {"position_ids": torch.arange(LENGTH).expand(2, -1)}
    of_loss = abs(step(trainer, batch, tokens) / expected - 1)
    of_gradient = float((gradient(trainer) - wanted).norm() / wanted.norm())
    step(trainer, mixed, tokens)
    if_mixed = float((gradient(trainer) - wanted).norm() / wanted.norm())
    loss_limit, limit = LIMITS[case.precision]
    print(
        f"{case}, attention {trainer.attention}: loss {of_loss:.1e} (at most {loss_limit}),"
        f" gradient {of_gradient:.1e} (at most {limit});"
        f" gradient if documents saw each other {if_mixed:.1e}",
        flush=True,
    )
    return of_loss > loss_limit or of_gradient > limit or if_mixed < 3 * limit


def speed(trainer: Any) -> None:
    """Print tokens a second without padding. Raises when anything is compiled after the first."""
    rows = list(trainer.train_dataset)
    pairs = [rows[index : index + 2] for index in range(0, len(rows) - 1, 2)]
    batches = list(itertools.islice(itertools.cycle(map(trainer.data_collator, pairs)), STEPS + 1))
    step(trainer, batches[0], 1)
    started, seen = time.monotonic(), 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in batches[1:]:
            step(trainer, batch, 1)
            seen += int(batch["attention_mask"].sum())
    peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    rate = seen / (time.monotonic() - started)
    print(f"attention {trainer.attention}: {rate:,.0f} tokens/s, peak {peak:.2f} GiB", flush=True)
    trainer.model.zero_grad()


def main() -> int:
    """Run all cases; return the exit code."""
    if not CUDA:
        print("CUDA sees no GPU: what runs on a CPU is the first case, not compiled", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder))


def compare(root: Path) -> int:
    """Run all cases in a folder; return the exit code."""
    for name in ("workspace", "output"):
        (root / name).mkdir()
    save_model(root / "sources/pvc/models/tiny")
    lengths = random.Random(0)  # noqa: S311 - no secret
    sizes = [min(LENGTH - 8, 8 + round(lengths.lognormvariate(5, 1))) for _ in range(DOCUMENTS)]
    texts = [{"text": "".join(lengths.choices("abcdefgh", k=size))} for size in sizes]
    write_rows(root / "sources/pvc/data/rows.jsonl", texts)
    wrong = False
    for case in CASES:
        started = time.monotonic()
        trainer = make_trainer(root, case)
        wrong |= differs(trainer, case)
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        if case is CASES[0]:
            speed(trainer)
            if CUDA:
                trainer.attention = None
                speed(trainer)
        del trainer
    print("packed rows differ" if wrong else "packed rows are as their documents")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
