"""Checkpoints that are complete or ignored: staged, flushed, listed in a manifest, then renamed."""

import json
import logging
import re
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

    def newest_complete(self) -> Path | None:
        """Return the newest checkpoint whose files are as its manifest says; remove what is not."""
        remove(self.staging)
        for folder in self._newest_first():
            problem = _problem(folder)
            if problem is None:
                return folder
            log.warning(
                "incomplete checkpoint is ignored",
                extra=fields(checkpoint=folder.name, problem=problem),
            )
            remove(folder)
        return None

    def publish(self, step: int) -> Path:
        """Make the staged checkpoint of a step count, and remove those beyond `keep`."""
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
        for folder in self._newest_first()[self.keep :]:
            remove(folder)
        return target

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


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
