"""Asks the cluster through kubectl, which knows how to log in everywhere."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from finetune_api import names
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.manifests import Manifest

_RESOURCE = f"{names.PLURAL}.{names.GROUP}"


@dataclass(frozen=True)
class Cluster:
    """The cluster and namespace that the options name; unset is what kubectl uses now."""

    namespace: str | None
    context: str | None

    def arguments(self, *arguments: str) -> list[str]:
        """Return a command line of kubectl."""
        chosen = [f"--namespace={self.namespace}"] if self.namespace else []
        chosen += [f"--context={self.context}"] if self.context else []
        return ["kubectl", *arguments, *chosen]

    def job(self, name: str) -> Manifest:
        """Return a FineTuneJob; PluginError with kubectl's words when it cannot be had."""
        done = _run(self.arguments("get", _RESOURCE, name, "--output=json"))
        job: Manifest = json.loads(done)
        return job

    def watch(self, name: str) -> Iterator[Manifest | None]:
        """Yield a job now and after every change; None, and then nothing, when it is deleted."""
        command = self.arguments(
            "get", _RESOURCE, name, "--output=json", "--watch", "--output-watch-events"
        )
        with _started(command) as process:
            try:
                for event in _documents(process):
                    yield None if event["type"] == "DELETED" else event["object"]
                    if event["type"] == "DELETED":
                        return
            finally:
                process.terminate()
            if process.wait():
                raise PluginError(_sentence(process.stderr.read() if process.stderr else ""))

    def pass_through(self, *arguments: str) -> int:
        """Run kubectl on this terminal; return its exit code."""
        with _started(self.arguments(*arguments), captured=False) as process:
            with suppress(KeyboardInterrupt):
                return process.wait()
            return process.wait()


def status_of(job: Manifest) -> FineTuneJobStatus:
    """Return a job's status; that of a job that no operator has seen is empty."""
    return FineTuneJobStatus.read(job.get("status") or {})


def _run(command: Sequence[str]) -> str:
    with _started(command) as process:
        output, errors = process.communicate()
        if process.returncode:
            raise PluginError(_sentence(errors))
        return output


def _started(command: Sequence[str], *, captured: bool = True) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE if captured else None
    try:
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    except FileNotFoundError as error:
        raise PluginError("kubectl is not on PATH: install it.") from error


def _sentence(errors: str) -> str:
    """Return the last line that kubectl wrote: lines before it repeat it, or warn."""
    lines = [line for line in errors.splitlines() if line.strip()]
    last = lines[-1] if lines else "kubectl ended without a word"
    said = re.sub(r"^(error|Error from server \(\w+\)): ", "", last)
    return said if said.endswith((".", "?")) else f"{said}."


def _documents(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON documents that are written one after another."""
    decoder, text = json.JSONDecoder(), ""
    for line in process.stdout or ():
        text += line
        # A document may span lines; kubectl ends each with one.
        with suppress(ValueError):
            document, end = decoder.raw_decode(text)
            text = text[end:].lstrip()
            yield document
