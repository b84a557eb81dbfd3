"""The Debian image that our Dockerfiles start from, or a local stand-in for it.

Where no image registry is reachable, debootstrap makes the stand-in from the machine's own Debian
mirror, so that a company's mirror serves the build as well.
"""

import re
import shutil
from pathlib import Path

from devcluster.image_engine import Buildah, run
from devcluster.layout import ClusterError
from devcluster.packages import find, install
from devcluster.progress import say

DEBIAN_IMAGE = "docker.io/library/debian:bookworm-slim"
SUITE = "bookworm"
STAND_IN = f"localhost/finetune-base:{SUITE}"
APT_SOURCES = Path("/etc/apt")
# What debootstrap leaves behind and apt can fetch again.
LEFTOVERS = ("var/lib/apt/lists", "var/cache/apt", "var/log/bootstrap.log", "var/cache/debconf")


def ensure_base_image(buildah: Buildah) -> str:
    """Return the reference of a Debian image in the store, pulled if possible, else made here."""
    for reference in (STAND_IN, DEBIAN_IMAGE):
        if buildah.has_image(reference):
            return reference
    if buildah.pull(DEBIAN_IMAGE):
        return DEBIAN_IMAGE
    say(f"{DEBIAN_IMAGE} cannot be pulled: making a stand-in with debootstrap")
    _make_stand_in(buildah)
    return STAND_IN


def _make_stand_in(buildah: Buildah) -> None:
    if not find("debootstrap"):
        install(["debootstrap"], purpose="a base image without an image registry")
    sources = debian_sources(APT_SOURCES)
    with buildah.working_container("scratch") as (container, root):
        mirror = next(uri for uri, suite in sources if suite == SUITE)
        run(["debootstrap", "--variant=minbase", SUITE, str(root), mirror], buildah.log)
        _clean(root)
        lines = [f"deb {uri} {suite} main\n" for uri, suite in sources]
        (root / "etc/apt/sources.list").write_text("".join(lines))
        buildah.commit(container, STAND_IN)


def _clean(root: Path) -> None:
    for name in LEFTOVERS:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
        else:
            path.unlink(missing_ok=True)


def debian_sources(apt_directory: Path) -> list[tuple[str, str]]:
    """Return (URI, suite) of every enabled source that serves SUITE or its updates.

    Raises:
        ClusterError: the machine has no source for SUITE itself.
    """
    found: list[tuple[str, str]] = []
    for path in sorted(apt_directory.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            found += _stanza_sources(stanza)
    for path in [apt_directory / "sources.list", *apt_directory.glob("sources.list.d/*.list")]:
        if path.exists():
            found += _one_line_sources(path.read_text())
    wanted = [(uri, suite) for uri, suite in found if suite.startswith(SUITE)]
    if not any(suite == SUITE for _, suite in wanted):
        raise ClusterError(
            f"no apt source for Debian {SUITE} in {apt_directory}: add one, or make "
            f"{DEBIAN_IMAGE} pullable, or pass --base-image"
        )
    return list(dict.fromkeys(wanted))


def _stanza_sources(stanza: str) -> list[tuple[str, str]]:
    lines = [line for line in stanza.splitlines() if not line.startswith("#")]
    fields = dict(re.findall(r"^([\w-]+):[ \t]*(.+)$", "\n".join(lines), flags=re.MULTILINE))
    if "deb" not in fields.get("Types", "").split() or fields.get("Enabled") == "no":
        return []
    suites = fields.get("Suites", "").split()
    return [(uri, suite) for uri in fields.get("URIs", "").split() for suite in suites]


def _one_line_sources(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)", text, flags=re.MULTILINE)
