"""The API server as the tests use it: paths in, dictionaries out."""

import base64
import http.client
import json
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml

from finetune_api import names

Body = dict[str, Any]
T = TypeVar("T")

JOBS = f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{{}}/{names.PLURAL}"


class ServerError(Exception):
    """The API server refused a request."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def wait_for(
    look: Callable[[], T | None], *, seconds: float = 30, what: Callable[[], object] = str
) -> T:
    """Return what look returns as soon as it is not None or False."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s; now: {what()}")
        time.sleep(0.05)


class Server:
    """One namespace of a real API server, as its administrator."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.namespace = namespace
        config = yaml.safe_load(kubeconfig.read_text())
        self._host = urlsplit(config["clusters"][0]["cluster"]["server"])
        self._tls = _tls(config)

    def request(
        self, verb: str, path: str, body: Body | None = None, content: str = "application/json"
    ) -> Body:
        """Send one request; ServerError when it is refused."""
        connection = http.client.HTTPSConnection(
            self._host.hostname or "", self._host.port, context=self._tls, timeout=20
        )
        try:
            text = json.dumps(body) if body is not None else None
            connection.request(verb, path, text, {"Content-Type": content})
            response = connection.getresponse()
            answer: Body = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 300:
            raise ServerError(response.status, answer.get("message", ""))
        return answer

    def create_job(self, name: str, **parts: Any) -> Body:
        """Create a job; parts are those of its spec."""
        spec: Body = {
            "method": "sft",
            "model": {"source": "hf://Qwen/Qwen3-0.6B"},
            "dataset": {"source": "hf://acme/support-chats"},
            "resources": {"gpu": {"count": 1}},
            "output": {"claim": "models"},
        }
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "labels": {"argocd.argoproj.io/instance": "team"}},
            "spec": spec | parts,
        }
        return self.request("POST", JOBS.format(self.namespace), body)

    def job(self, name: str) -> Body:
        """Return a job."""
        return self.request("GET", f"{JOBS.format(self.namespace)}/{name}")

    def message(self, name: str) -> str:
        """Return what a job's status says; nothing before there is one."""
        status = self.job(name).get("status", {})
        return str(status.get("message", ""))

    def job_or_none(self, name: str) -> Body | None:
        """Return a job, or None when there is none."""
        try:
            return self.job(name)
        except ServerError as error:
            if error.code != 404:
                raise
            return None

    def edit_job(self, name: str, spec: Body) -> Body:
        """Merge a change into the spec of a job."""
        content = "application/merge-patch+json"
        return self.request(
            "PATCH", f"{JOBS.format(self.namespace)}/{name}", {"spec": spec}, content
        )

    def delete_job(self, name: str) -> None:
        """Delete a job."""
        self.request("DELETE", f"{JOBS.format(self.namespace)}/{name}")

    def objects(self, plural: str, job: str | None = None) -> list[Body]:
        """Return the objects of a core resource, of one job or of all."""
        selector = f"?labelSelector={names.JOB_LABEL}={job}" if job else ""
        path = f"/api/v1/namespaces/{self.namespace}/{plural}{selector}"
        items: list[Body] = self.request("GET", path)["items"]
        return items

    def events(self, job: str) -> list[str]:
        """Return the reasons of the Events about a job, in order."""
        found = [one for one in self.objects("events") if one["involvedObject"]["name"] == job]
        return [
            one["reason"] for one in sorted(found, key=lambda one: str(one["metadata"]["name"]))
        ]

    def pod(self, name: str) -> Body | None:
        """Return a pod, or None when there is none."""
        found = [pod for pod in self.objects("pods") if pod["metadata"]["name"] == name]
        return found[0] if found else None

    def wait_for_pod(self, name: str, seconds: float = 30) -> Body:
        """Return a pod as soon as it exists."""
        return wait_for(
            lambda: self.pod(name),
            seconds=seconds,
            what=lambda: [job.get("status") for job in self._jobs()],
        )

    def wait_for_phase(self, job: str, *phases: str, seconds: float = 30) -> Body:
        """Return the status of a job as soon as it has one of the phases."""

        def look() -> Body | None:
            status: Body = self.job(job).get("status", {})
            return status if status.get("phase") in phases else None

        return wait_for(look, seconds=seconds, what=lambda: self.job(job).get("status"))

    def _jobs(self) -> list[Body]:
        items: list[Body] = self.request("GET", JOBS.format(self.namespace))["items"]
        return items


class Kubelet:
    """Plays what a kubelet would say about pods: there is none on a bare control plane."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def run(self, pod: str) -> None:
        """Say that the container of a pod runs."""
        state = {"running": {"startedAt": _now()}}
        self._say(pod, {"phase": "Running", "podIP": "127.0.0.1"}, state)

    def end(self, pod: str, exit_code: int, message: str = "", reason: str = "") -> None:
        """Say that the container of a pod has ended."""
        state = {
            "terminated": {
                "exitCode": exit_code,
                "reason": reason or ("Error" if exit_code else "Completed"),
                "message": message,
                "startedAt": _now(),
                "finishedAt": _now(),
            }
        }
        self._say(pod, {"phase": "Failed" if exit_code else "Succeeded"}, state)

    def wait(self, pod: str, reason: str, message: str) -> None:
        """Say that the container of a pod waits."""
        state = {"waiting": {"reason": reason, "message": message}}
        self._say(pod, {"phase": "Pending"}, state)

    def unschedulable(self, pod: str, message: str) -> None:
        """Say, as the scheduler would, that no node takes a pod."""
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": _now(),
        }
        self._patch(pod, {"conditions": [condition]})

    def remove(self, pod: str) -> None:
        """Remove a pod, as the kubelet does once its containers have ended."""
        path = f"/api/v1/namespaces/{self._server.namespace}/pods/{pod}"
        self._server.request("DELETE", path, {"gracePeriodSeconds": 0})

    def _say(self, pod: str, status: Body, state: Body) -> None:
        container = {
            "name": names.CONTAINER,
            "image": "trainer",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        self._patch(pod, {**status, "containerStatuses": [container]})

    def _patch(self, pod: str, status: Body) -> None:
        path = f"/api/v1/namespaces/{self._server.namespace}/pods/{pod}/status"
        content = "application/strategic-merge-patch+json"
        self._server.request("PATCH", path, {"status": status}, content)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _tls(config: Body) -> ssl.SSLContext:
    """Return the TLS of a kubeconfig's first user."""
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = _data(cluster, "certificate-authority")
    context = ssl.create_default_context(cadata=authority.decode())
    with tempfile.NamedTemporaryFile() as pair:
        pair.write(_data(user, "client-certificate") + b"\n" + _data(user, "client-key"))
        pair.flush()
        context.load_cert_chain(pair.name)
    return context


def _data(entry: Body, field: str) -> bytes:
    if f"{field}-data" in entry:
        return base64.b64decode(entry[f"{field}-data"])
    return Path(entry[field]).read_bytes()
