"""The way to the leader, and the small server that passes its page on."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from berthmaster.api import names
from berthmaster.cli import deciding, page
from berthmaster.cli.errors import CommandError
from berthmaster.cli.output import Report, render_plain
from berthmaster.cli.page import Gate
from berthmaster.cli.reaching import Way, reach
from berthmaster.cluster.client import Client
from berthmaster_sandbox.pki import Authority
from support.fake_api import FakeApi

HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
ACCOUNTS = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/serviceaccounts"
TOKENS = f"{ACCOUNTS}/{names.VIEWER_SERVICE_ACCOUNT}/token"
PODS = f"/api/v1/namespaces/{names.SYSTEM_NAMESPACE}/pods"
HOST = f"berthmaster-webhook.{names.SYSTEM_NAMESPACE}.svc"


class Harbour:
    """A leader's port for readers, and the API server that knows of it."""

    def __init__(self, api: FakeApi, address: str, shown: list[str]) -> None:
        self.api = api
        self.address = address
        # The headers by which it was asked.
        self.shown = shown


@asynccontextmanager
async def harbour_of(folder: Path, *, trusts: bool = True) -> AsyncIterator[Harbour]:
    authority, other = Authority(folder, name="ca"), Authority(folder, name="other")
    pair = authority.issue_server("leader", "leader", dns_names=[HOST])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_path, pair.key_path)
    shown: list[str] = []
    async with FakeApi() as api:
        trusted = (authority if trusts else other).certificate_path.read_bytes()
        hook = {"clientConfig": {"caBundle": base64.b64encode(trusted).decode()}}
        api.put(HOOKS, {"metadata": {"name": names.WEBHOOK_CONFIGURATION}, "webhooks": [hook]})
        labels = {names.ROLE_LABEL: names.ROLE_LEADER}
        api.put(PODS, {"metadata": {"name": "hook-0", "labels": labels}})
        api.answers["POST", TOKENS] = {"status": {"token": "t0ken"}}

        async def answer(request: web.Request) -> web.Response:
            shown.append(request.headers["Authorization"])
            if request.query.get("id") == "gone":
                raise web.HTTPNotFound
            return web.json_response({"path": request.path, "query": dict(request.query)})

        app = web.Application()
        app.router.add_get("/{any:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        address = "{}:{}".format(*runner.addresses[0][:2])
        try:
            yield Harbour(api, address, shown)
        finally:
            await runner.cleanup()


@pytest.fixture
async def harbour(tmp_path: Path) -> AsyncIterator[Harbour]:
    async with harbour_of(tmp_path) as it:
        yield it


async def test_leader_is_asked_with_a_short_lived_token_of_the_viewer(harbour: Harbour) -> None:
    async with (
        Client.at(harbour.api.url) as client,
        reach(client, Way(address=harbour.address)) as leader,
    ):
        assert await leader.get_json("/decisions", id="x") == {
            "path": "/decisions",
            "query": {"id": "x"},
        }
        assert await leader.get_json("/decisions", id="gone") is None

    assert set(harbour.shown) == {"Bearer t0ken"}
    (asked,) = [it for it in harbour.api.requests if it.path == TOKENS]
    assert json.loads(asked.body)["spec"]["expirationSeconds"] == 3600


async def test_stranger_with_another_certificate_gets_no_token(tmp_path: Path) -> None:
    async with (
        harbour_of(tmp_path, trusts=False) as harbour,
        Client.at(harbour.api.url) as client,
        reach(client, Way(address=harbour.address)) as leader,
    ):
        with pytest.raises(CommandError, match="CERTIFICATE_VERIFY_FAILED"):
            await leader.get("/harbour.json")

    assert harbour.shown == []


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that notes how it was called, says what the file `says` has, and waits."""
    script = tmp_path / "bin" / "kubectl"
    script.parent.mkdir()
    lines = ("#!/bin/sh", f'printf "%s\\n" "$@" > {tmp_path}/called', f"cat {tmp_path}/says")
    script.write_text("\n".join((*lines, f"test -e {tmp_path}/fails && exit 1", "exec sleep 60\n")))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


async def test_port_is_forwarded_by_kubectl_to_the_leaders_pod(
    harbour: Harbour, kubectl: Path
) -> None:
    port = harbour.address.rpartition(":")[2]
    (kubectl / "says").write_text(f"Forwarding from 127.0.0.1:{port} -> 8443\n")
    async with (
        Client.at(harbour.api.url) as client,
        reach(client, Way(context="prod")) as leader,
    ):
        found = await leader.get_json("/harbour.json")

    assert found is not None
    called = (kubectl / "called").read_text().split()
    assert called == [
        "-n",
        names.SYSTEM_NAMESPACE,
        "port-forward",
        "pod/hook-0",
        ":8443",
        "--address=127.0.0.1",
        "--context",
        "prod",
    ]


async def test_forwarding_that_fails_says_so(harbour: Harbour, kubectl: Path) -> None:
    (kubectl / "says").write_text("")
    (kubectl / "fails").touch()
    async with Client.at(harbour.api.url) as client:
        with pytest.raises(CommandError, match="kubectl port-forward"):
            async with reach(client, Way()):
                pass


@asynccontextmanager
async def gate_of(harbour: Harbour) -> AsyncIterator[Gate]:
    async with (
        Client.at(harbour.api.url) as client,
        reach(client, Way(address=harbour.address)) as leader,
    ):
        gate = Gate(leader)
        server = await asyncio.start_server(gate.answer, "127.0.0.1", 0)
        async with server:
            gate.port = server.sockets[0].getsockname()[1]
            yield gate


async def test_page_is_passed_on_to_who_knows_its_address(harbour: Harbour) -> None:
    async with gate_of(harbour) as gate, aiohttp.ClientSession() as session:

        async def get(url: str, **headers: str) -> tuple[int, Any]:
            async with session.get(url, headers=headers) as answer:
                return answer.status, await answer.text()

        async with session.get(gate.url) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        status, text = await get(f"{gate.url}.json")
        assert (status, json.loads(text)["path"]) == (200, "/harbour.json")
        refused = [
            await get(re.sub("/[^/]+/harbour$", path, gate.url))
            for path in ("/harbour", "/", "/wrong/harbour", "//harbour")
        ]
        refused.append(await get(gate.url.replace("harbour", "decisions")))
        # A page of somebody else whose name was made to lead here.
        refused.append(await get(gate.url, Host=f"evil.example:{gate.port}"))
        refused.append(await get(gate.url, Host=f"localhost:{gate.port}"))
        async with session.post(gate.url) as answer:
            refused.append((answer.status, await answer.text()))

    assert refused == [(404, "nothing here")] * len(refused)


async def test_page_says_where_the_leader_went(harbour: Harbour) -> None:
    async with gate_of(harbour) as gate, aiohttp.ClientSession() as session:
        gate._leader._address = "127.0.0.1:1"
        async with session.get(gate.url) as answer:
            assert answer.status == 502
            assert "no answer from the leader" in await answer.text()


async def test_port_that_is_taken_is_told(harbour: Harbour) -> None:
    port = int(harbour.address.rpartition(":")[2])
    async with (
        Client.at(harbour.api.url) as client,
        reach(client, Way(address=harbour.address)) as leader,
    ):
        with pytest.raises(CommandError, match=f"port {port} cannot be served"):
            await page.serve(leader, port)


PLAIN = Report(sentence="shop/p is on n1.", data={"pod": "shop/p"})
TOLD: dict[str, Any] = {"id": "d-1", "time": 1_800_000_000.0, "table": None}


def test_table_stands_behind_the_report() -> None:
    rows = [
        {"node": "n1", "score": 97.04, "scores": {"diskio": 97.0, "resources": 12.5}},
        {"node": "n2", "refused": "disk IO read bandwidth is not enough"},
        {"node": "n3", "refused": "disk IO read bandwidth is not enough"},
    ]

    report = deciding.add_table(PLAIN, {**TOLD, "table": rows}, nodes_shown=2)

    text = render_plain(report)
    assert "Decision d-1 of 2027-01-15 08:00:00 UTC:" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["n1", "97", "97", "12.5", "-"] in lines
    assert [
        "n2",
        "-",
        "-",
        "-",
        *["disk", "IO", "read", "bandwidth", "is", "not", "enough"],
    ] in lines
    assert "1 node not shown" in text
    assert report.data["table"]["table"] == rows


def test_table_that_had_to_go_is_told() -> None:
    report = deciding.add_table(PLAIN, TOLD, nodes_shown=20)

    assert report.tables == ()
    assert "its table had to make room" in report.remarks[0]


async def test_decision_that_nobody_remembers_is_told(harbour: Harbour) -> None:
    async with (
        Client.at(harbour.api.url) as client,
        reach(client, Way(address=harbour.address)) as leader,
    ):
        with pytest.raises(CommandError, match="has no decision about shop/p in its memory"):
            await deciding.fetch(leader, "shop/p", "gone")
        assert (await deciding.fetch(leader, "shop/p", ""))["query"] == {"pod": "shop/p"}
