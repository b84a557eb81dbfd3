"""A Kubernetes cluster on this machine, as tests and the command line use it."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from devcluster import binaries, control_plane, kwok, manifests, node, settings
from devcluster.layout import ClusterError, Layout, locked
from devcluster.network import NAMESPACE_FILE
from devcluster.node_config import REGISTRY
from devcluster.processes import Daemons
from devcluster.progress import say
from devcluster.settings import Kwok, Settings

NODE_CLUSTER = "node"
"""The usual name of the one cluster with a real node."""


class Cluster:
    """Real etcd and kube-apiserver; on request also controllers, fake nodes, or a real node.

    Its processes outlive this object: `down` stops them, also from another process.
    """

    def __init__(self, layout: Layout, wanted: Settings) -> None:
        self.layout = layout
        self.settings = wanted
        self._daemons = Daemons(layout.state)

    @classmethod
    def control_plane(
        cls,
        name: str,
        *,
        controllers: bool = False,
        kwok_nodes: int = 0,
        gpus_per_node: int = 8,
        pod_seconds: float = 1.0,
        pod_messages: Mapping[str, str] | None = None,
    ) -> Cluster:
        """A control plane on the loopback; needs no root, and several may run.

        `controllers` adds kube-controller-manager (garbage collection, volumes) and the scheduler;
        `kwok_nodes` adds these and fake nodes. A pod that the operator manages is Succeeded after
        `pod_seconds`, with the termination message that `pod_messages` holds for its role.
        """
        played = Kwok(kwok_nodes, gpus_per_node, pod_seconds, pod_messages or {})
        wanted = settings.for_control_plane(
            controllers=controllers, kwok=played if kwok_nodes else None
        )
        return cls(Layout.of(name), wanted)

    @classmethod
    def node(cls, name: str = NODE_CLUSTER, *, gpus: int = 0) -> Cluster:
        """A control plane and one real node with `gpus` pretended GPUs; needs root on Linux."""
        return cls(Layout.of(name), settings.for_node(gpus=gpus))

    @classmethod
    def existing(cls, name: str) -> Cluster:
        """The cluster that was started under this name."""
        layout = Layout.of(name)
        return cls(layout, settings.load(layout.settings))

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def kubeconfig(self) -> Path:
        """Of a member of system:masters."""
        return self.layout.kubeconfig(control_plane.ADMINISTRATOR)

    @property
    def bench_kubeconfig(self) -> Path:
        """Of a cluster-admin who is subject to API priority and fairness."""
        return self.layout.kubeconfig(control_plane.BENCH_USER)

    @property
    def server(self) -> str:
        return self.settings.server

    def bin(self, name: str) -> Path:
        """A program that goes with this cluster, such as kubectl, helm or kwok."""
        return binaries.locate([name])[name]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it prints; raises if it fails."""
        result = subprocess.run(
            [self.bin("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise ClusterError(f"`kubectl {' '.join(arguments)}` failed: {result.stderr.strip()}")
        return result.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        manifest = json.dumps(manifests.list_of(list(objects)))
        self.kubectl("apply", "--server-side", "-f", "-", stdin=manifest)

    def states(self) -> dict[str, bool]:
        """Whether it runs, for each daemon that was started."""
        return {name: self._daemons.running(name) for name in self._daemons.names()}

    def running(self) -> bool:
        states = self.states()
        return self.layout.complete.exists() and all(states.values()) and self._ready()

    def up(self) -> None:
        """Start the cluster with empty state, or leave it alone if all of it runs."""
        with self._lock():
            if self._is_up_as_wanted():
                say(f"cluster {self.layout.name} is running already at {self.server}")
                return
            self._refuse_second_node()
            if any(self.states().values()):
                say(f"cluster {self.layout.name} is not as wanted: starting it anew, empty")
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(self._stop)
                self._start()
                self.layout.complete.touch()
                on_failure.pop_all()
        say(f"cluster {self.layout.name} is up at {self.server}")

    def down(self) -> None:
        """Stop everything and remove its state except logs; idempotent, also after a crash."""
        with self._lock():
            self._stop()

    def kill_apiserver(self) -> None:
        """SIGKILL, as a crash would; etcd and its data stay."""
        self._daemons.stop("kube-apiserver", first=signal.SIGKILL)

    def start_apiserver(self) -> None:
        """Start the API server on its port and wait until it is ready."""
        arguments = control_plane.apiserver_arguments(self.layout, self.settings)
        self._launch("kube-apiserver", self.bin("kube-apiserver"), *arguments)
        self._daemons.wait("kube-apiserver", self._ready, seconds=60, what="ready")

    def _start(self) -> None:
        if self.settings.mode == "node":
            node.check_machine(self.layout)
        programs = binaries.locate(self._program_names())
        self._stop()
        if self.layout.state.exists():
            shutil.rmtree(self.layout.state)
        self.layout.state.mkdir(parents=True)
        self.settings.save(self.layout.settings)
        control_plane.write_keys(self.layout, self.settings)
        self._link_tools(programs)
        if self.settings.mode == "node":
            self._start_with_node(programs)
        else:
            self._start_etcd_and_apiserver(programs)
            self._start_controllers(programs)
            self._start_kwok(programs)
        self._wait_for_controllers()

    def _start_with_node(self, programs: dict[str, Path]) -> None:
        real = node.Node(self.layout, self._daemons, programs)
        real.prepare()
        self._start_etcd_and_apiserver(programs)
        self._start_controllers(programs)
        real.start_registry_and_containerd()
        say("containerd and the image registry are ready")
        real.start_kubelet()
        real.finish(functools.partial(self.kubectl), self.settings.gpus)
        say(f"node {control_plane.NODE_NAME} is Ready; push images to {REGISTRY}")

    def _start_etcd_and_apiserver(self, programs: dict[str, Path]) -> None:
        arguments = control_plane.etcd_arguments(self.layout, self.settings)
        self._launch("etcd", programs["etcd"], *arguments)
        self.start_apiserver()
        say("etcd and the API server are ready")
        self.apply(manifests.bench_user_binding())

    def _start_controllers(self, programs: dict[str, Path]) -> None:
        if not self.settings.controllers:
            return
        manager, scheduler = settings.free_ports(2)
        self._launch(
            "kube-controller-manager",
            programs["kube-controller-manager"],
            *control_plane.controller_manager_arguments(self.layout, manager),
        )
        self._launch(
            "kube-scheduler",
            programs["kube-scheduler"],
            *control_plane.scheduler_arguments(self.layout, scheduler),
        )
        self.apply(manifests.storage_class())
        self._launch(
            "provisioner",
            *(sys.executable, "-m", "devcluster.provisioner"),
            f"--kubeconfig={self.layout.kubeconfig('devcluster')}",
            f"--folder={self.layout.volumes}",
            *(["--shared"] if self.settings.kwok else []),
        )

    def _wait_for_controllers(self) -> None:
        """Until a pod may be created: no namespace admits one before it has its account."""
        if self.settings.controllers:
            self._daemons.wait(
                "kube-controller-manager", self._has_account, seconds=60, what="serving accounts"
            )
            say("controllers and scheduler are running")

    def _start_kwok(self, programs: dict[str, Path]) -> None:
        played = self.settings.kwok
        if played is None:
            return
        config = self.layout.state / "kwok.yaml"
        kwok.write_stages(config, played)
        nodes = [manifests.fake_node(i, played.gpus_per_node) for i in range(played.nodes)]
        # Not applied: server-side apply would drop the status, and with it the resources.
        self.kubectl("create", "-f", "-", stdin=json.dumps(manifests.list_of(nodes)))
        kubeconfig = self.layout.kubeconfig("devcluster")
        self._launch("kwok", programs["kwok"], *kwok.arguments(config, kubeconfig))
        self.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")
        say(f"{played.nodes} fake nodes are Ready")

    def _stop(self) -> None:
        real = node.Node(self.layout, self._daemons, {})
        is_node = (previous := node.owner()) is not None and previous == self.layout
        if is_node:
            real.stop()
        for name in ("kwok", "provisioner", "kube-scheduler", "kube-controller-manager"):
            self._daemons.stop(name, grace=2)
        # SIGTERM makes an API server wait for its open watches, for longer than anybody wants.
        self._daemons.stop("kube-apiserver", first=signal.SIGKILL)
        self._daemons.stop("etcd")
        if is_node:
            node.restore_host(self.layout)
        if self.layout.state.exists():
            _remove_all_but(self.layout.state, self.layout.logs)

    def _launch(self, name: str, *argv: str | Path) -> None:
        self._daemons.start(
            name,
            argv,
            network=NAMESPACE_FILE if self.settings.mode == "node" else None,
            environment={"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def _ready(self) -> bool:
        try:
            return self.kubectl("get", "--raw=/readyz", "--request-timeout=2s") == "ok"
        except ClusterError:
            return False

    def _has_account(self) -> bool:
        command = ("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name")
        return self.kubectl(*command) != ""

    def _is_up_as_wanted(self) -> bool:
        if not self.layout.settings.exists():
            return False
        current = Cluster.existing(self.layout.name)
        if not current.running() or not settings.same_wish(current.settings, self.settings):
            return False
        self.settings = current.settings
        return True

    def _refuse_second_node(self) -> None:
        previous = node.owner()
        if self.settings.mode != "node" or previous is None or previous == self.layout:
            return
        if any(Cluster(previous, self.settings).states().values()):
            raise ClusterError(
                f"this machine's one node is in use by the cluster {previous.name!r} in "
                f"{previous.state}: stop it with `make demo-down` or with"
                f" `python -m devcluster down --name {previous.name}`"
            )
        Cluster(previous, self.settings).down()

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.layout.state.with_suffix(".lock"))

    def _program_names(self) -> tuple[str, ...]:
        wanted: tuple[str, ...] = binaries.CONTROL_PLANE
        if self.settings.controllers:
            wanted += binaries.CONTROLLERS
        if self.settings.mode == "node":
            wanted += binaries.NODE
        if self.settings.kwok:
            wanted += ("kwok",)
        return wanted

    def _link_tools(self, programs: dict[str, Path]) -> None:
        self.layout.tools.mkdir()
        for name in ("kubectl", "helm"):
            if name in programs:
                (self.layout.tools / name).symlink_to(programs[name])


def _remove_all_but(folder: Path, kept: Path) -> None:
    for entry in folder.iterdir():
        if entry == kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
