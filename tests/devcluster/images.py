"""Build the project's images and push them to a registry; what is there already is left alone.

    python -m devcluster.images push                                # to the cluster made here
    python -m devcluster.images push --registry ghcr.io/acme --cuda # for a cluster with GPUs
    python -m devcluster.images build --engine docker operator
    python -m devcluster.images list
    python -m devcluster.images prune

A tag is the hash of all that goes into the image, so a reference never changes its meaning.
Registries behind a company's own CA: $SSL_CERT_FILE is used during the build and not kept in the
image, and so are PIP_INDEX_URL, UV_DEFAULT_INDEX and the like.
"""

import argparse
import hashlib
import ipaddress
import os
import re
import shlex
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from devcluster.base_image import ensure_base_image
from devcluster.containers import registry_tags
from devcluster.image_engine import Build, Buildah, CommandLine, Engine
from devcluster.layout import ClusterError, cache_root
from devcluster.network import HOST_LINK
from devcluster.node_config import REGISTRY
from devcluster.progress import say

REPOSITORY = Path(__file__).parents[2]
LOCAL = "localhost"
# Settings of pip and uv that a build takes over from the environment of the person who builds.
PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
REGISTRY_HEADER = "Docker-Distribution-Api-Version"
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)

EngineName = Literal["buildah", "docker", "podman"]


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of ours; paths are relative to the repository."""

    name: str
    dockerfile: str
    requirements: str
    code: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    """Ends the tag, so that variants stay apart."""

    @property
    def inputs(self) -> tuple[str, ...]:
        shared = (".dockerignore", "trainer-image/install-requirements.sh")
        return (*shared, self.dockerfile, self.requirements, *self.code)


OPERATOR = Image(
    name="finetune-operator",
    dockerfile="operator/Dockerfile",
    requirements="operator/requirements.txt",
    code=("crds/finetune_api", "operator/finetune_operator"),
)
TRAINER = Image(
    name="finetune-trainer",
    dockerfile="trainer-image/Dockerfile",
    requirements="trainer-image/requirements.txt",
    code=("crds/finetune_api", "trainer-image/finetune_trainer"),
)
TRAINER_CUDA = replace(
    TRAINER,
    requirements="trainer-image/requirements-cuda.txt",
    arguments={"REQUIREMENTS": "requirements-cuda.txt"},
    suffix="-cuda",
)
NAMES = ("operator", "trainer")
FIRST_BUILD = {"operator": "half a minute", "trainer": "some minutes"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to build. Without `base_image` buildah makes a stand-in where none can be pulled."""

    engine: EngineName = "buildah"
    base_image: str | None = None
    cuda: bool = False

    def image(self, name: str) -> Image:
        return {"operator": OPERATOR, "trainer": TRAINER_CUDA if self.cuda else TRAINER}[name]


DEFAULTS = Options()


def build_and_push(
    names: Sequence[str] = NAMES,
    *,
    registry: str = REGISTRY,
    options: Options = DEFAULTS,
) -> dict[str, str]:
    """Return the reference of each image, by name, once the registry has it."""
    pushed: dict[str, str] = {}
    for name in names:
        image = options.image(name)
        pushed[name] = f"{registry}/{image.name}:{content_tag(image, options)}"
        if registry_has(pushed[name]):
            say(f"{pushed[name]} is in the registry")
            continue
        local = build([name], options)[name]
        engine = make_engine(options.engine)
        with engine.exclusive():
            say(f"pushing {pushed[name]}")
            engine.push(local, pushed[name], plain_http=is_plain_http(registry))
        if registry == REGISTRY:
            remove_superseded_tags(pushed[name])
    return pushed


def build(names: Sequence[str] = NAMES, options: Options = DEFAULTS) -> dict[str, str]:
    """Return the reference of each image in the engine's own store, by name.

    Builds of earlier contents are removed: together they would fill a disk.
    """
    engine = make_engine(options.engine)
    built: dict[str, str] = {}
    with engine.exclusive():
        for name in names:
            image = options.image(name)
            built[name] = f"{LOCAL}/{image.name}:{content_tag(image, options)}"
            if not engine.has_image(built[name]):
                say(f"building {built[name]} ({FIRST_BUILD[name]} the first time)")
                _build(engine, image, built[name], options)
                prune(engine, image, keep=built[name])
    return built


def prune(engine: Engine, image: Image, *, keep: str) -> None:
    """Remove from the engine's store what earlier contents of this image left."""
    ours = re.compile(rf"{LOCAL}/{image.name}:[0-9a-f]{{12}}{image.suffix}")
    engine.remove([each for each in engine.references() if ours.fullmatch(each) and each != keep])


def content_tag(image: Image, options: Options) -> str:
    """Hash of everything that goes into the image: 12 hexadecimal digits and the suffix."""
    digest = hashlib.sha256(repr(options.base_image).encode())
    for path in _files(image.inputs):
        digest.update(f"{path.relative_to(REPOSITORY)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12] + image.suffix


def _files(inputs: Sequence[str]) -> Iterator[Path]:
    for name in inputs:
        path = REPOSITORY / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (each for each in found if each.is_file() and "__pycache__" not in each.parts)


def make_engine(name: EngineName) -> Engine:
    return Buildah(cache_root() / "buildah") if name == "buildah" else CommandLine(name)


def _build(engine: Engine, image: Image, reference: str, options: Options) -> None:
    base_image = options.base_image
    if base_image is None and isinstance(engine, Buildah):
        base_image = ensure_base_image(engine)
    base = {"BASE_IMAGE": base_image} if base_image else {}
    with _build_secrets() as secrets:
        engine.build(
            Build(
                context=REPOSITORY,
                dockerfile=image.dockerfile,
                reference=reference,
                arguments={**image.arguments, **base},
                secrets=secrets,
            )
        )


@contextmanager
def _build_secrets() -> Iterator[dict[str, Path]]:
    """Yield the files that a build sees but no layer keeps: the Dockerfiles say what they hold."""
    certificates = os.environ.get("SSL_CERT_FILE")
    settings = [
        f"{name}={shlex.quote(os.environ[name])}\n" for name in PASSED_ON if name in os.environ
    ]
    with tempfile.NamedTemporaryFile("w", prefix="build-env-") as file:
        file.writelines(settings)
        file.flush()
        secrets = {"build.env": Path(file.name)}
        yield {**secrets, "ca.crt": Path(certificates)} if certificates else secrets


def is_plain_http(registry: str) -> bool:
    """Whether a registry is taken to speak http: one named by address, or on this machine."""
    host = registry.partition("/")[0].rsplit(":", 1)[0]
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return True


def registry_has(reference: str) -> bool:
    """Whether the registry shows this reference to somebody without credentials.

    Raises:
        ClusterError: nothing answers, or not as an image registry does.
    """
    try:
        _ask_registry(reference, "HEAD")
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND and REGISTRY_HEADER not in error.headers:
            raise ClusterError(
                f"{reference.partition('/')[0]} answers, but it is no image registry: name yours "
                "with --registry"
            ) from error
        return False
    return True


def remove_superseded_tags(reference: str) -> None:
    """Leave no other tag beside this one; the node's registry gives the space back at its start."""
    repository = reference.rpartition(":")[0]
    tags = registry_tags(repository.removeprefix(f"{REGISTRY}/"))
    # Two tags may share a manifest: contents that differ, an image that does not.
    digests = {_digest(f"{repository}:{tag}") for tag in tags} - {_digest(reference)}
    for digest in digests:
        _ask_registry(f"{repository}:{digest}", "DELETE")


def _digest(reference: str) -> str:
    return _ask_registry(reference, "HEAD")["Docker-Content-Digest"]


def _ask_registry(reference: str, method: str) -> dict[str, str]:
    """Ask about a manifest by tag or digest and return the answer's headers."""
    host, _, path = reference.partition("/")
    # Without the node its address belongs to somebody else's network.
    if host == REGISTRY and not Path("/sys/class/net", HOST_LINK).exists():
        raise ClusterError(
            "the node is not up, and so is not its registry: start it with `python -m devcluster "
            "up`, or name a registry of yours with --registry"
        )
    name, _, tag = path.partition(":")
    scheme = "http" if is_plain_http(host) else "https"
    url = f"{scheme}://{host}/v2/{name}/manifests/{tag}"
    request = urllib.request.Request(url, method=method, headers={"Accept": MANIFEST_TYPES})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return dict(response.headers)
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise ClusterError(
            f"the registry {host} does not answer ({error}): start the cluster, or name yours "
            "with --registry"
        ) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devcluster.images", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=("build", "push", "list", "prune"))
    parser.add_argument("names", nargs="*", metavar="IMAGE", help="operator, trainer; default both")
    parser.add_argument("--registry", default=REGISTRY, help="HOST[:PORT][/PATH] to push to")
    parser.add_argument("--engine", choices=("buildah", "docker", "podman"), default="buildah")
    parser.add_argument("--base-image", help="a Debian bookworm image of your own")
    parser.add_argument("--cuda", action="store_true", help="the trainer image for GPUs")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    options = Options(engine=arguments.engine, base_image=arguments.base_image, cuda=arguments.cuda)
    try:
        _act(arguments.action, arguments.names or NAMES, arguments.registry, options)
    except ClusterError as error:
        sys.exit(f"images: {error}")


def _act(action: str, names: Sequence[str], registry: str, options: Options) -> None:
    match action:
        case "build":
            print(*build(names, options).values(), sep="\n")
        case "push":
            print(*build_and_push(names, registry=registry, options=options).values(), sep="\n")
        case "list":
            print(*make_engine(options.engine).references(), sep="\n")
        case "prune":
            for name in names:
                image = options.image(name)
                keep = f"{LOCAL}/{image.name}:{content_tag(image, options)}"
                prune(make_engine(options.engine), image, keep=keep)


if __name__ == "__main__":
    main()
