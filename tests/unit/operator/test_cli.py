"""Settings, logs, health."""

import json
import logging
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from finetune_operator.cli.logs import JsonFormatter, TextFormatter
from finetune_operator.cli.server import Health, application
from finetune_operator.cli.settings import parse
from finetune_operator.queue import Queue
from finetune_operator.store import Key, Store
from unit.operator.builders import make_job_body


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "trainer:1")
    settings = parse(["run"])
    assert settings.trainer.image == "trainer:1"
    assert settings.namespaces == ()
    assert (settings.workers, settings.port, settings.progress_via) == (8, 8080, "pod")
    assert settings.resync_seconds == 300
    assert settings.trainer.pull_secrets == ()


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "trainer:1")
    monkeypatch.setenv("FINETUNE_NAMESPACES", "a,b")
    monkeypatch.setenv("FINETUNE_WORKERS", "3")
    assert parse(["run"]).namespaces == ("a", "b")
    settings = parse(
        [
            *("run", "--trainer-image=trainer:2", "--namespace=c", "--trainer-env=A=b=c"),
            *("--trainer-pull-secret=d", "--trainer-pull-secret=e", "--workers=5"),
        ]
    )
    assert settings.trainer.pull_secrets == ("d", "e")
    assert settings.trainer.image == "trainer:2"
    assert settings.trainer.env == {"A": "b=c"}
    assert (settings.namespaces, settings.workers) == (("c",), 5)


def test_prices_have_a_currency() -> None:
    arguments = ["run", "--trainer-image=x", "--gpu-price=NVIDIA-L4=0.70", "--currency=EUR"]
    prices = parse([*arguments, "--gpu-price=NVIDIA-H200=4"]).prices
    assert prices.currency == "EUR"
    assert prices.per_gpu_hour == {"NVIDIA-L4": 0.7, "NVIDIA-H200": 4.0}
    assert parse(["run", "--trainer-image=x"]).prices.per_gpu_hour == {}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gpu-price=NVIDIA-L4=0.70"], "--gpu-price is given without --currency"),
        (["--gpu-price=NVIDIA-L4", "--currency=EUR"], "'NVIDIA-L4' is not of the form"),
        *(
            ([f"--gpu-price=NVIDIA-L4={bad}", "--currency=EUR"], f"price of NVIDIA-L4 is '{bad}'")
            for bad in ("-1", "cheap", "nan", "inf")
        ),
    ],
)
def test_a_price_that_is_none_is_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["run", "--trainer-image=x", *arguments])
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "--trainer-image=x", "--trainer-env=A"]]
)
def test_what_is_not_right_is_said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FINETUNE_TRAINER_IMAGE", raising=False)
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "error" in capsys.readouterr().err


def record(**extra: Any) -> logging.LogRecord:
    found = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "a -> b", **extra})
    found.created = 1795519204.5
    return found


def test_logs_are_one_json_object_per_line() -> None:
    line = JsonFormatter().format(record(job="j", attempt=2))
    assert json.loads(line) == {
        "time": "2026-11-24T11:20:04.500+00:00",
        "level": "info",
        "logger": "x",
        "message": "a -> b",
        "job": "j",
        "attempt": 2,
    }


def test_logs_for_people() -> None:
    assert TextFormatter().format(record(job="j")) == "11:20:04 INFO    a -> b job=j"


class StaleResync:
    """Stands in for the safety net."""

    stale = 0


async def test_health_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("finetune_operator.queue._now", lambda: clock[0])
    queue, store, resync = Queue[Key](), Store(), StaleResync()
    stand_in: Any = resync
    health = Health(queue, stand_in)
    store.put_job(make_job_body(status={"phase": "Running"}))
    async with TestClient(TestServer(application(health, store, queue))) as client:
        assert (await client.get("/readyz")).status == 503
        health.ready = True
        assert (await client.get("/readyz")).status == 200
        assert (await client.get("/healthz")).status == 200
        queue.add(("team", "job"))
        clock[0] = 1000
        answer = await client.get("/healthz")
        assert (answer.status, await answer.text()) == (
            503,
            "the work queue has not moved for 180 seconds",
        )
        text = await (await client.get("/metrics")).text()
        assert 'finetune_operator_jobs{phase="Running"} 1.0' in text
        assert "finetune_operator_queue_depth 1.0" in text


async def test_watches_that_miss_changes_are_unhealthy() -> None:
    queue, resync = Queue[Key](), StaleResync()
    stand_in: Any = resync
    health = Health(queue, stand_in)
    assert health.complaint() is None
    resync.stale = 2
    assert "watches" in str(health.complaint())
