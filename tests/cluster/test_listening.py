from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from berthmaster.cluster import listening
from berthmaster.cluster.listening import listen
from berthmaster.cluster.serving import load_pair, new_server_context
from berthmaster_sandbox.pki import Authority

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@asynccontextmanager
async def serving(
    most: int, context: ssl.SSLContext | None = None, *, idle_s: float = 60
) -> AsyncIterator[int]:
    async def say(_: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/", say)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=idle_s)
    await runner.setup()
    assert runner.server is not None
    listener = await listen(runner.server, "127.0.0.1", 0, context, most=most)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await runner.cleanup()


async def is_answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        async with asyncio.timeout(5):
            writer.write(HEAD)
            return (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


async def test_connections_beyond_the_limit_are_closed_and_others_go_on() -> None:
    async with serving(most=3) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert [await is_answered(*it) for it in held] == [True] * 3

        beyond = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        assert [await is_answered(*it) for it in beyond] == [False] * 5
        assert [await is_answered(*it) for it in held] == [True] * 3

        held[0][1].close()
        await held[0][1].wait_closed()
        async with asyncio.timeout(5):
            # The server hears of it a moment later.
            while not await is_answered(
                *(again := await asyncio.open_connection("127.0.0.1", port))
            ):
                again[1].close()
        for _, writer in (*held, *beyond, again):
            writer.close()


async def test_handshake_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S", 0.2)
    pair = Authority(tmp_path).issue_server("s", "s", dns_names=["s"])
    context = new_server_context()
    load_pair(context, pair.certificate_pem, pair.key_pem)
    async with serving(most=1, context=context) as port:
        silent, writer = await asyncio.open_connection("127.0.0.1", port)
        # It counts from its first moment.
        beyond, other = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(5):
            assert await beyond.read() == b""
            assert await silent.read() == b""
        writer.close()
        other.close()


async def test_head_that_does_not_end_is_given_up() -> None:
    async with serving(most=2, idle_s=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD[:-2])
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_port_that_is_taken_is_told() -> None:
    async with serving(most=1) as port:
        with pytest.raises(OSError, match="in use"):
            await listen(asyncio.Protocol, "127.0.0.1", port)


@pytest.mark.parametrize("address", ["0.0.0.0", "::1", "::"])  # noqa: S104 - where pods listen
async def test_addresses_of_both_kinds(address: str) -> None:
    listener = await listen(asyncio.Protocol, address, 0)
    assert listener.sockets[0].getsockname()[1]
    listener.close()
