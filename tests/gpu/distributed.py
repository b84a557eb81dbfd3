"""Trains a small random model on 2 GPUs with every strategy, and holds each against DDP.

Strategy hsdp takes 4 GPUs, as two pods on one machine, and is left out where there are fewer. Run
it on a machine with 2 or 4 GPUs, from the root of the checkout, with the trainer's packages:

    PYTHONPATH=crds:trainer-image:tests .venv/bin/python tests/gpu/distributed.py [STRATEGY ...]

`--adapter lora` or `full` leaves the other out. Several may run at once, but for hsdp.
It ends with exit code 1 when a run fails, does not resume to the same losses, or differs from DDP.
"""
# ruff: noqa: T201 - what it prints is its result

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from finetune_api.trainer import TrainerConfig
from unit.trainer.builders import chat_rows, make_config, make_plan, save_tokenizer, write_rows

GPUS = 2
TOLERANCES = {"lora": 0.02, "full": 0.05}
"""Relative difference of a loss in bf16, where sums are made in another order. With full DDP keeps
weights in bf16, rounded at random; the others keep them in float32 and round them for each pass,
which leaves out the first small updates of weights that were read as bf16.
"""

STRATEGIES = ("ddp", "fsdp", "hsdp", "zero2", "zero3")
CHECKPOINTING = {"lora": "none", "full": "full"}
"""Of the activations, by adapter."""
RATES = {"lora": 1e-3, "full": 1e-4}
"""With full so high that an update is seen in bf16."""


def save_model(folder: Path) -> None:
    """Save a random Llama of 100 million weights in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    untyped: Any = LlamaForCausalLM
    untyped(config).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)


def job(strategy: str, adapter: str) -> TrainerConfig:
    """Return job.json of one case."""
    nodes = 2 if strategy == "hsdp" else 1
    plan = make_plan(
        gpus=nodes * GPUS,
        nodes=nodes,
        gpus_per_node=GPUS,
        strategy=strategy,
        precision="bf16",
        micro_batch_size=4 // nodes,
        gradient_accumulation_steps=2,
        gradient_checkpointing=CHECKPOINTING[adapter],
    )
    return make_config(
        plan,
        dataset={"source": "pvc://data/rows.jsonl", "evalFraction": 0.1},
        adapter={"type": adapter},
        training={
            "maxSteps": 20,
            "batchSize": 8 * GPUS,
            "learningRate": RATES[adapter],
            "evalEverySteps": 10,
            "checkpoint": {"everySteps": 5},
        },
        evaluation={"samplePrompts": ["What is 1 plus 1?"], "sampleMaxTokens": 8},
        output={"claim": "out", "merged": adapter == "lora"},
    )


def start(
    root: Path, command: str, config: TrainerConfig, pod: int = 0
) -> "subprocess.Popen[bytes]":
    """Start one command of the trainer on the mounts below root, as a pod with its own GPUs."""
    (root / "job.json").write_text(json.dumps(config.to_json()))
    mounts = [f"--{name}={root / name}" for name in ("workspace", "output", "sources")]
    log = root / f"termination-log{pod or ''}"
    files = [f"--termination-log={log}", f"--config={root / 'job.json'}"]
    gpus = ",".join(str(pod * GPUS + gpu) for gpu in range(GPUS))
    return subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer.cli", command, *mounts, *files, "--port=0"],
        env=os.environ | {"GROUP_RANK": str(pod), "CUDA_VISIBLE_DEVICES": gpus},
    )


def start_pods(root: Path, config: TrainerConfig) -> "list[subprocess.Popen[bytes]]":
    """Start the training in all pods of the plan."""
    assert config.plan is not None
    return [start(root, "run", config, pod) for pod in range(config.plan.nodes)]


def losses(root: Path) -> dict[str, float]:
    """Return training and held-out losses by kind and step."""
    lines = (root / "workspace/metrics.jsonl").read_text().splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    keys = ("loss", "eval_loss")
    return {f"{key}@{one['step']}": one[key] for one in entries for key in keys if key in one}


def run_case(sources: Path, strategy: str, adapter: str) -> dict[str, float]:
    """Prepare, train past a checkpoint, stop by SIGTERM, go on to the end; return the losses."""
    config = job(strategy, adapter)
    root = Path(tempfile.mkdtemp(prefix=f"{strategy}-{adapter}-"))
    (root / "workspace").mkdir()
    (root / "output").mkdir()
    (root / "sources").symlink_to(sources)
    assert start(root, "prepare", config).wait() == 0, "prepare failed"
    first, *others = start_pods(root, config)
    while first.poll() is None and not (root / "workspace/checkpoints/checkpoint-5").exists():
        time.sleep(0.05)
    first.terminate()
    assert first.wait() in {75, 0}, (root / "termination-log").read_text()
    assert all(pod.wait() == first.returncode for pod in others), "one pod did not stop"
    stopped = first.returncode == 75
    again = start_pods(root, config) if stopped else []
    assert all(pod.wait() == 0 for pod in again), "the second run failed"
    result = json.loads((root / "termination-log").read_text())
    print(strategy, adapter, "stopped" if stopped else "not stopped", result)
    _check_artifact(root / "output/tiny", adapter)
    return losses(root)


def _check_artifact(folder: Path, adapter: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / ("merged" if adapter == "lora" else "."))
    assert type(model).__name__ == "LlamaForCausalLM"


def _strategies() -> list[str]:
    enough = torch.cuda.device_count() >= 2 * GPUS
    return [strategy for strategy in STRATEGIES if enough or strategy != "hsdp"]


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(prog="distributed.py", description=__doc__)
    parser.add_argument("strategies", nargs="*", metavar="STRATEGY", help=", ".join(STRATEGIES))
    parser.add_argument("--adapter", choices=CHECKPOINTING, help="only with this one")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if gpus < GPUS:
        sys.exit(f"distributed.py: CUDA sees {gpus} GPUs, at least {GPUS} are needed.")
    sources = Path(tempfile.mkdtemp()) / "sources"
    save_model(sources / "pvc/models/tiny")
    write_rows(sources / "pvc/data/rows.jsonl", chat_rows(400))
    differs = False
    for adapter in [options.adapter] if options.adapter else CHECKPOINTING:
        reference = run_case(sources, "ddp", adapter)
        for strategy in options.strategies or _strategies():
            if strategy == "ddp":
                continue
            found = run_case(sources, strategy, adapter)
            for name, loss in reference.items():
                print(f"{adapter:5} {strategy:6} {name:13} {loss:.4f} (ddp) {found[name]:.4f}")
                differs |= abs(found[name] / loss - 1) > TOLERANCES[adapter]
    print("differs" if differs else "all are as ddp")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
