from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from berthmaster.cluster import client as clients
from berthmaster.cluster import connections
from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import (
    ApiError,
    ConfigurationError,
    OutcomeUnknownError,
    UnreachableError,
)
from support.fake_api import Cut, FakeApi, Hang, Refusal

PODS = "/api/v1/namespaces/a/pods"


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as server:
        server.objects[PODS] = {}
        yield server


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    async with Client.at(api.url, token="t0p-secret") as made:  # noqa: S106
        yield made


def pod(name: str, **spec: object) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "a"}, "spec": spec}


def kubeconfig(path: Path, server: str, user: dict[str, object]) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(config))
    return str(path)


async def test_ends_of_requests_are_told(client: Client, api: FakeApi) -> None:
    told: list[tuple[str, str]] = []
    client.on_answer = lambda method, code: told.append((method, code))

    await client.create(PODS, pod("p"))
    with pytest.raises(ApiError):
        await client.get(f"{PODS}/absent")
    async with Client.at("http://127.0.0.1:1") as nowhere:
        nowhere.on_answer = client.on_answer
        with pytest.raises(UnreachableError):
            await nowhere.get("/version")

    assert told == [("POST", "201"), ("GET", "404"), ("GET", "error")]


async def test_object_lives_from_create_to_delete(client: Client) -> None:
    created = await client.create(PODS, pod("p"))
    replaced = await client.replace(f"{PODS}/p", {**created, "spec": {"x": 1}})
    patched = await client.patch(f"{PODS}/p", {"spec": {"y": 2}}, PatchKind.MERGE)
    await client.delete(f"{PODS}/p", body={"preconditions": {"uid": "u"}})

    assert replaced["spec"] == {"x": 1}
    assert patched["spec"] == {"x": 1, "y": 2}
    with pytest.raises(ApiError) as refused:
        await client.get(f"{PODS}/p")
    assert refused.value.is_not_found


async def test_patch_sends_its_language_and_query(api: FakeApi, client: Client) -> None:
    await client.create(PODS, pod("p"))

    await client.patch(
        f"{PODS}/p", pod("p"), PatchKind.APPLY, {"fieldManager": "berth", "force": True}
    )

    sent = api.requests[-1]
    assert sent.headers["Content-Type"] == "application/apply-patch+yaml"
    assert sent.query == {"fieldManager": "berth", "force": "true"}


async def test_stale_version_is_a_conflict(client: Client) -> None:
    stale = await client.create(PODS, pod("p"))
    await client.replace(f"{PODS}/p", stale)

    with pytest.raises(ApiError) as refused:
        await client.replace(f"{PODS}/p", stale)

    assert refused.value.is_conflict
    assert not refused.value.is_already_exists


async def test_second_create_is_no_conflict_but_exists(client: Client) -> None:
    await client.create(PODS, pod("p"))

    with pytest.raises(ApiError) as refused:
        await client.create(PODS, pod("p"))

    assert refused.value.is_already_exists
    assert not refused.value.is_conflict


@pytest.mark.parametrize(
    ("refusal", "expected_s"),
    [
        (Refusal(429, headers={"Retry-After": "7"}), 7.0),
        (Refusal(503, details={"retryAfterSeconds": 3}), 3.0),
        (Refusal(503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}), 0.0),
        (Refusal(503, headers={"Retry-After": "soon"}), None),
        (Refusal(500), None),
    ],
    ids=["header", "status", "date in the past", "nonsense", "none"],
)
async def test_retry_after_is_surfaced(
    api: FakeApi, client: Client, refusal: Refusal, expected_s: float | None
) -> None:
    api.fail_next("GET", PODS, refusal)

    with pytest.raises(ApiError) as refused:
        await client.get(PODS)

    assert refused.value.retry_after_s == expected_s
    assert refused.value.is_retryable


async def test_refusal_that_is_no_status_keeps_its_text(api: FakeApi, client: Client) -> None:
    api.fail_next("GET", PODS, Refusal(502, body=b"<html>bad gateway"))

    with pytest.raises(ApiError, match="502: <html>bad gateway"):
        await client.get(PODS)


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("verb", ["create", "replace", "patch", "delete"])
async def test_cut_write_has_unknown_outcome_and_is_sent_once(
    api: FakeApi, client: Client, cut: Cut, verb: str
) -> None:
    stored = await client.create(PODS, pod("p"))
    choices: dict[str, tuple[str, Callable[[], Awaitable[object]]]] = {
        "create": ("POST", lambda: client.create(PODS, pod("q"))),
        "replace": ("PUT", lambda: client.replace(f"{PODS}/p", stored)),
        "patch": ("PATCH", lambda: client.patch(f"{PODS}/p", {}, PatchKind.MERGE)),
        "delete": ("DELETE", lambda: client.delete(f"{PODS}/p")),
    }
    method, send = choices[verb]
    api.fail_next(method, PODS, cut)
    before = len(api.requests)

    with pytest.raises(OutcomeUnknownError):
        await send()

    assert len(api.requests) == before + 1


async def test_late_write_has_unknown_outcome(api: FakeApi, client: Client) -> None:
    api.fail_next("POST", PODS, Hang.FOREVER)

    with pytest.raises(OutcomeUnknownError):
        await client.create(PODS, pod("p"), timeout_s=0.05)


async def test_connections_that_died_without_a_sign_cost_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All connections of before give no more answers, but for one that is still under way."""
    monkeypatch.setattr(clients, "POOL_PAUSE_S", 0.0)
    all_came, ends, is_gone = asyncio.Barrier(3), asyncio.Event(), asyncio.Event()
    seen: set[asyncio.BaseTransport] = set()
    dead: set[asyncio.BaseTransport] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        if transport in dead:
            await is_gone.wait()
        seen.add(transport)
        if request.path == "/together":
            await all_came.wait()
        if request.path == "/slow":
            seen.remove(transport)
            await ends.wait()
        return web.json_response({"from": "server"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, Client.at(str(server.make_url("")).rstrip("/")) as client:
        await asyncio.gather(*(client.get("/together") for _ in range(3)))
        slow = asyncio.create_task(client.get("/slow"))
        while len(seen) == 3:
            await asyncio.sleep(0)
        dead |= seen
        doubts: list[str] = []
        client.on_doubt = lambda: doubts.append("doubt")

        with pytest.raises(UnreachableError):
            await client.get("/first", timeout_s=0.05)
        assert await client.get("/second", timeout_s=5) == {"from": "server"}
        assert doubts == ["doubt"]

        ends.set()
        assert await slow == {"from": "server"}
        async with asyncio.timeout(5):
            while not all(it.is_closing() for it in dead):
                await asyncio.sleep(0.01)
        is_gone.set()


async def test_slow_server_is_not_pressed_by_new_connections(client: Client, api: FakeApi) -> None:
    pool = client._pool
    api.fail_next("GET", PODS, Hang.FOREVER)

    with pytest.raises(UnreachableError):
        await client.get(PODS, timeout_s=0.05)

    assert client._pool is pool


async def test_cut_read_is_unreachable(api: FakeApi, client: Client) -> None:
    api.fail_next("GET", PODS, Cut.BEFORE)

    with pytest.raises(UnreachableError):
        await client.get(PODS)


async def test_no_cluster_is_told_with_the_way_out(unused_tcp_port: int) -> None:
    async with Client.at(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(UnreachableError, match=r"cannot reach the cluster at http.*KUBECONFIG"):
            await client.create(PODS, pod("p"))


async def test_errors_never_show_the_token(api: FakeApi, client: Client) -> None:
    api.fail_next("POST", PODS, Cut.AFTER)

    with pytest.raises(OutcomeUnknownError) as lost:
        await client.create(PODS, pod("p"))

    assert api.requests[-1].headers["Authorization"] == "Bearer t0p-secret"
    assert "t0p-secret" not in repr(lost.value) + repr(lost.value.__cause__)


async def test_pages_follow_the_continue_token(api: FakeApi, client: Client) -> None:
    for number in range(5):
        api.put(PODS, pod(f"p{number}"))

    pages = [json.loads(page) async for page in client.list_pages(PODS, {"fieldSelector": "x"}, 2)]

    assert [len(page["items"]) for page in pages] == [2, 2, 1]
    assert all(request.query["fieldSelector"] == "x" for request in api.requests)


async def test_expired_continue_token_is_gone(api: FakeApi, client: Client) -> None:
    for number in range(3):
        api.put(PODS, pod(f"p{number}"))

    async with aclosing(client.list_pages(PODS, None, 2)) as pages:
        await anext(pages)
        api.compact()
        with pytest.raises(ApiError) as refused:
            await anext(pages)

    assert refused.value.is_gone


async def test_watch_yields_whole_lines_of_any_length(api: FakeApi, client: Client) -> None:
    api.put(PODS, pod("big", filler="x" * 3_000_000))
    api.put(PODS, pod("small"))

    async with aclosing(client.watch(PODS, {"resourceVersion": 0})) as lines:
        first = json.loads(await anext(lines))
        second = json.loads(await anext(lines))
        api.end_watches()
        rest = [line async for line in lines]

    assert first["object"]["metadata"]["name"] == "big"
    assert second["object"]["metadata"]["name"] == "small"
    assert rest == []


async def test_silent_watch_is_unreachable(client: Client) -> None:
    async with aclosing(client.watch(PODS, idle_timeout_s=0.05)) as lines:
        with pytest.raises(UnreachableError):
            await anext(lines)


async def test_cut_watch_is_unreachable(api: FakeApi, client: Client) -> None:
    api.put(PODS, pod("p"))

    async with aclosing(client.watch(PODS)) as lines:
        await anext(lines)
        api.cut_watches()
        with pytest.raises(UnreachableError):
            await anext(lines)


async def test_token_file_is_read_again_after_401(api: FakeApi, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    config = kubeconfig(tmp_path / "config", api.url, {"tokenFile": str(token)})

    async with await Client.connect(config) as client:
        await client.get(PODS)
        token.write_text("second\n")
        api.fail_next("GET", PODS, Refusal(401, "Unauthorized"))
        await client.get(PODS)

    sent = [request.headers["Authorization"] for request in api.requests]
    assert sent == ["Bearer first", "Bearer first", "Bearer second"]


async def test_token_file_is_read_again_in_time(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv(
        "KUBECONFIG", kubeconfig(tmp_path / "config", api.url, {"tokenFile": str(token)})
    )
    monkeypatch.setattr(connections, "REFRESH_S", 0.0)

    async with await Client.connect() as client:
        token.write_text("second")
        await client.get(PODS)

    assert api.requests[-1].headers["Authorization"] == "Bearer second"


async def test_exec_plugin_gives_the_token(api: FakeApi, tmp_path: Path) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "plugged"},
    }
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "echo",
        "args": [json.dumps(credential)],
    }
    config = kubeconfig(tmp_path / "config", api.url, {"exec": plugin})

    async with await Client.connect(config) as client:
        await client.get(PODS)

    assert api.requests[-1].headers["Authorization"] == "Bearer plugged"


async def test_second_401_is_the_callers(api: FakeApi, client: Client) -> None:
    api.fail_next("GET", PODS, Refusal(401, "Unauthorized"))
    api.fail_next("GET", PODS, Refusal(401, "Unauthorized"))

    with pytest.raises(ApiError, match="401"):
        await client.get(PODS)


async def test_missing_and_broken_configuration_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    broken = tmp_path / "broken"
    broken.write_text("clusters: 7")

    for given in (None, str(tmp_path / "absent"), str(broken)):
        with pytest.raises(ConfigurationError, match="--kubeconfig"):
            await Client.connect(given)
