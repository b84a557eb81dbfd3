"""docs/cli.md shows what the commands print."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from unit.operator.plugin_process import Plugin

PAGE = Path(__file__).parents[3] / "docs/cli.md"
OFFLINE = ("plan", "recommend", "validate")


@dataclass(frozen=True)
class Step:
    """One command of the page, and what stands below it."""

    command: list[str]
    output: str


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plugin:
    return Plugin(monkeypatch, capsys)


def _steps() -> Iterator[Step]:
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for command, output in re.findall(
            r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE
        ):
            yield Step(shlex.split(command.replace("\\\n", " ")), output)


def _is_asked(step: Step) -> bool:
    """Tell whether somebody answers questions, which nobody does here."""
    return "[y/n]" in step.output


def test_the_page_shows_what_the_commands_print(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    ran = []
    for step in _steps():
        match step.command:
            case ["cat", file] if not Path(file).exists():
                Path(file).write_text(step.output)
            case ["cat", file]:
                assert Path(file).read_text() == step.output
            case ["kubectl", "finetune", name, *_] if name in OFFLINE and not _is_asked(step):
                ran.append(name)
                run = plugin(*step.command[2:])
                lines = (run.output + run.errors).splitlines()
                assert [line.rstrip() for line in lines] == step.output.splitlines()
    assert set(ran) == set(OFFLINE)
