"""Connections through a relay work, are cut, and are left half-open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from berthmaster_sandbox.chaos.relays import Relay

pytestmark = pytest.mark.asyncio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echoing() -> AsyncIterator[Relay]:
    """A relay to a server that says everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Relay() as relay:
        relay.target = server.sockets[0].getsockname()[:2]
        yield relay


async def connect(relay: Relay) -> Streams:
    host, _, port = relay.url.removeprefix("https://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(streams: Streams, words: bytes, *, within_s: float = 5.0) -> bytes:
    streams[1].write(words)
    async with asyncio.timeout(within_s):
        return await streams[0].read(100)


async def test_what_is_sent_comes_through_both_ways_and_ends() -> None:
    async with echoing() as relay:
        streams = await connect(relay)

        assert await ask(streams, b"hello") == b"hello"

        streams[1].write_eof()
        assert await streams[0].read() == b""
        streams[1].close()


async def test_cut_connections_are_reset() -> None:
    async with echoing() as relay:
        streams = await connect(relay)
        await ask(streams, b"hello")

        assert relay.cut() == 1

        with pytest.raises(ConnectionResetError):
            await streams[0].read(100)
        streams[1].close()


async def test_frozen_connections_stay_open_and_silent_while_new_ones_work() -> None:
    async with echoing() as relay:
        old = await connect(relay)
        await ask(old, b"hello")

        assert relay.freeze() == 1

        with pytest.raises(TimeoutError):
            await ask(old, b"anybody", within_s=0.2)
        assert not old[0].at_eof()
        new = await connect(relay)
        assert await ask(new, b"hello") == b"hello"
        old[1].close()
        new[1].close()


async def test_connection_is_reset_where_there_is_no_server() -> None:
    async with Relay() as relay:
        relay.target = ("127.0.0.1", 1)

        streams = await connect(relay)

        with pytest.raises(ConnectionResetError):
            await streams[0].read(100)
        streams[1].close()
