"""Checkpoints that are complete or ignored: staged, flushed, listed in a manifest, then renamed."""

import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path

from finetune_trainer.durable import publish, remove, write_json
from finetune_trainer.logs import fields

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_BLOCK = 1 << 24


class Checkpoints:
    """The checkpoints of one job, as folders checkpoint-STEP."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    @property
    def staging(self) -> Path:
        """Where a checkpoint is written before it counts."""
        return self.root / ".partial"

    def newest_complete(self, before: int | None = None) -> Path | None:
        """Return the newest checkpoint whose files are as its manifest says; remove what is not.

        Checkpoints of the step `before` and of later ones are left alone.
        """
        remove(self.staging)
        for folder in self._newest_first():
            if before is not None and step_of(folder) >= before:
                continue
            problem = _problem(folder)
            if problem is None:
                return folder
            log.warning(
                "incomplete checkpoint is ignored",
                extra=fields(checkpoint=folder.name, problem=problem),
            )
            remove(folder)
        return None

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        for folder in self._newest_first():
            if step_of(folder) > step:
                remove(folder)

    def derive(self, source: int, step: int) -> Path:
        """Stage a copy of a complete checkpoint as that of another step, and return its folder.

        Files are linked, for those of a checkpoint are never written again: replace, do not edit.
        """
        staged = self.staging / f"checkpoint-{step}"
        remove(self.staging)
        shutil.copytree(
            self.root / f"checkpoint-{source}",
            staged,
            copy_function=_link,
            ignore=shutil.ignore_patterns(MANIFEST),
        )
        return staged

    def publish(self, step: int, good: int | None = None) -> Path:
        """Make the staged checkpoint of a step count, and remove those beyond `keep`.

        The newest one up to the step `good` stays: later ones may turn out to be spoilt.
        """
        staged = self.staging / f"checkpoint-{step}"
        target = self.root / staged.name
        if target.exists() and _problem(target) is None:
            # Saved before an interruption, and the same: never be without it for a moment.
            remove(staged)
            return target
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        listing = {
            str(path.relative_to(staged)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
            for path in files
        }
        write_json(staged / MANIFEST, {"step": step, "files": listing})
        remove(target)
        publish(staged, target)
        self._prune(good)
        return target

    def _prune(self, good: int | None) -> None:
        folders = self._newest_first()
        trusted = [folder for folder in folders if good is not None and step_of(folder) <= good]
        for folder in folders[self.keep :]:
            if folder not in trusted[:1]:
                remove(folder)

    def _newest_first(self) -> list[Path]:
        if not self.root.exists():
            return []
        folders = [path for path in self.root.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(folders, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _problem(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):
        return "it has no readable manifest"
    for name, expected in manifest["files"].items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != expected["bytes"]:
            return f"{name} has {found} bytes, expected {expected['bytes']}"
        if _crc32(path) != expected["crc32"]:
            return f"{name} has another checksum than its manifest"
    return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every volume has hard links.
        shutil.copy2(source, target)


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
