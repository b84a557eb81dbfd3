"""The client: retries, credentials, pages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from finetune_operator import api as module
from finetune_operator.api import JOBS, PODS, Api, ApiError

pytestmark = pytest.mark.asyncio

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def api_over(handler: Handler) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(app)
    await server.start_server()
    api = Api(client.Configuration(host=str(server.make_url("")).rstrip("/")), None)
    yield api
    await api.close()
    await server.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pause", lambda _: 0.0)


async def test_a_server_that_is_busy_is_asked_again() -> None:
    answers = [429, 503, 200]

    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Pod"}, status=answers.pop(0))

    async with api_over(handler) as api:
        assert await api.get(PODS, "team", "pod") == {"kind": "Pod"}
    assert answers == []


async def test_it_gives_up_after_a_few_tries() -> None:
    calls = []

    async def handler(_: web.Request) -> web.Response:
        calls.append(1)
        return web.json_response({"message": "etcd is away"}, status=500)

    async with api_over(handler) as api:
        with pytest.raises(ApiError, match="etcd is away") as caught:
            await api.get(PODS, "team", "pod")
    assert caught.value.code == 500
    assert len(calls) == 4


async def test_a_refusal_is_final() -> None:
    calls = []

    async def handler(_: web.Request) -> web.Response:
        calls.append(1)
        return web.json_response({"message": "exceeded quota"}, status=403)

    async with api_over(handler) as api:
        with pytest.raises(ApiError, match="exceeded quota"):
            await api.get(PODS, "team", "pod")
    assert len(calls) == 1


async def test_no_server_at_all() -> None:
    api = Api(client.Configuration(host="http://127.0.0.1:9"), None)
    with pytest.raises(ApiError) as caught:
        await api.get(PODS, "team", "pod")
    assert caught.value.code == 0
    await api.close()


async def test_lists_come_in_pages() -> None:
    queries = []

    async def handler(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        last = "continue" in request.query
        metadata = {"resourceVersion": "7"} | ({} if last else {"continue": "more"})
        return web.json_response({"items": [{"page": len(queries)}], "metadata": metadata})

    async with api_over(handler) as api:
        items, version = await api.list(PODS, None, "a=b")
    assert (items, version) == ([{"page": 1}, {"page": 2}], "7")
    assert queries[1] == {"limit": "500", "labelSelector": "a=b", "continue": "more"}


async def test_credentials_are_renewed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = []

    async def handler(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return web.json_response({}, status=200 if tokens[-1] == "Bearer new" else 401)

    async def renewed(_: str | None) -> client.Configuration:
        return client.Configuration(api_key={"BearerToken": "Bearer new"})

    monkeypatch.setattr(module, "load_configuration", renewed)
    async with api_over(handler) as api:
        await api.get(JOBS, "team", "job")
    assert tokens == [None, "Bearer new"]


async def test_applying_is_server_side_and_forced() -> None:
    seen: dict[str, str] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(request.query, method=request.method, type=request.content_type)
        return web.json_response(await request.json())

    async with api_over(handler) as api:
        body = {"kind": "Pod", "metadata": {"namespace": "team", "name": "pod"}}
        assert await api.apply(body) == body
    assert seen == {
        "fieldManager": "finetune-operator",
        "force": "true",
        "method": "PATCH",
        "type": "application/apply-patch+yaml",
    }
