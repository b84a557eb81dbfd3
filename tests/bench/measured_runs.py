"""Runs whose memory was measured, as calibration files hold them, and what is estimated of them."""

from collections.abc import Mapping
from typing import Any

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Memory, Preparation
from finetune_operator.planning.architecture import facts_of_name
from finetune_operator.planning.memory import Candidate, estimate
from finetune_operator.planning.memory.estimate import held, in_pieces
from finetune_operator.planning.quantity import GIB
from unit.operator.builders import make_preparation, make_spec

Run = Mapping[str, Any]

_GROUP = 4


Constants = Mapping[str, float]
"""Of a calibration file."""


def tensors(run: Run, constants: Constants) -> float:
    """Return the GiB that the formulas say, and cuBLAS's: all but the slack."""
    return sum(held(*_job(run)).values()) / GIB + constants["workspaceGib"]


def slack_of(run: Run) -> str:
    """Return the name of the constant that is a run's slack."""
    spec, _, candidate = _job(run)
    return "slackInPieces" if in_pieces(spec, candidate) else "slack"


def estimated(run: Run, constants: Constants) -> float:
    """Return the estimate of what PyTorch reserves, in GiB."""
    return tensors(run, constants) * (1 + constants[slack_of(run)])


def estimate_of(run: Run, product: str = "auto") -> Memory:
    """Return the whole estimate for a run on a product; cpu is one."""
    return estimate(*_job(run, product))


def error(run: Run, constants: Constants) -> float:
    """Return by what share the estimate misses what PyTorch had reserved; below 0 it is too low."""
    return float(estimated(run, constants) / run["reserved"] - 1)


def settings(run: Run) -> tuple[str, ...]:
    """Return model, job, size, checkpointing and layers, for people."""
    rank = f" r{run['rank']}" if run["rank"] else ""
    batch = f" x {run['accumulation']}" if run.get("accumulation", 1) > 1 else ""
    more = f", {run['completion']} tokens written" if "completion" in run else ""
    more += ", packed" if run.get("packed") else ""
    more += f", {run['precision']}" if run.get("precision", "bf16") != "bf16" else ""
    return (
        run["model"].rpartition("/")[2],
        f"{run['method']} {run['adapter']}{rank}{more}",
        f"{run['length']} x {run['microBatch']}{batch}",
        run["checkpointing"],
        "compiled" if run["compiled"] else "as they are",
    )


def title(run: Run) -> str:
    """Return all settings in one line."""
    return ", ".join(settings(run))


def _job(run: Run, product: str = "auto") -> tuple[FineTuneJobSpec, Preparation, Candidate]:
    gpus = 0 if product == "cpu" else 1
    candidate = Candidate(
        gpus=gpus,
        strategy="single",
        micro_batch_size=run["microBatch"],
        max_length=run["length"],
        checkpointing=run["checkpointing"],
        precision=run.get("precision", "bf16") if gpus else "float32",
        compile=run["compiled"],
    )
    return _spec(run, product if gpus else "auto"), _preparation(run), candidate


def _spec(run: Run, product: str) -> FineTuneJobSpec:
    adapter: dict[str, Any] = {"type": run["adapter"]}
    if run["rank"]:
        adapter["lora"] = {"rank": run["rank"]}
    batch = run["microBatch"] * run.get("accumulation", 1)
    parts: dict[str, Any] = {}
    if run["method"] == "grpo":
        parts["rewards"] = [{"name": "length", "builtin": "length"}]
        parts["generation"] = {"groupSize": _GROUP, "maxCompletionLength": run["completion"]}
    return make_spec(
        method=run["method"],
        adapter=adapter,
        training={"batchSize": batch, "packing": run.get("packed", False)},
        resources={"gpu": {"product": product}},
        **parts,
    )


def _preparation(run: Run) -> Preparation:
    named = facts_of_name(f"hf://{run['model']}")
    if named is None:
        raise ValueError(f"model of a run is {run['model']}: expected one of catalogue.json.")
    rows = {"max_tokens": run["length"], "mean_tokens": run["length"]}
    made = make_preparation()
    dataset = made.dataset.model_copy(update=rows)
    return made.model_copy(update={"model": named[1], "dataset": dataset})
