"""One real node with the operator on it, and a tiny model and data in a claim, for all tests."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import Cluster, images
from e2e.site import CLAIM_SIZE, MODELS, SOURCES, Site
from harness import install
from harness.kubectl import Kubectl
from unit.trainer.builders import (
    chat_rows,
    label_rows,
    preference_rows,
    save_model,
    turning_rows,
    write_rows,
)

STAND_IN_GPUS = 2


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The one-node cluster; one that is up already, for example from `make demo`, is used."""
    if os.geteuid() != 0 or sys.platform != "linux":
        reason = "end-to-end tests start a real node, which needs root on Linux"
        if os.environ.get("FINETUNE_REQUIRE_E2E"):
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster.node(gpus=STAND_IN_GPUS)
    was_up = cluster.running()
    cluster.up()
    yield cluster
    if not was_up:
        cluster.down()


@pytest.fixture(scope="session")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The operator installed by its chart, and claims with what jobs need."""
    kubectl = Kubectl(cluster.bin("kubectl"), cluster.kubeconfig, "e2e")
    built = images.build_and_push()
    # The GPUs are stand-ins: the trainer may run on the CPU although its plan has GPUs.
    install.install_operator(kubectl, cluster.bin("helm"), built, "trainer.env.FINETUNE_DEVICE=cpu")
    kubectl.delete("namespace", kubectl.namespace)
    install.create_namespace(kubectl)
    kubectl.apply(install.claim(SOURCES, CLAIM_SIZE), install.claim(MODELS, CLAIM_SIZE))
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    install.fill_claim(
        kubectl, SOURCES, built["trainer"], {path.name: path for path in folder.iterdir()}
    )
    return Site(cluster, kubectl, built)


def write_sources(folder: Path) -> None:
    """Write a tiny random model, good data and bad data."""
    save_model(folder / "tiny")
    write_rows(folder / "chats.jsonl", chat_rows(400))
    long_row = {"prompt": "Say it.", "completion": "a" * 600}
    write_rows(folder / "long.jsonl", [long_row] * 20)
    pair = {"prompt": "Which?", "chosen": "This.", "rejected": "That."}
    write_rows(folder / "pairs.jsonl", [pair] * 20)
    write_rows(folder / "preferences.jsonl", preference_rows(64))
    write_rows(folder / "labels.jsonl", label_rows(64))
    answers = [{"prompt": f"Word {n}:", "completion": "a" * 12} for n in range(40)]
    write_rows(folder / "answers.jsonl", answers)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"Say {n}."} for n in range(64)])
    write_rows(folder / "turns-bad.jsonl", turning_rows(1200, bad=range(640, 960)))
    (folder / "empty.jsonl").write_text("")
    broken = [json.dumps({"prompt": "One", "completion": "two"}), '{"prompt": "One",']
    (folder / "broken.jsonl").write_text("\n".join(broken))
    for path in folder.rglob("*"):
        # The pods are another user.
        path.chmod(0o755 if path.is_dir() else 0o644)
