"""A thin client of the API server: raw dictionaries, retries, counters; no policy."""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config

from finetune_api import names
from finetune_operator.metrics import API_REQUESTS, API_SECONDS

Body = dict[str, Any]

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)
_TRIES: Final = 4
_LONGEST_PAUSE: Final = 10.0
_RETRIED: Final = {429, 500, 502, 503, 504}
_PAGE: Final = 500
_TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class ApiError(Exception):
    """The API server refused a request or could not be reached; code is 0 for the latter."""

    def __init__(self, verb: str, path: str, code: int, message: str) -> None:
        super().__init__(f"{verb} {path}: {code or 'no answer'}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Resource:
    """One kind of object and where the API server keeps it."""

    prefix: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
        """Return the path of an object, or of the collection."""
        scope = f"/namespaces/{quote(namespace)}" if namespace else ""
        tail = "".join(f"/{quote(part)}" for part in (name, sub) if part)
        return f"{self.prefix}{scope}/{self.plural}{tail}"


CLAIMS: Final = Resource("/api/v1", "persistentvolumeclaims")
JOBS: Final = Resource(f"/apis/{names.GROUP}/{names.VERSION}", names.PLURAL)
PODS: Final = Resource("/api/v1", "pods")
EVENTS: Final = Resource("/api/v1", "events")
NODES: Final = Resource("/api/v1", "nodes")
_KINDS: Final = {
    "Pod": PODS,
    "PersistentVolumeClaim": CLAIMS,
    "Service": Resource("/api/v1", "services"),
}


async def load_configuration(context: str | None) -> client.Configuration:
    """Return how to reach the API server: from the pod's service account, else from kubeconfig."""
    configuration = client.Configuration()
    if _TOKEN_FILE.exists() and "KUBECONFIG" not in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(context=context, client_configuration=configuration)
    return configuration


class Api:
    """Requests to the API server over one shared session."""

    def __init__(self, configuration: client.Configuration, context: str | None) -> None:
        self._context = context
        self._client = client.ApiClient(configuration)

    @classmethod
    async def connect(cls, context: str | None = None) -> Self:
        """Return a client for the current context or the one named."""
        return cls(await load_configuration(context), context)

    async def close(self) -> None:
        """Close the session."""
        await self._client.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Body:
        """Return an object."""
        return await self._request("GET", resource, resource.path(namespace, name))

    async def exists(self, resource: Resource, namespace: str, name: str) -> bool:
        """Return whether an object exists."""
        try:
            await self.get(resource, namespace, name)
        except ApiError as error:
            if error.code != 404:
                raise
            return False
        return True

    async def pages(
        self, resource: Resource, namespace: str | None, selector: str = ""
    ) -> AsyncIterator[tuple[list[Body], str]]:
        """Yield objects page by page, so that they need not all be in memory at once."""
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            path = f"{resource.path(namespace)}?{urlencode(query)}"
            page = await self._request("LIST", resource, path)
            yield page["items"], page["metadata"]["resourceVersion"]
            if not page["metadata"].get("continue"):
                return
            query["continue"] = page["metadata"]["continue"]

    async def list(
        self, resource: Resource, namespace: str | None, selector: str = ""
    ) -> tuple[list[Body], str]:
        """Return objects and the resourceVersion at which they were so."""
        items: list[Body] = []
        version = ""
        async for page, version in self.pages(resource, namespace, selector):  # noqa: B007
            items += page
        return items, version

    async def apply(self, body: Body) -> Body:
        """Apply an object server-side and return it."""
        resource, metadata = _KINDS[body["kind"]], body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = urlencode({"fieldManager": names.MANAGER, "force": "true"})
        content_type = "application/apply-patch+yaml"
        return await self._request("APPLY", resource, f"{path}?{query}", body, content_type)

    async def patch_status(self, namespace: str, name: str, patch: Body) -> Body:
        """Merge a patch into the status of a job and return the job."""
        query = urlencode({"fieldManager": names.MANAGER})
        path = f"{JOBS.path(namespace, name, 'status')}?{query}"
        return await self._request("PATCH", JOBS, path, patch, "application/merge-patch+json")

    async def delete(
        self, resource: Resource, namespace: str, name: str, preconditions: Mapping[str, str]
    ) -> None:
        """Delete an object, if it is still the one that the preconditions describe."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": dict(preconditions),
        }
        await self._request("DELETE", resource, resource.path(namespace, name), options)

    async def create_event(self, body: Body) -> None:
        """Create a Kubernetes Event."""
        await self._request("POST", EVENTS, EVENTS.path(body["metadata"]["namespace"]), body)

    async def proxy(self, namespace: str, pod: str, port: int, path: str) -> Body:
        """Return the JSON that a pod serves, read through the API server."""
        url = PODS.path(namespace, f"{pod}:{port}", f"proxy/{path}")
        return await self._request("GET", Resource(PODS.prefix, "pods/proxy"), url)

    async def _request(
        self,
        verb: str,
        resource: Resource,
        path: str,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Body:
        attempt = 0
        while True:
            attempt += 1
            code, pause, answer = await self._send(verb, resource.plural, path, body, content_type)
            if code == 401 and attempt == 1:
                await self._renew_credentials()
            elif (code and code not in _RETRIED) or attempt == _TRIES:
                break
            else:
                await asyncio.sleep(pause or _pause(attempt))
        if 200 <= code < 300:
            return answer
        raise ApiError(verb, path.partition("?")[0], code, answer.get("message", ""))

    async def _send(
        self, verb: str, plural: str, path: str, body: Body | None, content_type: str
    ) -> tuple[int, float, Body]:
        """Return status code, seconds to wait before the next try, and the answer."""
        started = time.monotonic()
        try:
            response = await self._client.rest_client.request(
                {"LIST": "GET", "APPLY": "PATCH"}.get(verb, verb),
                self._client.configuration.host + path,
                headers=await self._headers(content_type),
                body=body,
                _request_timeout=_TIMEOUT,
            )
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            API_REQUESTS.labels(verb, plural, "none").inc()
            return 0, 0.0, {"message": f"{type(error).__name__}: {error}"}
        API_REQUESTS.labels(verb, plural, str(response.status)).inc()
        API_SECONDS.labels(verb).observe(time.monotonic() - started)
        return response.status, _retry_after(response.headers), _json(text)

    async def _headers(self, content_type: str) -> dict[str, str]:
        headers = {
            "Accept": "application/json",
            "Content-Type": content_type,
            "User-Agent": names.MANAGER,
        }
        token = await self._client.configuration.get_api_key_with_prefix("BearerToken")
        return headers | ({"Authorization": token} if token else {})

    async def _renew_credentials(self) -> None:
        renewed = await load_configuration(self._context)
        self._client.configuration.api_key = renewed.api_key


def _pause(attempt: int) -> float:
    return 0.2 * 2.0**attempt * random.uniform(0.75, 1.25)  # noqa: S311 - jitter


def _retry_after(headers: Mapping[str, str]) -> float:
    seconds = headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_PAUSE) if seconds.isdigit() else 0.0


def _json(text: bytes) -> Body:
    try:
        body = json.loads(text)
    except ValueError:
        return {"message": text.decode(errors="replace")[:500]}
    return body if isinstance(body, dict) else {"message": str(body)[:500]}
