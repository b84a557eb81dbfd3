"""The container runtime as its administrator sees it: containers and images, through `ctr`."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from devcluster.archive import write_image_archive
from devcluster.layout import ClusterError, Layout
from devcluster.node_config import CONTAINERD_SOCKET, PAUSE_IMAGE, REGISTRY
from devcluster.packages import required
from devcluster.progress import say


def answers() -> bool:
    return _ctr("version").returncode == 0


def remove_all() -> bool:
    """Forget every container, with its writable layer; whether there was any."""
    containers = _lines("containers", "list", "--quiet")
    for container in containers:
        _ctr("tasks", "delete", "--force", container)
        _ctr("containers", "delete", container)
    return bool(containers)


def images() -> dict[str, str]:
    """Digest by reference, for every image on the node."""
    rows = [line.split() for line in _lines("images", "list")[1:]]
    return {row[0]: row[2] for row in rows}


def import_archive(path: Path) -> None:
    """Import a docker-archive under the name written in it."""
    result = _ctr("images", "import", str(path))
    if result.returncode != 0:
        raise ClusterError(f"containerd does not take the image {path}: {result.stderr.strip()}")


def import_pause(layout: Layout, program: Path) -> None:
    """The image of every pod's sandbox, unless it is there from before."""
    if PAUSE_IMAGE not in images():
        archive = layout.state / "pause.tar"
        write_image_archive(
            archive, image=PAUSE_IMAGE, files={"pause": program}, entrypoint=["/pause"]
        )
        import_archive(archive)
        archive.unlink()


def remove_superseded_images() -> None:
    """Remove images of the registry that it no longer serves: each may be gigabytes.

    containerd names an image by tag, by digest and by its configuration; all of them must go.
    Images that were imported under another name stay.
    """
    present = images()
    kept = {digest for reference, digest in present.items() if _is_wanted(reference)}
    superseded = [reference for reference, digest in present.items() if digest not in kept]
    if superseded:
        say(f"removing {len(superseded)} references to images that are no longer in the registry")
        _ctr("images", "delete", "--sync", *superseded)


def _is_wanted(reference: str) -> bool:
    if not reference.startswith(f"{REGISTRY}/"):
        return not reference.startswith("sha256:")
    repository, _, tag = reference.removeprefix(f"{REGISTRY}/").rpartition(":")
    return "@" not in repository and tag in registry_tags(repository)


def registry_tags(repository: str) -> list[str]:
    """Tags of one repository of the node's registry; none if it does not exist."""
    request = urllib.request.Request(f"http://{REGISTRY}/v2/{repository}/tags/list")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)["tags"] or []
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise


def _lines(*arguments: str) -> list[str]:
    result = _ctr(*arguments)
    if result.returncode != 0:
        raise ClusterError(f"`ctr {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout.splitlines()


def _ctr(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [required("ctr"), "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
