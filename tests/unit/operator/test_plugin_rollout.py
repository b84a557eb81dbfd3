"""What `kubectl finetune plan` says of vLLM servers."""

import json
import re

import pytest

from unit.operator.plugin_process import EXAMPLES, Plugin

JOB = ("plan", "-f", EXAMPLES / "grpo.yaml", "--what-if")
UNSUPPORTED = "rollout.mode is server, which this trainer version cannot do: use local, or leave it"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


def test_servers_are_shown_beside_the_trainer_and_that_it_cannot_use_them(plugin: Plugin) -> None:
    run = plugin("plan", "-f", EXAMPLES / "full.yaml", "--parameters", "8B")
    words = " ".join(run.output.split())
    assert "2 x tensor parallel 1, 2 more GPUs" in words
    assert "weights 14.9, keys and values 55.1 GiB, 90% of each GPU" in words
    assert re.search(r"about \d+\.\d s, training on it \d+\.\d s, as computed", words)
    assert "Servers 2, on 1 GPU each: as asked for" in words
    assert UNSUPPORTED in words


def test_what_the_trainer_cannot_do_is_said_once_at_the_top(plugin: Plugin) -> None:
    job = ("plan", "-f", EXAMPLES / "full.yaml", "--parameters", "8B")
    output = plugin(*job, "--what-if", "count=2", "--what-if", "gpu=H200").output
    assert output.splitlines()[1].startswith(UNSUPPORTED)
    assert output.count("which this trainer version cannot do") == 1


def test_servers_cost_as_much_as_the_trainers_gpus(plugin: Plugin) -> None:
    run = plugin(*JOB, "rollout.mode=server", "--price", "2", "-o", "json")
    local, server = json.loads(run.output)
    assert server["plan"]["rollout"]["gpus"] >= 1
    gpus = server["plan"]["gpus"] + server["plan"]["rollout"]["gpus"]
    assert server["cost"]["perHour"] == 2 * gpus
    assert server["unsupported"].startswith(UNSUPPORTED)
    assert "unsupported" not in local
    assert "rollout" not in local["plan"]


def test_a_comparison_shows_servers_and_which_change_the_trainer_cannot_do(plugin: Plugin) -> None:
    run = plugin(*JOB, "rollout.mode=colocate", "--what-if", "rollout.mode=server")
    assert any(
        "on the trainer's GPUs" in line and "more GPU" in line for line in run.output.splitlines()
    )
    words = " ".join(run.output.split())
    assert "With rollout.mode=colocate: rollout.mode is colocate, which this trainer" in words
