"""Sources of other machines: an object store and a hub, both served from this process."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from finetune_api.failures import Reason
from finetune_api.trainer import JobFailure
from finetune_trainer.sources import fetch as fetching
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted, dataset_files, model_files

COMMIT = "a" * 40


def wanted(kind: str) -> Wanted:
    if kind == "model":
        return Wanted(
            "model.source",
            Reason.MODEL_NOT_FOUND,
            lambda names: model_files(names, with_code=False),
        )
    return Wanted("dataset.source", Reason.DATASET_NOT_FOUND, dataset_files)


def fetch_names(uri: str, kind: str, target: Path) -> list[str]:
    """Fetch and return the names of the files that arrived."""
    fetch(Source.parse(uri, f"{kind}.source"), target, wanted(kind), target.parent)
    files = (path for path in target.rglob("*") if path.is_file() and path.name != fetching.MARKER)
    return sorted(str(path.relative_to(target)) for path in files)


def failure_of(uri: str, kind: str, target: Path) -> JobFailure:
    with pytest.raises(JobFailure) as caught:
        fetch_names(uri, kind, target)
    assert not target.exists()
    return caught.value


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(store: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="things")
    for key in ("m/model.safetensors", "m/config.json", "m/optimizer.pt", "d/train.jsonl", "d.csv"):
        client.put_object(Bucket="things", Key=key, Body=key.encode())
    return client


def test_objects_below_a_prefix(bucket: Any, tmp_path: Path) -> None:
    assert fetch_names("s3://things/m", "model", tmp_path / "m") == [
        "config.json",
        "model.safetensors",
    ]
    assert fetch_names("s3://things/d/", "dataset", tmp_path / "d") == ["train.jsonl"]


def test_a_single_object(bucket: Any, tmp_path: Path) -> None:
    assert fetch_names("s3://things/d.csv", "dataset", tmp_path / "d") == ["d.csv"]
    assert (tmp_path / "d/d.csv").read_text() == "d.csv"


def test_objects_that_are_not_there(bucket: Any, tmp_path: Path) -> None:
    failure = failure_of("s3://things/nothing", "dataset", tmp_path / "d")
    assert failure.reason is Reason.DATASET_NOT_FOUND
    assert failure_of("s3://nowhere/m", "model", tmp_path / "m").reason is Reason.MODEL_NOT_FOUND


def test_a_store_without_credentials(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    failure = failure_of("s3://things/m", "model", tmp_path / "m")
    assert failure.reason is Reason.SOURCE_UNAUTHORIZED
    assert "name a Secret with AWS_ACCESS_KEY_ID" in failure.message


def test_a_store_that_is_not_there(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    failure = failure_of("s3://things/m", "model", tmp_path / "m")
    assert failure.reason is Reason.SOURCE_UNAVAILABLE


FILES = {
    "models/acme/tiny": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickled",
        "original/consolidated.pth": b"more",
    },
    "models/acme/gated": {},
    "datasets/acme/chats": {"data/train.jsonl": b"{}\n", "README.md": b"", "image.png": b""},
}


class Hub(BaseHTTPRequestHandler):
    """The endpoints of a hub that a download needs; acme/gated is forbidden."""

    seen: list[str] = []  # noqa: RUF012 - one list for all requests

    def do_HEAD(self) -> None:
        self._route(with_body=False)

    def do_GET(self) -> None:
        self._route(with_body=True)

    def _route(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        self.seen.append(path)
        if "acme/gated" in path:
            return self._answer(403, b"gated", {"X-Error-Code": "GatedRepo"}, with_body)
        for repository, files in FILES.items():
            if path.startswith(f"api/{repository}/revision/nope"):
                break
            if path.startswith(f"api/{repository}/tree"):
                tree = [_entry(name, content) for name, content in files.items()]
                return self._answer(200, json.dumps(tree).encode(), {}, with_body)
            if path.startswith(f"api/{repository}"):
                info = {"id": repository.split("/", 1)[1], "sha": COMMIT, "siblings": []}
                return self._answer(200, json.dumps(info).encode(), {}, with_body)
            start = f"{repository.removeprefix('models/')}/resolve/{COMMIT}/"
            if path.startswith(start) and path.removeprefix(start) in files:
                content = files[path.removeprefix(start)]
                tag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
                return self._answer(200, content, headers, with_body)
        code = "RevisionNotFound" if "nope" in path else "RepoNotFound"
        return self._answer(404, b"no", {"X-Error-Code": code}, with_body)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # The client reads HF_ENDPOINT when it is imported; a pod sets it before.
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    Hub.seen.clear()
    yield Hub.seen
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_comes_without_pickled_weights(hub: list[str], tmp_path: Path) -> None:
    assert fetch_names("hf://acme/tiny", "model", tmp_path / "m") == [
        "config.json",
        "model.safetensors",
    ]
    assert (tmp_path / "m/model.safetensors").read_text() == "weights"
    hub.clear()
    fetch_names("hf://acme/tiny", "model", tmp_path / "m")
    assert hub == []


def test_a_dataset_of_the_hub(hub: list[str], tmp_path: Path) -> None:
    assert fetch_names("hf://acme/chats", "dataset", tmp_path / "d") == [
        "README.md",
        "data/train.jsonl",
    ]


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        (
            "hf://acme/none",
            Reason.MODEL_NOT_FOUND,
            "does not exist or is private: correct the name",
        ),
        ("hf://acme/tiny@nope", Reason.MODEL_NOT_FOUND, "the repository has no such revision"),
        (
            "hf://acme/gated",
            Reason.SOURCE_UNAUTHORIZED,
            "HF_TOKEN that may read it in model.secret",
        ),
    ],
)
def test_what_the_hub_refuses(
    hub: list[str], tmp_path: Path, uri: str, reason: Reason, message: str
) -> None:
    failure = failure_of(uri, "model", tmp_path / "m")
    assert (failure.reason, message in failure.message) == (reason, True), failure.message


def test_a_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    failure = failure_of("hf://acme/tiny", "model", tmp_path / "m")
    assert failure.reason is Reason.SOURCE_UNAVAILABLE


def test_a_hub_that_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    failure = failure_of("hf://acme/tiny", "model", tmp_path / "m")
    assert failure.reason is Reason.SOURCE_UNAVAILABLE
    assert os.linesep not in failure.message
