"""kubectl as the demo and the tests use it: what a user types, with JSON in and out."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


class KubectlError(RuntimeError):
    """kubectl ended with an error; the text is what it printed."""


@dataclass(frozen=True)
class Kubectl:
    """One cluster as kubectl sees it."""

    binary: Path | str = "kubectl"
    kubeconfig: Path | None = None
    """None is the user's current context."""
    namespace: str = "default"

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the environment of kubectl and helm."""
        return os.environ | ({"KUBECONFIG": str(self.kubeconfig)} if self.kubeconfig else {})

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of kubectl in the namespace."""
        return [str(self.binary), "--namespace", self.namespace, *arguments]

    def run(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run kubectl in the namespace and return what it printed.

        Raises:
            KubectlError: with kubectl's own words.

        """
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            env=self.environment,
            check=False,
        )
        if done.returncode:
            raise KubectlError(done.stderr.decode().strip())
        return done.stdout.decode()

    def apply(self, *manifests: Manifest) -> None:
        """Apply manifests, as `kubectl apply -f -` does."""
        text = "\n".join(json.dumps(manifest) for manifest in manifests)
        self.run("apply", "-f", "-", stdin=text.encode())

    def get(self, kind: str, name: str) -> Manifest:
        """Return one object."""
        found: Manifest = json.loads(self.run("get", kind, name, "--output", "json"))
        return found

    def list(self, kind: str, selector: str = "") -> list[Manifest]:
        """Return the objects of a kind that carry the labels."""
        found = json.loads(self.run("get", kind, "--selector", selector, "--output", "json"))
        items: list[Manifest] = found["items"]
        return items

    def delete(self, kind: str, name: str, *options: str) -> None:
        """Delete one object; a missing one is fine."""
        self.run("delete", kind, name, "--ignore-not-found", *options)

    def patch(self, kind: str, name: str, change: Manifest) -> None:
        """Merge a change into one object."""
        self.run("patch", kind, name, "--type", "merge", "--patch", json.dumps(change))

    def lines(self, *arguments: str, seconds: float) -> Iterator[str]:
        """Yield the lines that a long-running kubectl prints, for so many seconds.

        Raises:
            TimeoutError: when the time is over before the caller has seen enough.

        """
        process = subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            yield from process.stdout or ()
            # Only after kubectl has ended by itself or by the timer.
            if not timer.is_alive():
                raise TimeoutError(f"kubectl {' '.join(arguments)}: over after {seconds:.0f} s")
        finally:
            timer.cancel()
            process.kill()
            process.wait()

    def follow(self, kind: str, name: str, seconds: float) -> Iterator[Manifest]:
        """Yield the object each time it changes, for so many seconds, over lost connections.

        Raises:
            TimeoutError: when the time is over before the caller has seen enough.

        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            arguments = ("get", kind, name, "--watch", "--output", "json")
            yield from _documents(self.lines(*arguments, seconds=left))
            # The API server went away; kubectl does not come back by itself.
            time.sleep(0.5)


def _documents(lines: Iterator[str]) -> Iterator[Manifest]:
    """Split kubectl's stream of indented JSON objects."""
    block: list[str] = []
    for line in lines:
        block.append(line)
        if line.rstrip("\n") == "}":
            document: Manifest = json.loads("".join(block))
            block.clear()
            yield document
