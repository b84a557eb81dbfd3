"""The pure parts of the cluster on one machine; everything else is used by the e2e tests."""

import dataclasses
import os
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from devcluster import binaries, dns, kwok, node, node_config, settings
from devcluster.layout import ClusterError, Layout
from devcluster.processes import Daemons, command_line, is_running

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    started = Daemons(tmp_path)
    started.start("sleeper", SLEEPER)
    record = started.record("sleeper")
    assert record is not None
    # In the middle of its exec it has no command line.
    started.wait(
        "sleeper", lambda: command_line(record.pid) == SLEEPER, seconds=30, what="executed"
    )
    yield started
    started.stop("sleeper")


def test_a_started_daemon_is_known_to_another_process(daemons: Daemons, tmp_path: Path) -> None:
    assert Daemons(tmp_path).running("sleeper")


@pytest.mark.parametrize(
    "other",
    [
        {"start_ticks": 1},
        {"argv": ["/bin/other"]},
        {"boot": "an earlier boot"},
    ],
    ids=lambda other: str(next(iter(other))),
)
def test_a_reused_pid_is_not_ours(daemons: Daemons, other: dict[str, Any]) -> None:
    record = daemons.record("sleeper")
    assert record is not None
    assert is_running(record)
    assert not is_running(dataclasses.replace(record, **other))


def test_stopping_spares_a_foreign_process_with_our_pid(daemons: Daemons, tmp_path: Path) -> None:
    pid_file = tmp_path / "pids/sleeper.json"
    ours = pid_file.read_text()
    pid_file.write_text(ours.replace('"start_ticks": ', '"start_ticks": 1'))
    daemons.stop("sleeper")
    pid_file.write_text(ours)
    assert daemons.running("sleeper")


def test_stopping_ends_a_daemon_and_may_be_repeated(daemons: Daemons) -> None:
    daemons.stop("sleeper")
    daemons.stop("sleeper")
    assert not daemons.running("sleeper")
    assert daemons.names() == []


def test_a_killed_daemon_is_not_running_even_as_a_zombie(daemons: Daemons) -> None:
    record = daemons.record("sleeper")
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    os.waitid(os.P_PID, record.pid, os.WEXITED | os.WNOWAIT)
    assert not daemons.running("sleeper")


def test_waiting_for_a_daemon_that_ends_shows_its_log(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("failing", [sys.executable, "-c", "print('no such flag')"])
    with pytest.raises(ClusterError, match=r"ended before ready(.|\n)*no such flag"):
        daemons.wait("failing", lambda: False, seconds=10, what="ready")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Kubernetes v1.34.4", (1, 34, 4)),
        ("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0", (1, 32, 4)),
        ("etcd Version: 3.6.16\nGo Version: go1.26.8", (3, 6, 16)),
        ("no version here", None),
    ],
)
def test_versions_are_read_from_what_programs_say(
    said: str, version: tuple[int, int, int] | None
) -> None:
    assert binaries.parse_version(said) == version


def test_configurations_name_the_cache_and_the_registry(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "node")
    containerd = tomllib.loads(node_config.containerd_toml(layout, Path("/usr/lib/cni")))
    kubelet = yaml.safe_load(node_config.kubelet_yaml(layout, "node1"))
    cri = containerd["plugins"]["io.containerd.grpc.v1.cri"]
    assert containerd["root"] == str(tmp_path / "containerd")
    assert cri["registry"]["mirrors"]["10.99.0.1:5000"]["endpoint"] == ["http://10.99.0.1:5000"]
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{containerd['grpc']['address']}"


def test_settings_survive_the_file(tmp_path: Path) -> None:
    wanted = settings.for_control_plane(
        controllers=False, kwok=settings.Kwok(3, pod_messages={"trainer": '{"step": 1}'})
    )
    wanted.save(tmp_path / "cluster.json")
    assert settings.load(tmp_path / "cluster.json") == wanted


def test_a_pod_message_is_quoted_for_the_template() -> None:
    played = settings.Kwok(1, pod_messages={"trainer": '{"reason": "ok }}"}'})
    template = kwok.stages(played)[-1]["spec"]["next"]["statusTemplate"]
    assert r'"{\"reason\": \"ok }}\"}"' in template


def test_only_ready_pods_of_headless_services_have_names() -> None:
    def meta(name: str, **labels: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, namespace="team", labels=labels)

    def endpoint(address: str, hostname: str | None, *, ready: bool) -> SimpleNamespace:
        conditions = SimpleNamespace(ready=ready)
        return SimpleNamespace(addresses=[address], hostname=hostname, conditions=conditions)

    services = [
        SimpleNamespace(metadata=meta("web"), spec=SimpleNamespace(cluster_ip="10.96.0.7")),
        SimpleNamespace(metadata=meta("run"), spec=SimpleNamespace(cluster_ip="None")),
    ]
    slices = [
        SimpleNamespace(
            metadata=meta("run-1", **{"kubernetes.io/service-name": "run"}),
            address_type="IPv4",
            endpoints=[
                endpoint("10.244.0.2", "run-0", ready=True),
                endpoint("10.244.0.3", "run-1", ready=False),
            ],
        )
    ]
    assert dns.zone_of(services, slices) == {
        "web.team.svc.cluster.local": ["10.96.0.7"],
        "run.team.svc.cluster.local": ["10.244.0.2"],
        "run-0.run.team.svc.cluster.local": ["10.244.0.2"],
    }


@pytest.mark.parametrize(
    ("words", "starts"),
    [("rpc error: desc = server is not initialized yet", 1), ("no such device", 0)],
)
def test_a_kubelet_that_was_too_early_for_containerd_starts_anew(words: str, starts: int) -> None:
    started: list[str] = []
    daemons = SimpleNamespace(running=lambda _: False, log_tail=lambda _: words)
    too_early: Any = SimpleNamespace(
        _daemons=daemons, _run_kubelet=lambda: started.append("kubelet")
    )
    not_yet: Any = lambda *_: ""  # noqa: E731
    assert not node.Node._is_ready(too_early, not_yet)
    assert len(started) == starts
