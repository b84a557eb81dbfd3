"""Runs the plugin in this process, as its script does."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.plugin import main

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
CASES = Path(__file__).parents[2] / "integration/manifests"


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    code: int
    output: str
    errors: str


class Plugin:
    """The command kubectl-finetune."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        # Wide enough that no sentence is wrapped.
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *arguments: object) -> Run:
        self._monkeypatch.setattr(sys, "argv", ["kubectl-finetune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = self._capsys.readouterr()
        return Run(int(end.value.code or 0), captured.out, captured.err)


def server_cases(file_name: str) -> list[Any]:
    """Return what integration tests show to a real API server."""
    cases = yaml.safe_load((CASES / file_name).read_text())
    return [pytest.param(case, id=case["case"]) for case in cases]


def manifest_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return the job of a case of integration/manifests: an example with a change merged in."""
    job = yaml.safe_load((EXAMPLES / f"{case.get('method', 'sft')}.yaml").read_text())
    metadata = {"name": case["name"]} if "name" in case else {}
    merged: dict[str, Any] = _merge(job, {"spec": case.get("change", {}), "metadata": metadata})
    return merged


def _merge(base: Any, change: Any) -> Any:
    """Return base with an RFC 7386 merge patch applied."""
    if not isinstance(change, dict):
        return change
    kept = dict(base) if isinstance(base, dict) else {}
    merged = kept | {key: _merge(kept.get(key), value) for key, value in change.items()}
    return {key: value for key, value in merged.items() if value is not None}
