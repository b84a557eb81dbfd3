"""pvc:// and configmap://: sources that the operator mounts into the prepare pod."""

import fcntl
import shutil
from pathlib import Path

from finetune_api.trainer import JobFailure
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted

# linux/fs.h; shares the blocks of the copy where the file system can.
_FICLONE = 0x40049409


def fetch(source: Source, target: Path, wanted: Wanted, mounts: Path) -> None:
    """Copy the wanted files into target: the trainer pod does not mount sources."""
    origin = _locate(source, wanted, mounts)
    names = _names(origin)
    # A single file was named by the user: it is wanted whatever its name.
    chosen = names if origin.is_file() else wanted.choose(names)
    if not chosen:
        raise JobFailure(
            wanted.missing,
            f"{wanted.field} is {source.uri}, which holds no usable file: found {_listing(names)}.",
        )
    folder = origin.parent if origin.is_file() else origin
    for name in chosen:
        _copy(folder / name, target / name)


def _locate(source: Source, wanted: Wanted, mounts: Path) -> Path:
    root = mounts / source.scheme / source.place
    origin = root / source.path
    if origin.exists():
        return origin
    kind = {"pvc": "claim", "configmap": "ConfigMap"}[source.scheme]
    there = _visible(root)
    if not there:
        state = "is empty" if source.scheme == "pvc" else "does not exist or is empty"
        found = f"the {kind} {source.place} {state}: put {source.path} there."
    else:
        found = f"the {kind} {source.place} has no {source.path}: it holds {_listing(there)}."
    raise JobFailure(wanted.missing, f"{wanted.field} is {source.uri}, but {found}")


def _visible(root: Path) -> list[str]:
    """Return the names in a mounted volume, without the kubelet's own ..data and ..TIMESTAMP."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if not path.name.startswith(".."))


def _names(origin: Path) -> list[str]:
    if origin.is_file():
        return [origin.name]
    files = (path for path in origin.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(origin)) for path in files)


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "nothing"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _copy(origin: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with origin.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer, _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 1 << 24)
