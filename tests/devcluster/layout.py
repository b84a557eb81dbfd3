"""Where the clusters keep their files: one cache outside the checkout, one state folder each."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "go"
NODE_RUN = Path("/run/finetune-node")
"""Sockets and containerd's run-time state: short paths, because a socket's path has 107 bytes."""

CACHE_FOLDERS = ("bin", "buildah", "clusters", "containerd", "demo", "go", "registry", "uv")
"""Everything that may lie in the cache; `clean` removes these and nothing else."""


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked; the message is one sentence for the person."""


def cache_root() -> Path:
    """The cache of binaries, images and cluster state: $FINETUNE_CACHE or under ~/.cache."""
    configured = os.environ.get("FINETUNE_CACHE")
    return Path(configured).absolute() if configured else Path.home() / ".cache/finetune-operator"


@dataclass(frozen=True)
class Layout:
    """The files of the cluster `name`."""

    cache: Path
    name: str

    @classmethod
    def of(cls, name: str) -> Layout:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise ClusterError(
                f"cluster name {name!r} is not usable: use up to 32 lower-case letters, digits "
                "and dashes"
            )
        return cls(cache_root(), name)

    @property
    def state(self) -> Path:
        return self.cache / "clusters" / self.name

    @property
    def settings(self) -> Path:
        return self.state / "cluster.json"

    @property
    def complete(self) -> Path:
        """There once all of the cluster was started: `up` itself may be killed halfway."""
        return self.state / "complete"

    @property
    def keys(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def tools(self) -> Path:
        """A folder of links to kubectl and helm, to be put on $PATH."""
        return self.state / "bin"

    def kubeconfig(self, user: str) -> Path:
        return self.state / f"{user}.kubeconfig"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it goes away with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
