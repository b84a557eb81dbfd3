"""What a node leaves on its host, and how the host becomes as it was before.

Every function here may be called again, and after a crash at any point.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from devcluster import network
from devcluster.layout import NODE_RUN, ClusterError

CONTROL_GROUP = "finetune-node"
_CONTAINERD_RUN = Path("/run/containerd")
_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""The kubelet sets these on the host: they belong to no namespace."""
_SAVED_SYSCTLS = NODE_RUN / "sysctls.json"


def save_sysctls() -> None:
    """Keep the host's values, unless a crashed run has left the true ones already."""
    if not _SAVED_SYSCTLS.exists():
        values = {name: (Path("/proc/sys") / name).read_text().strip() for name in _SYSCTLS}
        _SAVED_SYSCTLS.parent.mkdir(parents=True, exist_ok=True)
        _SAVED_SYSCTLS.write_text(json.dumps(values))


def restore_sysctls() -> None:
    if _SAVED_SYSCTLS.exists():
        for name, value in json.loads(_SAVED_SYSCTLS.read_text()).items():
            path = Path("/proc/sys") / name
            if path.read_text().strip() != value:
                path.write_text(value)


def create_control_groups() -> None:
    for root in _control_group_roots():
        (root / CONTROL_GROUP).mkdir(exist_ok=True)


def kill_processes() -> None:
    """SIGKILL everything in the node's control groups and network namespace."""
    deadline = time.monotonic() + 10
    while pids := _node_processes():
        if time.monotonic() > deadline:
            raise ClusterError(f"these processes of the node do not end: {sorted(pids)}")
        for pid in pids:
            _kill(pid)
        time.sleep(0.05)


def remove_control_groups() -> None:
    for root in _control_group_roots():
        group = root / CONTROL_GROUP
        for folder, _, _ in os.walk(group, topdown=False):
            _remove_control_group(Path(folder))


def unmount_below(folder: Path) -> None:
    """Detach every mount below `folder`, the deepest first."""
    for mount in sorted(_mounts_below(folder), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    if left := _mounts_below(folder):
        raise ClusterError(f"these mounts of the node could not be detached: {', '.join(left)}")


def remove_shim_sockets() -> None:
    """The shims of containerd put their sockets into one folder for all; a killed one leaves it."""
    for address in NODE_RUN.glob("containerd/io.containerd.runtime.v2.task/*/*/address"):
        socket = Path(address.read_text().removeprefix("unix://"))
        if socket.is_relative_to(_CONTAINERD_RUN):
            socket.unlink(missing_ok=True)


def remove_log_links(pod_logs: Path) -> None:
    """The kubelet links every container's log into /var/log/containers."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(pod_logs):
            link.unlink()


def remove_network_results() -> None:
    """The CNI library keeps files for every pod, named after its sandbox."""
    for sandbox in NODE_RUN.glob("containerd/io.containerd.grpc.v1.cri/sandboxes/*"):
        for result in Path("/var/lib/cni/results").glob(f"*-{sandbox.name}-*"):
            result.unlink()


def remove_empty_leftovers() -> None:
    """What `ip netns` and the kubelet leave although nothing uses it any more."""
    namespaces = Path("/run/netns")
    is_mount = str(namespaces) in (point for point, _ in _mount_table())
    if is_mount and not any(namespaces.iterdir()):
        subprocess.run(["umount", namespaces], check=False, capture_output=True)
    kubelet = Path("/var/lib/kubelet")
    if kubelet.exists() and [entry.name for entry in kubelet.iterdir()] == ["device-plugins"]:
        shutil.rmtree(kubelet)


def _node_processes() -> set[int]:
    pids = set(network.processes())
    for root in _control_group_roots():
        for folder, _, _ in os.walk(root / CONTROL_GROUP):
            pids.update(_pids_of(Path(folder)))
    return pids


def _pids_of(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except (FileNotFoundError, OSError):  # Gone meanwhile, or a threaded group without its own.
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _remove_control_group(group: Path) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # Busy until the kernel has buried the last process.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _control_group_roots() -> list[Path]:
    """One for each hierarchy of cgroup v1, one in all for cgroup v2."""
    return [
        Path(point)
        for point, kind in _mount_table()
        if kind in {"cgroup", "cgroup2"} and point.startswith("/sys/fs/cgroup")
    ]


def _mounts_below(folder: Path) -> list[str]:
    return [point for point, _ in _mount_table() if point.startswith(f"{folder}/")]


def _mount_table() -> list[tuple[str, str]]:
    """(mount point, file system type) of every mount, as /proc/self/mountinfo lists them."""
    table = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        table.append((point, after.split()[0]))
    return table
