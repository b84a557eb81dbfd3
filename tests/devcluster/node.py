"""The one real node: containerd, kubelet, kube-proxy, pod DNS, volumes and an image registry.

All of it runs in a network namespace and a control group of its own, so that what is left after a
crash can be told from everything else on the machine.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from devcluster import containers, host, network, node_config, packages
from devcluster.control_plane import NODE_NAME
from devcluster.layout import NODE_RUN, ClusterError, Layout
from devcluster.manifests import GPU, GPU_LABELS, gpu_patch
from devcluster.processes import Daemons
from devcluster.progress import say

_OWNER = NODE_RUN / "owner.json"
_TOO_EARLY = "server is not initialized yet"
_STOPPING_ORDER = ("kubelet", "kube-proxy", "dns", "provisioner")
_MAXIMUM_STATE_PATH = 80


def check_machine(layout: Layout) -> None:
    """Raise if this machine or this user cannot run a node; install what is missing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise ClusterError(
            "a node needs root on Linux (containers, network namespaces); run as root, or start "
            "the control plane alone with --mode control-plane"
        )
    if len(str(layout.state)) > _MAXIMUM_STATE_PATH:
        raise ClusterError(
            f"{layout.state} has {len(str(layout.state))} characters, at most "
            f"{_MAXIMUM_STATE_PATH} leave room for socket names: set a shorter FINETUNE_CACHE"
        )
    packages.ensure_node_packages()


def owner() -> Layout | None:
    """The cluster that has, or had when it crashed, this machine's one node."""
    try:
        written = json.loads(_OWNER.read_text())
    except FileNotFoundError:
        return None
    return Layout(Path(written["cache"]), written["name"])


class Node:
    """The node of the cluster in `layout`; its control plane runs in the same namespace."""

    def __init__(self, layout: Layout, daemons: Daemons, programs: dict[str, Path]) -> None:
        self._layout = layout
        self._daemons = daemons
        self._programs = programs

    def prepare(self) -> None:
        """Everything that the control plane needs: the network namespace."""
        NODE_RUN.mkdir(parents=True, exist_ok=True)
        _OWNER.write_text(json.dumps({"cache": str(self._layout.cache), "name": self._layout.name}))
        host.save_sysctls()
        host.create_control_groups()
        network.create()

    def start_registry_and_containerd(self) -> None:
        self._start_registry()
        self._start_containerd()
        if containers.remove_all():
            # Its CRI part remembers what it found at its start.
            say("removed containers that a crashed run had left")
            self._daemons.stop("containerd")
            self._start_containerd()
        containers.import_pause(self._layout, self._programs["pause"])
        containers.remove_superseded_images()

    def start_kubelet(self) -> None:
        """Start the kubelet and what pods need beside it; the API server must be ready."""
        layout = self._layout
        self._run_kubelet()
        proxy = layout.state / "kube-proxy.yaml"
        proxy.write_text(node_config.kube_proxy_yaml(layout.kubeconfig("devcluster")))
        hostname = f"--hostname-override={NODE_NAME}"
        self._start("kube-proxy", self._programs["kube-proxy"], f"--config={proxy}", hostname)
        kubeconfig = f"--kubeconfig={layout.kubeconfig('devcluster')}"
        address = f"--address={network.NODE_ADDRESS}"
        self._start("dns", sys.executable, "-m", "devcluster.dns", kubeconfig, address)

    def _run_kubelet(self) -> None:
        layout = self._layout
        kubelet = layout.state / "kubelet.yaml"
        kubelet.write_text(node_config.kubelet_yaml(layout, NODE_NAME))
        self._start(
            "kubelet",
            self._programs["kubelet"],
            f"--config={kubelet}",
            f"--kubeconfig={layout.kubeconfig(NODE_NAME)}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={network.NODE_ADDRESS}",
            f"--root-dir={layout.state / 'kubelet'}",
            f"--cert-dir={layout.state / 'kubelet/pki'}",
        )

    def _is_ready(self, kubectl: functools.partial[str]) -> bool:
        """Tell whether the node is Ready; a kubelet that was too early for containerd starts anew.

        containerd answers before its part for the kubelet does, and the kubelet does not wait.
        """
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        found = kubectl("get", "node", NODE_NAME, "--ignore-not-found", "-o", f"jsonpath={path}")
        if not self._daemons.running("kubelet") and _TOO_EARLY in self._daemons.log_tail("kubelet"):
            self._run_kubelet()
        return found == "True"

    def finish(self, kubectl: functools.partial[str], gpus: int) -> None:
        """Wait for Ready, announce the GPUs and give the host its sysctls back."""
        ready = functools.partial(self._is_ready, kubectl)
        self._daemons.wait("kubelet", ready, seconds=60, what="Ready")
        host.restore_sysctls()
        self._daemons.wait("dns", _dns_answers, seconds=30, what="answering")
        if gpus:
            self._announce_gpus(kubectl, gpus)

    def stop(self) -> None:
        """Stop whatever of the node still runs and undo all that it did to the host."""
        for name in _STOPPING_ORDER:
            self._daemons.stop(name, grace=2)
        if self._daemons.running("containerd"):
            containers.remove_all()
        for name in ("containerd", "registry"):
            self._daemons.stop(name)

    def _announce_gpus(self, kubectl: functools.partial[str], gpus: int) -> None:
        patch = json.dumps(gpu_patch(gpus))
        kubectl("patch", "node", NODE_NAME, "--subresource=status", "--type=json", "-p", patch)
        labels = [f"{key}={value}" for key, value in GPU_LABELS.items()]
        kubectl("label", "--overwrite", "node", NODE_NAME, f"{GPU}.count={gpus}", *labels)

    def _start_registry(self) -> None:
        config = self._layout.state / "registry.yaml"
        config.write_text(node_config.registry_yaml(self._layout))
        program = packages.required("docker-registry")
        if (self._layout.cache / "registry/docker").exists():
            # Layers of images whose tag has moved on.
            subprocess.run(
                [program, "garbage-collect", "--delete-untagged", config],
                capture_output=True,
                check=True,
            )
        self._start("registry", program, "serve", config)
        self._daemons.wait("registry", _registry_answers, seconds=15, what="answering")

    def _start_containerd(self) -> None:
        state = self._layout.state
        folder = packages.cni_folder()
        if folder is None:
            raise ClusterError(
                "no CNI plugins in /usr/lib/cni or /opt/cni/bin: install "
                "containernetworking-plugins"
            )
        (state / "cni").mkdir(exist_ok=True)
        (state / "cni/10-bridge.conflist").write_text(node_config.cni_conflist(self._layout))
        config = state / "containerd.toml"
        config.write_text(node_config.containerd_toml(self._layout, folder))
        self._start("containerd", packages.required("containerd"), "--config", config)
        self._daemons.wait("containerd", containers.answers, seconds=20, what="answering")

    def _start(self, name: str, *argv: str | Path) -> None:
        environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
        self._daemons.start(name, argv, network=network.NAMESPACE_FILE, environment=environment)


def restore_host(layout: Layout) -> None:
    """Remove every trace of a node from the host, whatever state its run ended in."""
    host.kill_processes()
    host.remove_shim_sockets()
    for folder in (NODE_RUN, layout.state, layout.cache / "containerd"):
        host.unmount_below(folder)
    host.remove_control_groups()
    network.remove()
    host.remove_log_links(layout.state / "pod-logs")
    host.remove_network_results()
    host.remove_empty_leftovers()
    host.restore_sysctls()
    if NODE_RUN.exists():
        shutil.rmtree(NODE_RUN)


def _dns_answers() -> bool:
    try:
        with socket.create_connection((network.NODE_ADDRESS, 53), timeout=1):
            return True
    except OSError:
        return False


def _registry_answers() -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{node_config.REGISTRY}/v2/", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
