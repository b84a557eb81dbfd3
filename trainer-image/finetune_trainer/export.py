"""Hands the model over: staged in the output claim, then renamed into place, once."""

import logging
import shutil
from pathlib import Path
from typing import Any

from finetune_api.failures import Reason
from finetune_api.status import Artifact
from finetune_api.trainer import JobFailure, Result, TrainerConfig
from finetune_trainer.durable import publish, read_json, remove, size_of, write_json
from finetune_trainer.logs import fields
from finetune_trainer.paths import Paths, artifact_path

log = logging.getLogger(__name__)

MARKER = ".finetune-job.json"
MERGED = "merged"


def check_output(config: TrainerConfig, paths: Paths) -> None:
    """Raise JobFailure when the output path is taken by anything but this job, or not writable."""
    target = paths.artifact(config)
    place = f"output.path {artifact_path(config)} of claim {config.spec.output.claim}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        owner = _marker(target)
        if owner.get("uid") != config.uid:
            raise JobFailure(
                Reason.OUTPUT_CONFLICT,
                f"{place} is taken by {_named(owner, config)}: choose another output.path, or "
                "delete what is there.",
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = _staging(config, paths)
        probe.mkdir(exist_ok=True)
    except PermissionError as error:
        raise JobFailure(
            Reason.OUTPUT_CONFLICT,
            f"{place} is not writable ({error.strerror}): the pods write as user and group 10001.",
        ) from error
    remove(probe)


def finished_result(config: TrainerConfig, paths: Paths) -> Result | None:
    """Return the result of an earlier process of this job that had handed its model over."""
    marker = _marker(paths.artifact(config))
    if marker.get("uid") != config.uid:
        return None
    return Result.model_validate(marker["result"])


def _named(owner: dict[str, Any], config: TrainerConfig) -> str:
    if "name" not in owner:
        return "something else"
    article = "an earlier" if owner["name"] == config.name else "the"
    return f"{article} FineTuneJob {owner['name']}"


def _marker(target: Path) -> dict[str, Any]:
    return read_json(target / MARKER) or {}


def _staging(config: TrainerConfig, paths: Paths) -> Path:
    target = paths.artifact(config)
    return target.with_name(f".{target.name}.{config.uid}.partial")


def stage(config: TrainerConfig, paths: Paths) -> Path:
    """Return an empty folder in the output claim for the artifact's files."""
    check_output(config, paths)
    folder = _staging(config, paths)
    folder.mkdir()
    return folder


def artifact_of(config: TrainerConfig, folder: Path) -> Artifact:
    """Return where the staged artifact will be, and its size."""
    uri = f"pvc://{config.spec.output.claim}/{artifact_path(config)}"
    return Artifact(
        uri=uri,
        kind="model" if config.spec.adapter.type == "full" else "adapter",
        merged_uri=f"{uri}/{MERGED}" if (folder / MERGED).exists() else None,
        size_bytes=size_of(folder),
    )


def hand_over(config: TrainerConfig, paths: Paths, folder: Path, result: Result) -> None:
    """Mark the staged artifact as this job's and rename it into place."""
    owner = {"uid": config.uid, "name": config.name, "namespace": config.namespace}
    write_json(folder / MARKER, owner | {"result": result.to_json()})
    # safetensors writes files that only their owner can read; whoever serves the model is another.
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    publish(folder, paths.artifact(config))
    log.info("handed over", extra=fields(path=str(paths.artifact(config))))


def write_model(
    model: Any, tokenizer: Any, folder: Path, base: str, weights: dict[str, Any] | None = None
) -> None:
    """Write the adapter, with the base model's name as users know it, or all weights.

    Weights are those of a model that is spread over several processes.
    """
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = base
        # TRL may have added a copy as the reference. "auto" would ask the hub whether the embedding
        # was resized; it never is.
        model.save_pretrained(
            folder, selected_adapters=["default"], save_embedding_layers=False, state_dict=weights
        )
    else:
        _save_whole(model, folder, weights)
    tokenizer.save_pretrained(folder)


def write_merged(model: Any, tokenizer: Any, folder: Path, stored: Any) -> None:
    """Write a model with its adapter merged into the weights; the model is of no use afterwards.

    What was trained in more bits than the base model is stored in is written as the base is.
    """
    merged = model.merge_and_unload()
    if stored is not None and stored.itemsize < merged.dtype.itemsize:
        merged = merged.to(stored)
    _save_whole(merged, folder)
    tokenizer.save_pretrained(folder)


def _save_whole(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    # Training switches the cache off; whoever loads the model wants it.
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=weights)


def write_measured(paths: Paths, folder: Path) -> None:
    """Copy the metrics of every step, and what the profiler saw."""
    if paths.metrics.exists():
        shutil.copyfile(paths.metrics, folder / "metrics.jsonl")
    if paths.profile.exists():
        shutil.copytree(paths.profile, folder / "profile")
