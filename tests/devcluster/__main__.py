"""Start, look at and stop Kubernetes clusters on this machine."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from devcluster import NODE_CLUSTER, Cluster, ClusterError, binaries, host
from devcluster.layout import CACHE_FOLDERS, Layout, cache_root
from devcluster.progress import say


def main() -> None:
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except ClusterError as error:
        sys.exit(f"devcluster: {error}")


def _up(arguments: argparse.Namespace) -> None:
    node_is_possible = os.geteuid() == 0 and not arguments.kwok_nodes
    mode = arguments.mode or ("node" if node_is_possible else "control-plane")
    if mode == "node" and arguments.kwok_nodes:
        raise ClusterError("--kwok-nodes goes with --mode control-plane: leave one of them out")
    if mode == "node":
        Cluster.node(arguments.name, gpus=arguments.gpus).up()
        return
    messages = json.loads(arguments.pod_messages.read_text()) if arguments.pod_messages else {}
    Cluster.control_plane(
        arguments.name,
        controllers=True,
        kwok_nodes=arguments.kwok_nodes,
        gpus_per_node=arguments.gpus,
        pod_seconds=arguments.pod_seconds,
        pod_messages=messages,
    ).up()


def _down(arguments: argparse.Namespace) -> None:
    if not Layout.of(arguments.name).settings.exists():
        say(f"there is no cluster {arguments.name}")
        return
    Cluster.existing(arguments.name).down()
    say(f"cluster {arguments.name} is down")


def _status(_: argparse.Namespace) -> None:
    names = _names()
    if not names:
        print("no cluster")
    for name in names:
        cluster = Cluster.existing(name)
        print(f"{name}: {cluster.settings.mode} at {cluster.server}")
        for daemon, runs in cluster.states().items():
            print(f"  {daemon:26}{'running' if runs else 'NOT RUNNING'}")
        print(f"  logs in {cluster.layout.logs}")


def _env(arguments: argparse.Namespace) -> None:
    cluster = Cluster.existing(arguments.name)
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    print(f'export PATH={cluster.layout.tools}:"$PATH"')


def _build(arguments: argparse.Namespace) -> None:
    if unknown := set(arguments.programs) - set(binaries.PROGRAMS):
        raise ClusterError(
            f"{', '.join(sorted(unknown))}: not a program of a cluster; known are "
            f"{', '.join(binaries.PROGRAMS)}"
        )
    for name, path in binaries.locate(arguments.programs or binaries.PROGRAMS).items():
        print(f"{name:26}{path}")


def _clean(_: argparse.Namespace) -> None:
    for name in _names():
        Cluster.existing(name).down()
    host.unmount_below(cache_root())
    for folder in CACHE_FOLDERS:
        if (cache_root() / folder).exists():
            shutil.rmtree(cache_root() / folder)
    say(f"removed binaries, images and state from {cache_root()}")


def _names() -> list[str]:
    found = (cache_root() / "clusters").glob("*/cluster.json")
    return sorted(settings.parent.name for settings in found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devcluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start a cluster; leave it alone if it runs")
    up.set_defaults(run=_up)
    up.add_argument(
        "--mode",
        choices=["control-plane", "node"],
        help="default: node for root without --kwok-nodes, else control-plane",
    )
    up.add_argument("--gpus", type=int, default=0, help="GPUs to announce on each node")
    up.add_argument("--kwok-nodes", type=int, default=0, help="fake nodes (control-plane only)")
    up.add_argument(
        "--pod-messages",
        type=Path,
        metavar="FILE",
        help="JSON object of termination messages by finetune.dev/role, for fake nodes",
    )
    up.add_argument(
        "--pod-seconds", type=float, default=1.0, help="how long a pod runs on a fake node"
    )
    down = commands.add_parser("down", help="stop a cluster and remove its state")
    down.set_defaults(run=_down)
    env = commands.add_parser("env", help="print shell exports for kubectl and helm")
    env.set_defaults(run=_env)
    for command in (up, down, env):
        command.add_argument("--name", default=NODE_CLUSTER, help=f"default: {NODE_CLUSTER}")
    commands.add_parser("status", help="list clusters and daemons").set_defaults(run=_status)
    build = commands.add_parser("build", help="build or find programs before they are needed")
    build.set_defaults(run=_build)
    build.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: all")
    clean = commands.add_parser("clean", help="stop all clusters and empty the cache")
    clean.set_defaults(run=_clean)
    return parser


if __name__ == "__main__":
    main()
