"""The operator as a process, with the rights that its Helm chart gives it."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import IO

import yaml

from devcluster import Cluster
from finetune_api import names
from integration.server import wait_for

CHART = Path(__file__).parents[2] / "helm/finetune-operator"


def install_crd(cluster: Cluster) -> None:
    """Make the cluster know FineTuneJobs."""
    cluster.kubectl("apply", "--server-side", "-f", str(CHART / "files/crds"))
    # Not `kubectl wait`: it fails in the moment before the CRD has any conditions.
    group = f"--api-group={names.GROUP}"
    wait_for(lambda: names.PLURAL in cluster.kubectl("api-resources", group))


def restricted_kubeconfig(cluster: Cluster, namespace: str, folder: Path) -> Path:
    """Install the chart's ServiceAccount and roles, and return a kubeconfig of that account."""
    rendered = subprocess.run(
        [
            *(cluster.bin("helm"), "template", "finetune-operator", CHART, "--kube-version=1.34.4"),
            *(f"--namespace={namespace}", f"--set=watchNamespaces={{{namespace}}}"),
            *("--show-only=templates/serviceaccount.yaml", "--show-only=templates/rbac.yaml"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=rendered)
    account = (f"--namespace={namespace}", "create", "token", "finetune-operator")
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": cluster.kubectl(*account).strip()}
    path = folder / "operator.kubeconfig"
    path.write_text(json.dumps(config))
    return path


class Operator:
    """Starts and stops `finetune-operator run` for one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path) -> None:
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._log = folder / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._port = 0

    def start(self) -> None:
        """Start it and wait until it is ready."""
        start = self._log.stat().st_size if self._log.exists() else 0
        self._file = self._log.open("ab")
        self._process = subprocess.Popen(
            [
                Path(sys.executable).with_name("finetune-operator"),
                "run",
                "--trainer-image=registry.example/trainer:1",
                "--trainer-env=FINETUNE_DEVICE=cpu",
                f"--namespace={self._namespace}",
                "--address=127.0.0.1",
                "--port=0",
                "--log-format=json",
            ],
            env={"KUBECONFIG": str(self._kubeconfig), "PATH": "/usr/bin:/bin"},
            stderr=self._file,
        )
        self._port = wait_for(lambda: self._find_port(start), what=self.log)
        wait_for(lambda: self.status("readyz") == 200, what=self.log)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End it by a signal; return its exit code."""
        if self._process is None or self._file is None:
            raise RuntimeError("the operator was not started")
        self._process.send_signal(how)
        code = self._process.wait(timeout=20)
        self._file.close()
        self._process = None
        return code

    @property
    def pid(self) -> int:
        """The process's id."""
        if self._process is None:
            raise RuntimeError("the operator was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return all that it has logged."""
        return self._log.read_text()

    def lines(self) -> list[dict[str, object]]:
        """Return all that it has logged, by line."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def status(self, path: str) -> int:
        """Return the status code of a path."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/{path}") as answer:
                return int(answer.status)
        except OSError as error:
            return int(getattr(error, "code", 0))

    def metrics(self) -> dict[str, float]:
        """Return all metrics, by name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as answer:
            text = answer.read().decode()
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def requests(self) -> dict[str, int]:
        """Return the API requests so far, as VERB RESOURCE."""
        found: dict[str, int] = {}
        pattern = r'finetune_operator_api_requests_total\{code="\d+",resource="(.+)",verb="(.+)"\}'
        for name, value in self.metrics().items():
            match = re.fullmatch(pattern, name)
            if match:
                key = f"{match[2]} {match[1]}"
                found[key] = found.get(key, 0) + int(value)
        return found

    def _find_port(self, start: int) -> int | None:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"the operator has ended: {self.log()}")
        match = re.search(r'"message": "serving".*"port": (\d+)', self.log()[start:])
        return int(match[1]) if match else None
