"""The programs of a cluster: found on the machine at a usable version, else built from source.

What is built comes from Go modules pinned by the go.mod and go.sum files beside this one, and is
kept in the cache under the hash of those files: another version is another folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from devcluster.layout import SOURCES, ClusterError, cache_root, locked
from devcluster.progress import say

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Program:
    """How to recognise a usable program and how to build it."""

    module: str
    """Folder under go/ that pins its module."""
    package: str
    """Go package of its main function."""
    versions: tuple[Version, Version] | None = None
    """Usable: from the first, below the second; None is always built."""
    version_arguments: tuple[str, ...] = ("--version",)


def _kubernetes(
    name: str, versions: tuple[Version, Version], arguments: tuple[str, ...] = ("--version",)
) -> Program:
    return Program("kubernetes", f"k8s.io/kubernetes/cmd/{name}", versions, arguments)


# One minor version for the servers, because they must not be mixed; kubectl may be one off.
_SERVER: tuple[Version, Version] = ((1, 34, 0), (1, 35, 0))
PROGRAMS: dict[str, Program] = {
    # From 3.5.13 etcd has RequestWatchProgress, without which plain watches fail.
    "etcd": Program("etcd", "go.etcd.io/etcd/server/v3", ((3, 5, 13), (3, 7, 0))),
    "kube-apiserver": _kubernetes("kube-apiserver", _SERVER),
    "kube-controller-manager": _kubernetes("kube-controller-manager", _SERVER),
    "kube-scheduler": _kubernetes("kube-scheduler", _SERVER),
    "kubelet": _kubernetes("kubelet", _SERVER),
    "kube-proxy": _kubernetes("kube-proxy", _SERVER),
    "kubectl": _kubernetes("kubectl", ((1, 33, 0), (1, 36, 0)), ("version", "--client")),
    "helm": Program(
        "helm", "helm.sh/helm/v3/cmd/helm", ((3, 14, 0), (4, 0, 0)), ("version", "--short")
    ),
    "kwok": Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", ((0, 7, 0), (0, 8, 0))),
    "pause": Program("pause", "."),
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl")
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
NODE = ("kubelet", "kube-proxy", "pause", "helm")


def locate(names: Iterable[str]) -> dict[str, Path]:
    """Paths of the programs `names`; builds those that the machine does not have."""
    wanted = tuple(dict.fromkeys(names))
    if any(_find(name) is None for name in wanted):
        with locked(cache_root() / "bin/.lock"):
            # Another process may have built them while this one waited.
            missing = [name for name in wanted if _find(name) is None]
            if missing:
                _build_all(missing)
    return {name: _existing(name) for name in wanted}


def parse_version(text: str) -> Version | None:
    """The first `1.2.3` in what a program says about itself."""
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _existing(name: str) -> Path:
    found = _find(name)
    if found is None:
        raise ClusterError(f"{name} was built but is not in {_built(name).parent}")
    return found


def _find(name: str) -> Path | None:
    if _built(name).exists():
        return _built(name)
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), os.environ.get("PATH", "")]
    candidate = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
    if candidate is None or not _usable(name, Path(candidate)):
        return None
    return Path(candidate)


@functools.cache
def _usable(name: str, path: Path) -> bool:
    program = PROGRAMS[name]
    if program.versions is None:
        return False
    answer = subprocess.run(
        [path, *program.version_arguments], capture_output=True, text=True, timeout=30, check=False
    )
    version = parse_version(answer.stdout)
    lowest, above = program.versions
    if version is not None and lowest <= version < above:
        return True
    shown = ".".join(map(str, version)) if version else "an unknown version"
    say(
        f"{path} is {shown}, not {'.'.join(map(str, lowest))} or newer below "
        f"{'.'.join(map(str, above))}: not used"
    )
    return False


def _built(name: str) -> Path:
    module = PROGRAMS[name].module
    return cache_root() / "bin" / f"{module}-{_fingerprint(module)}" / name


def _fingerprint(module: str) -> str:
    digest = hashlib.sha256()
    for file in sorted((SOURCES / module).iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _build_all(names: list[str]) -> None:
    if shutil.which("go") is None:
        raise ClusterError(
            f"{', '.join(names)}: not found at a usable version, and `go` is not on $PATH to "
            "build them; install Go 1.26 or newer, or set KUBEBUILDER_ASSETS"
        )
    say(
        f"building from Go modules, once: {', '.join(names)} (all of them take about 10 minutes "
        "on two cores and 10 GB of disk, given back afterwards)"
    )
    for name in names:
        _build(name)
    shutil.rmtree(cache_root() / "go")


def _build(name: str) -> None:
    started = time.monotonic()
    program = PROGRAMS[name]
    target = _built(name)
    for older in target.parent.parent.glob(f"{program.module}-*"):
        if older != target.parent:
            shutil.rmtree(older)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    flags = f"-s -w {_version_flags(program.module)}"
    command = ["go", "build", "-trimpath", "-ldflags", flags, "-o", str(unfinished)]
    result = subprocess.run(
        [*command, program.package],
        cwd=SOURCES / program.module,
        env=_go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise ClusterError(
            f"{name} could not be built in {SOURCES / program.module}:\n{result.stderr[-2000:]}"
        )
    unfinished.replace(target)
    say(f"built {name} in {time.monotonic() - started:.0f} s")


def _go_environment() -> dict[str, str]:
    """Go's caches lie in ours: 8 GB that must not linger in the person's own."""
    caches = cache_root() / "go"
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(caches / "build"),
        "GOMODCACHE": str(caches / "mod"),
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOWORK": "off",
    }


def _version_flags(module: str) -> str:
    """Linker flags without which the built program reports no version, or a wrong one."""
    if module == "kubernetes":
        version = _pinned(module, "k8s.io/kubernetes")
        major, minor = version.removeprefix("v").split(".")[:2]
        values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        return " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in values.items())
    if module == "helm":
        return f"-X helm.sh/helm/v3/internal/version.version={_pinned(module, 'helm.sh/helm/v3')}"
    return ""


def _pinned(module: str, dependency: str) -> str:
    text = (SOURCES / module / "go.mod").read_text()
    match = re.search(rf"^(?:require)?\s*{re.escape(dependency)} (v\S+)", text, re.MULTILINE)
    if match is None:
        raise ClusterError(f"{SOURCES / module}/go.mod does not require {dependency}")
    return match[1]
