"""Image tags, Debian sources and the little that decides what is built, pushed and removed."""

import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devcluster import images
from devcluster.base_image import debian_sources
from devcluster.image_engine import Build, CommandLine, run
from devcluster.images import OPERATOR, TRAINER, TRAINER_CUDA, Options, content_tag
from devcluster.layout import ClusterError
from devcluster.node_config import REGISTRY

STANZAS = """\
Types: deb
# http://example.org/commented
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb-src
URIs: http://mirror.example/source
Suites: bookworm

Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Enabled: no
"""


@dataclass
class RecordingEngine:
    """An engine whose store is a list."""

    stored: list[str] = field(default_factory=list)
    built: list[Build] = field(default_factory=list)

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def has_image(self, reference: str) -> bool:
        return reference in self.stored

    def build(self, build: Build) -> None:
        self.built.append(build)
        self.stored.append(build.reference)

    def push(self, reference: str, destination: str, *, plain_http: bool) -> None:
        raise AssertionError(f"{reference} pushed to {destination}, {plain_http=}")

    def references(self) -> list[str]:
        return list(self.stored)

    def remove(self, references: Sequence[str]) -> None:
        self.stored = [each for each in self.stored if each not in references]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    made = RecordingEngine()
    monkeypatch.setattr(images, "make_engine", lambda _: made)
    return made


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with every file that goes into an image."""
    for image in (OPERATOR, TRAINER, TRAINER_CUDA):
        for name in image.inputs:
            path = tmp_path / name / "module.py" if name in image.code else tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    monkeypatch.setattr(images, "REPOSITORY", tmp_path)
    return tmp_path


def test_every_input_of_an_image_exists() -> None:
    for image in (OPERATOR, TRAINER, TRAINER_CUDA):
        assert [name for name in image.inputs if not (images.REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("image", [OPERATOR, TRAINER, TRAINER_CUDA])
def test_everything_a_dockerfile_copies_is_hashed(image: images.Image) -> None:
    text = (images.REPOSITORY / image.dockerfile).read_text()
    text = text.replace("${REQUIREMENTS}", Path(image.requirements).name)
    lines = [line.split() for line in text.splitlines() if line.startswith("COPY ")]
    copied = {source for line in lines for source in line[1:-1]}
    assert copied == set(image.inputs) - {".dockerignore", image.dockerfile}


@pytest.mark.parametrize("name", TRAINER.inputs)
def test_any_input_changes_the_tag(repository: Path, name: str) -> None:
    before = content_tag(TRAINER, Options())
    path = repository / name
    (path / "module.py" if path.is_dir() else path).write_text("changed")
    assert content_tag(TRAINER, Options()) != before


def test_only_inputs_change_the_tag(repository: Path) -> None:
    before = content_tag(TRAINER, Options())
    (repository / "README.md").write_text("changed")
    (repository / "crds/finetune_api/__pycache__").mkdir()
    (repository / "crds/finetune_api/__pycache__/module.pyc").write_text("changed")
    assert content_tag(TRAINER, Options()) == before
    assert content_tag(TRAINER, Options(base_image="registry.example/debian:12")) != before
    assert content_tag(TRAINER_CUDA, Options()).endswith("-cuda")


@pytest.mark.usefixtures("repository")
def test_a_build_happens_once_and_replaces_the_earlier_one(engine: RecordingEngine) -> None:
    others = ["localhost/finetune-base:bookworm", "localhost/finetune-trainer:0123456789ab-cuda"]
    engine.stored = [*others, "localhost/finetune-trainer:0123456789ab"]
    built = images.build(["trainer"])
    assert images.build(["trainer"]) == built
    assert engine.stored == [*others, built["trainer"]]
    assert len(engine.built) == 1


@pytest.mark.usefixtures("repository")
def test_the_cuda_image_has_its_own_requirements(engine: RecordingEngine) -> None:
    images.build(["trainer"], Options(cuda=True, base_image="registry.example/debian:12"))
    assert engine.built[0].arguments == {
        "REQUIREMENTS": "requirements-cuda.txt",
        "BASE_IMAGE": "registry.example/debian:12",
    }


@pytest.mark.usefixtures("repository")
def test_certificates_and_indexes_reach_the_build_as_secrets(
    engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/company.pem")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://me:a b@pypi.example/simple")
    seen: list[str] = []

    def build(build: Build) -> None:
        seen.append(build.secrets["build.env"].read_text())
        assert build.secrets["ca.crt"] == Path("/etc/company.pem")
        assert not any("pypi.example" in value for value in build.arguments.values())

    monkeypatch.setattr(engine, "build", build)
    images.build(["operator"])
    assert "UV_DEFAULT_INDEX='https://me:a b@pypi.example/simple'\n" in seen[0]


@pytest.mark.parametrize(
    ("registry", "plain"),
    [
        ("10.99.0.1:5000", True),
        ("[::1]:5000", True),
        ("localhost:5000", True),
        ("ghcr.io/acme", False),
        ("registry.example:5000", False),
    ],
)
def test_only_registries_named_by_address_speak_plain_http(registry: str, *, plain: bool) -> None:
    assert images.is_plain_http(registry) is plain


class _Manifests(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/v2/acme/finetune-operator/manifests/1" else 404)
        if self.path.startswith("/v2/acme"):
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def registry() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Manifests) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_registry_is_asked_for_the_tag(registry: str) -> None:
    assert images.registry_has(f"{registry}/acme/finetune-operator:1")
    assert not images.registry_has(f"{registry}/acme/finetune-operator:2")


def test_a_web_server_is_no_registry(registry: str) -> None:
    with pytest.raises(ClusterError, match="it is no image registry"):
        images.registry_has(f"{registry}/finetune-operator:1")


def test_without_the_node_its_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HOST_LINK", "no-such-link")
    with pytest.raises(ClusterError, match="the node is not up"):
        images.registry_has(f"{REGISTRY}/finetune-operator:1")


def test_a_silent_registry_is_an_error() -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 does not answer .* start the cluster"):
        images.registry_has("127.0.0.1:9/finetune-operator:1")


def test_debian_sources_are_those_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(STANZAS)
    (tmp_path / "sources.list.d/more.list").write_text(
        "# deb http://mirror.example/no bookworm main\n"
        "deb [signed-by=/key] http://mirror.example/security bookworm-security main\n"
        "deb http://mirror.example/other nodistro main\n"
    )
    assert debian_sources(tmp_path) == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/security", "bookworm-security"),
    ]


def test_a_machine_without_debian_sources_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--base-image"):
        debian_sources(tmp_path)


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"`sh -c` ended with 3; .*\nlast words"):
        run(["sh", "-c", "echo last words >&2; exit 3"], tmp_path / "log")


def test_docker_and_podman_are_called_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    for program in ("docker", "podman"):
        script = tmp_path / program
        script.write_text(f'#!/bin/sh\necho {program} "$@" >> {calls}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        CommandLine(program).push("localhost/a:1", "10.0.0.1:5000/a:1", plain_http=True)
    assert calls.read_text().splitlines() == [
        "docker tag localhost/a:1 10.0.0.1:5000/a:1",
        "docker push 10.0.0.1:5000/a:1",
        "podman tag localhost/a:1 10.0.0.1:5000/a:1",
        "podman push --tls-verify=false 10.0.0.1:5000/a:1",
    ]
