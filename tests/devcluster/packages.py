"""What a node needs from the machine's distribution: containerd, runc, CNI plugins and a few."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.layout import ClusterError
from devcluster.progress import say

PACKAGE_OF_PROGRAM = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "docker-registry": "docker-registry",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "runc": "runc",
}
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def find(program: str) -> str | None:
    """Path of a program; also in the folders that a plain user's $PATH leaves out."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")


def required(program: str) -> str:
    path = find(program)
    if path is None:
        raise ClusterError(
            f"{program} is not installed: install {PACKAGE_OF_PROGRAM.get(program, program)}"
        )
    return path


def cni_folder() -> Path | None:
    return next((folder for folder in _CNI_FOLDERS if (folder / "bridge").exists()), None)


def ensure_node_packages() -> None:
    """Install what is missing, on Debian and its children; say what to install elsewhere."""
    missing = {package for program, package in PACKAGE_OF_PROGRAM.items() if not find(program)}
    if cni_folder() is None:
        missing.add("containernetworking-plugins")
    if missing:
        install(sorted(missing), purpose="a node")


def install(packages: list[str], *, purpose: str) -> None:
    """`apt-get install` without starting the services that come with the packages."""
    listed = " ".join(packages)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(
            f"{purpose} needs these Debian packages or their like: {listed}; install them "
            "(as root on Debian that happens by itself)"
        )
    say(f"installing Debian packages, needed for {purpose}: {listed}")
    with _no_services():
        if _apt("install", "--yes", "--no-install-recommends", *packages).returncode == 0:
            return
        # A machine whose package lists are missing or old.
        _apt("update")
        result = _apt("install", "--yes", "--no-install-recommends", *packages)
    if result.returncode != 0:
        raise ClusterError(f"apt-get could not install {listed}:\n{result.stderr[-1000:]}")


def _apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "--quiet", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )


_POLICY = "#!/bin/sh\n# Written by devcluster while it installs packages.\nexit 101\n"


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian starts a package's service unless this file says no: ours run under our own care."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists() and policy.read_text() != _POLICY:
        yield
        return
    # Ours may be there already, left by a process that was killed.
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
