"""The programs that build container images: buildah, or docker or podman on request."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from devcluster.layout import ClusterError, locked
from devcluster.packages import find, install


@dataclass(frozen=True, kw_only=True)
class Build:
    """One image to build; paths are relative to `context`."""

    context: Path
    dockerfile: str
    reference: str
    arguments: Mapping[str, str]
    secrets: Mapping[str, Path] = field(default_factory=dict)

    def options(self) -> list[str]:
        arguments = [f"--build-arg={name}={value}" for name, value in self.arguments.items()]
        secrets = [f"--secret=id={name},src={path}" for name, path in self.secrets.items()]
        return [*arguments, *secrets, "--tag", self.reference, "--file", self.dockerfile]


class Engine(Protocol):
    def exclusive(self) -> AbstractContextManager[None]: ...
    def has_image(self, reference: str) -> bool: ...
    def build(self, build: Build) -> None: ...
    def push(self, reference: str, destination: str, *, plain_http: bool) -> None: ...
    def references(self) -> list[str]: ...
    def remove(self, references: Sequence[str]) -> None: ...


def run(command: Sequence[str], log: Path | None = None, **environment: str) -> None:
    """Run a command with its output shown, or kept in a log whose end is shown if it fails.

    Raises:
        ClusterError: the command failed.
    """
    with log.open("a") if log else nullcontext() as file:
        done = subprocess.run(
            command,
            check=False,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT if file else None,
        )
    if done.returncode != 0:
        tail = "".join(log.open(errors="replace").readlines()[-30:]) if log else ""
        where = f"the end of {log}:\n{tail}" if log else "its output is above"
        raise ClusterError(f"`{shlex.join(command[:2])}` ended with {done.returncode}; {where}")


def output(command: Sequence[str], **environment: str) -> str:
    """Run a command and return its standard output."""
    done = subprocess.run(
        command, check=True, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


class Buildah:
    """buildah with a store of its own, so that nothing else on the machine is touched."""

    def __init__(self, directory: Path) -> None:
        if not find("buildah"):
            install(["buildah"], purpose="building images (or use --engine docker or podman)")
        self.log = directory / "build.log"
        self._lock = directory / "lock"
        self._temporary = directory / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._signature_policy = directory / "policy.json"
        self._signature_policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        storage = directory / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\n'
            f'graphroot = "{directory / "graph"}"\nrunroot = "{directory / "run"}"\n'
        )
        self._environment = {
            "CONTAINERS_STORAGE_CONF": str(storage),
            "TMPDIR": str(self._temporary),
        }

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only one at work; what a killed one left, which may be gigabytes, is removed."""
        with locked(self._lock):
            self.log.unlink(missing_ok=True)
            self._run("rm", "--all")
            shutil.rmtree(self._temporary)
            self._temporary.mkdir()
            yield

    def has_image(self, reference: str) -> bool:
        return self._succeeds("inspect", "--type", "image", reference)

    def pull(self, reference: str) -> bool:
        return self._succeeds("pull", *self._policy(), reference)

    def build(self, build: Build) -> None:
        # chroot isolation and the host's network: the default would set up bridges and iptables.
        self._run(
            "bud", "--layers", "--isolation=chroot", "--network=host",
            *self._policy(), *build.options(), str(build.context),
        )  # fmt: skip

    def push(self, reference: str, destination: str, *, plain_http: bool) -> None:
        # zstd: the node unpacks it several times as fast as gzip.
        self._run(
            "push", *self._policy(), f"--tls-verify={str(not plain_http).lower()}",
            "--format=oci", "--compression-format=zstd", "--compression-level=1",
            reference, f"docker://{destination}",
        )  # fmt: skip

    def references(self) -> list[str]:
        images = json.loads(self._output("images", "--json") or "[]")
        return [name for image in images for name in image.get("names") or []]

    def remove(self, references: Sequence[str]) -> None:
        if references:
            self._run("rmi", *references)

    @contextmanager
    def working_container(self, image: str) -> Iterator[tuple[str, Path]]:
        """Yield the name and the mounted root of a container that is removed afterwards."""
        name = self._output("from", *self._policy(), image).strip()
        try:
            yield name, Path(self._output("mount", name).strip())
        finally:
            self._run("rm", name)

    def commit(self, container: str, reference: str) -> None:
        self._run("commit", *self._policy(), container, reference)

    def _policy(self) -> tuple[str, str]:
        return "--signature-policy", str(self._signature_policy)

    def _run(self, *arguments: str) -> None:
        run(["buildah", *arguments], self.log, **self._environment)

    def _output(self, *arguments: str) -> str:
        return output(["buildah", *arguments], **self._environment)

    def _succeeds(self, *arguments: str) -> bool:
        done = subprocess.run(
            ["buildah", *arguments],
            check=False, env=os.environ | self._environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode == 0


class CommandLine:
    """docker or podman, as the person who builds has set it up."""

    def __init__(self, program: str) -> None:
        self._program = program

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def has_image(self, reference: str) -> bool:
        inspect = [self._program, "image", "inspect", reference]
        return subprocess.run(inspect, check=False, capture_output=True).returncode == 0

    def build(self, build: Build) -> None:
        run([self._program, "build", *build.options(), str(build.context)], DOCKER_BUILDKIT="1")

    def push(self, reference: str, destination: str, *, plain_http: bool) -> None:
        # docker takes registries without TLS from its daemon's settings instead.
        insecure = ["--tls-verify=false"] if plain_http and self._program == "podman" else []
        run([self._program, "tag", reference, destination])
        run([self._program, "push", *insecure, destination])

    def references(self) -> list[str]:
        listing = output([self._program, "images", "--format", "{{.Repository}}:{{.Tag}}"])
        return listing.splitlines()

    def remove(self, references: Sequence[str]) -> None:
        if references:
            run([self._program, "rmi", *references])
