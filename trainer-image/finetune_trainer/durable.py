"""Files and folders that are there whole or not at all, also after a crash of the node."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside path, flush it to disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps(value, indent=1))
    sync(staging)
    staging.replace(path)
    sync(path.parent)


def read_json(path: Path) -> Any:
    """Return the parsed file, or None when there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def sync(path: Path) -> None:
    """Flush one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(staging: Path, target: Path) -> None:
    """Flush all of staging to disk and rename it to target, absent or an empty folder."""
    for folder, _, names in os.walk(staging):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))
    staging.rename(target)
    sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file or folder that may be absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
