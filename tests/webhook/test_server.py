from __future__ import annotations

import asyncio
import base64
import io
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from berthmaster.api import names
from berthmaster.api.digests import certificate_digest
from berthmaster.cluster.client import Client
from berthmaster.cluster.serving import load_pair, new_server_context
from berthmaster_sandbox.pki import Authority
from berthmaster_webhook import server
from berthmaster_webhook.admission import Admission
from berthmaster_webhook.certificates import Certificates
from berthmaster_webhook.metrics import Metrics
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.server import Routes, read_timeout
from support.fake_api import FakeApi
from support.waiting import until
from support.webhook_world import EPOCH, World, gated_manifest, make_review

PODS = "/api/v1/namespaces/berthmaster-system/pods"
SECRETS = "/api/v1/namespaces/berthmaster-system/secrets"
SOON = aiohttp.ClientTimeout(total=0.1)
PLACE = f"/place/{EPOCH}?timeout=1s"
HOST = "berthmaster-webhook.berthmaster-system.svc"


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    routes = Routes(Admission(world.tools, world.term), world.tools, list)
    async with TestClient(TestServer(routes.admission_app())) as client:
        yield client


@asynccontextmanager
async def probed(
    world: World, not_ready: Callable[[], list[str]] = list
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    routes = Routes(Admission(world.tools, world.term), world.tools, not_ready)
    async with TestClient(TestServer(routes.probe_app())) as client:
        yield client


async def test_review_is_answered(world: World) -> None:
    world.add_node("n1")

    async with serving(world) as client:
        response = await client.post(PLACE, data=make_review(gated_manifest()))
        answer = await response.json()

    assert response.status == 200
    assert answer["response"]["patchType"] == "JSONPatch"
    assert len(world.state.ledger.assumed) == 1
    assert b'outcome="placed"} 1.0' in world.tools.metrics.render()


@pytest.mark.parametrize("path", ["/place", "/place/x", "/place/99", "/place/-3", "/place/²"])
async def test_other_epochs_close_the_connection(world: World, path: str) -> None:
    world.add_node("n1")

    async with serving(world) as client:
        response = await client.post(path, data=make_review(gated_manifest()))
        answer = await response.json()

    assert response.headers["Connection"] == "close"
    assert "patch" not in answer["response"]


async def test_too_long_body_is_413(world: World) -> None:
    async with serving(world) as client:
        response = await client.post(PLACE, data=io.BytesIO(b"x" * (7 * 1024 * 1024 + 1)))

    assert response.status == 413


async def test_late_answer_is_not_sent_and_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_node("n1")
    admission = Admission(world.tools, world.term)
    reply = admission.reply

    def slow(body: bytes, *, epoch: int | None) -> Any:
        answer = reply(body, epoch=epoch)
        world.now_s += 1.5
        return answer

    monkeypatch.setattr(admission, "reply", slow)
    routes = Routes(admission, world.tools, list)
    async with TestClient(TestServer(routes.admission_app())) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.post(PLACE, data=make_review(gated_manifest()))

    assert not world.state.ledger.assumed


async def test_request_that_nobody_waits_for_is_not_decided(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_node("n1")
    body = make_review(gated_manifest())

    async def read_until_gone(request: web.Request, most_bytes: int) -> bytes:
        await until(lambda: request.transport is None or request.transport.is_closing())
        return body

    monkeypatch.setattr(server, "read_body", read_until_gone)
    # The test server would cancel the handler, which the webhook's does not.
    runner = web.AppRunner(
        Routes(Admission(world.tools, world.term), world.tools, list).admission_app()
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:
        url = f"http://{host}:{port}/place/{EPOCH}?timeout=10s"
        with pytest.raises(TimeoutError):
            await session.post(url, data=body, timeout=SOON)
    await until(lambda: b"late_answers_total 1.0" in world.tools.metrics.render())
    await runner.cleanup()

    assert not world.state.ledger.assumed


async def test_drain_waits_for_answers_and_not_for_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that trickles in must not hold up the successor; an answer half written must."""
    world.add_node("n1")
    body, read_body = make_review(gated_manifest()), server.read_body
    is_read, is_sent, is_written = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield body[:10]
        await is_sent.wait()
        yield body[10:]

    async def read_slowly(request: web.Request, most_bytes: int) -> bytes | None:
        is_read.set()
        return await read_body(request, most_bytes)

    async def write_slowly(response: web.Response, data: bytes = b"") -> None:
        await is_written.wait()
        await web.StreamResponse.write_eof(response, data)

    async def drains() -> bool:
        return await routes.drained(0.05)

    monkeypatch.setattr(server, "read_body", read_slowly)
    routes = Routes(Admission(world.tools, world.term), world.tools, list)
    async with TestClient(TestServer(routes.admission_app())) as client:
        asking = asyncio.create_task(client.post(PLACE.replace("1s", "10s"), data=trickle()))
        await is_read.wait()
        assert await drains()

        monkeypatch.setattr(web.Response, "write_eof", write_slowly)
        is_sent.set()
        await until(lambda: len(world.state.ledger.assumed) == 1)
        assert not await drains()

        is_written.set()
        await asking
        assert await drains()


async def test_crash_in_one_request_is_a_500(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_node("n1")
    admission = Admission(world.tools, world.term)

    def broken(body: bytes, *, epoch: int | None) -> Any:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(admission, "reply", broken)
    async with TestClient(TestServer(Routes(admission, world.tools, list).admission_app())) as it:
        response = await it.post(PLACE, data=make_review(gated_manifest()))

    assert response.status == 500


async def test_standby_is_ready_and_leaves_the_gate(world: World) -> None:
    world.term.forbids, world.term.epoch = Outcome.NOT_LEADER, None

    async with probed(world) as client:
        ready = await client.get("/readyz")
    async with serving(world) as client:
        response = await client.post(PLACE, data=make_review(gated_manifest()))

    assert ready.status == 200
    assert response.headers["Connection"] == "close"


async def test_missing_parts_are_named_by_readyz(world: World) -> None:
    async with probed(world, lambda: ["pods not listed yet"]) as client:
        response = await client.get("/readyz")
        alive = await client.get("/healthz")
        text = await response.text()

    assert (response.status, text, alive.status) == (503, "pods not listed yet", 200)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("500ms", 0.5),
        ("29s500ms", 29.5),
        ("1m30s", 30.0),
        ("9999m", 30.0),
        ("1.5s", 1.5),
        ("", 10.0),
        ("soon", 10.0),
        ("0s", 10.0),
    ],
)
def test_timeout_is_read_as_go_writes_it(text: str, seconds: float) -> None:
    assert read_timeout(text) == seconds


def secret_of(authority: Authority, name: str) -> dict[str, Any]:
    pair = authority.issue_server(name, name, dns_names=[HOST])
    data = {"tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}
    return {
        "metadata": {"name": names.WEBHOOK_TLS_SECRET, "namespace": "berthmaster-system"},
        "data": {key: base64.b64encode(pem).decode() for key, pem in data.items()},
    }


async def common_name(port: int, authority: Authority) -> str:
    context = ssl.create_default_context(cafile=str(authority.certificate_path))
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOST)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    await writer.wait_closed()
    subject = dict(part[0] for part in certificate["subject"])
    return str(subject["commonName"])


def reported(api: FakeApi) -> str | None:
    annotations: dict[str, str] = api.objects[PODS]["hook-0"]["metadata"]["annotations"]
    return annotations.get(names.SERVING)


async def test_new_certificate_is_served_without_restart(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    routes = Routes(Admission(world.tools, world.term), world.tools, list)
    runner = web.AppRunner(routes.admission_app())
    await runner.setup()
    async with FakeApi() as api, Client.at(api.url) as client:
        api.put(PODS, {"metadata": {"name": "hook-0", "namespace": "berthmaster-system"}})
        api.put(SECRETS, secret_of(authority, "first"))
        certificates = Certificates(client, "berthmaster-system", "hook-0", Metrics())
        task = asyncio.create_task(certificates.run())
        await asyncio.wait_for(certificates.loaded.wait(), 5)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificates.context)
        await site.start()
        port = runner.addresses[0][1]

        before = await common_name(port, authority)
        await api.until_watched(SECRETS)
        broken = secret_of(authority, "broken")
        broken["data"]["tls.key"] = base64.b64encode(b"nothing").decode()
        api.put(SECRETS, broken)
        second = secret_of(authority, "second")
        api.put(SECRETS, second)
        async with asyncio.timeout(5):
            while (after := await common_name(port, authority)) == before:
                await asyncio.sleep(0.02)
            # Whoever takes an old authority away goes by what the pod says.
            served = certificate_digest(base64.b64decode(second["data"]["tls.crt"]))
            while reported(api) != served:
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()

    assert (before, after) == ("first", "second")


def test_pair_that_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = (authority.issue_server(name, name, dns_names=[HOST]) for name in "ab")

    with pytest.raises(ssl.SSLError):
        load_pair(new_server_context(), one.certificate_pem, other.key_pem)


async def test_metrics_are_not_for_whoever_calls_the_webhook(world: World) -> None:
    async with serving(world) as client, probed(world) as probes:
        assert (await client.get("/metrics")).status == 404
        assert (await probes.get("/metrics")).status == 404
