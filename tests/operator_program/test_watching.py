"""Kopf starts where a container puts it: no user name, no home, nothing but a pod's name."""

from __future__ import annotations

import asyncio
import getpass
from typing import Any, cast

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from berthmaster.cluster.connections import Connection
from berthmaster_operator import watching


async def test_user_of_a_container_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's uid is no line of /etc/passwd, and a cluster may choose another one."""

    def refuse() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(getpass, "getuser", refuse)
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**_: object) -> kopf.ConnectionInfo:
        # Nobody listens there, and nobody has to: Kopf is stopped before it has asked.
        return kopf.ConnectionInfo(server="http://127.0.0.1:1")

    stop = asyncio.Event()
    stop.set()

    async with asyncio.timeout(60):
        await watching.run(registry, name="operator-1", stop=stop, restore_signals=lambda: None)


async def test_kinds_are_looked_for_when_the_api_server_tells_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kind is on its list only after its CRD's last event, and Kopf asks once for each event."""
    asked: list[str] = []

    async def settle() -> None:
        asked.append("settled")

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({})

    async def nobody(_: bool) -> None:
        return None

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:

        async def connect() -> Connection:
            url = str(server.make_url("/")).rstrip("/")
            return Connection(base_url=url, origin="the test", authorization=nobody)

        monkeypatch.setattr(watching, "load_connection", connect)
        monkeypatch.setattr(watching, "_settle", settle)
        registry = kopf.OperatorRegistry()
        watching.register_login(registry)
        (handler,) = registry._activities.get_all_handlers()
        login = cast("Any", handler.fn)
        # Each login opens a session anew; that is no new start.
        for _ in range(2):
            opened = await login()
            async with opened.aiohttp_session as session:
                for path in ("/apis", "/apis/a.example/v1", "/apis"):
                    async with session.get(f"{opened.server}{path}"):
                        pass

    look = ["settled", "/apis"]
    assert asked == ["/apis", "/apis/a.example/v1", *look, *look, "/apis/a.example/v1", *look]
