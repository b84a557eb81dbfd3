"""What a cluster was asked to be, written to its state so that later commands know."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from devcluster.layout import ClusterError
from devcluster.network import NODE_ADDRESS

Mode = Literal["control-plane", "node"]
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Kwok:
    """Nodes and pods that only KWOK plays."""

    nodes: int
    gpus_per_node: int = 8
    pod_seconds: float = 1.0
    """How long a pod of ours is Running before it is Succeeded."""
    pod_messages: Mapping[str, str] = field(default_factory=dict)
    """Termination message by value of the label finetune.dev/role; other roles run for ever."""


@dataclass(frozen=True)
class Settings:
    """One cluster. Ports are TCP ports on `address`, etcd's always on the loopback."""

    mode: Mode
    address: str
    port: int
    etcd_port: int
    etcd_peer_port: int
    controllers: bool = True
    """Whether kube-controller-manager and kube-scheduler run."""
    gpus: int = 0
    """Extended resource nvidia.com/gpu on the one real node."""
    kwok: Kwok | None = None

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def etcd(self) -> str:
        return f"http://{LOOPBACK}:{self.etcd_port}"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2))


def for_control_plane(*, controllers: bool, kwok: Kwok | None) -> Settings:
    """A control plane on the loopback at ports that are free now."""
    port, etcd_port, etcd_peer_port = free_ports(3)
    return Settings(
        "control-plane",
        LOOPBACK,
        port,
        etcd_port,
        etcd_peer_port,
        controllers=controllers or kwok is not None,
        kwok=kwok,
    )


def for_node(*, gpus: int) -> Settings:
    """A node: its network namespace has every port to itself."""
    return Settings("node", NODE_ADDRESS, 6443, 2379, 2380, gpus=gpus)


def load(path: Path) -> Settings:
    """The settings of a cluster that was started before."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ClusterError(
            f"there is no cluster {path.parent.name!r}: start it with `python -m devcluster up "
            f"--name {path.parent.name}`"
        ) from None
    kwok = values.pop("kwok")
    return Settings(**values, kwok=Kwok(**kwok) if kwok else None)


def same_wish(one: Settings, other: Settings) -> bool:
    """Whether two clusters differ in nothing but their ports."""
    at_same_ports = replace(
        other, port=one.port, etcd_port=one.etcd_port, etcd_peer_port=one.etcd_peer_port
    )
    return one == at_same_ports


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; held together so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
