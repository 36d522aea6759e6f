"""A TCP relay between the pods of one process node and the API server: where the network fails.

It hands on bytes and looks at none. `cut` resets every connection. `freeze` leaves those that there are
half-open: both ends believe in them, and nothing comes through any more, for ever; new ones work. That is
what a router that lost its table, or a load balancer that lost a backend, does to a watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class Relay:
    """Listens on loopback within `async with`; `target` may be named later."""

    def __init__(self) -> None:
        self.target = ("127.0.0.1", 0)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and cut what there is."""
        if self._server is not None:
            self._server.close()
        self.cut()

    @property
    def url(self) -> str:
        """Return the URL that stands for the API server's."""
        if self._server is None:
            raise RuntimeError("the relay is not started: use it with `async with`")
        return f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> int:
        """Reset every connection, frozen ones as well; return how many."""
        links, self._links = self._links, set()
        for link in links:
            link.reset()
        return len(links)

    def freeze(self) -> int:
        """Let nothing through any more on the connections that there are; return how many."""
        for link in self._links:
            link.is_frozen = True
        return len(self._links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(link.pump(reader, far_writer))
                group.create_task(link.pump(far_reader, writer))
        finally:
            self._links.discard(link)
            link.reset()


class _Link:
    """One connection and its other half."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.is_frozen = False

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on until this side ends, then end the other; frozen, swallow everything."""
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if not self.is_frozen:
                    writer.write(data)
                    await writer.drain()
        writer.close()

    def reset(self) -> None:
        """End both halves as a machine that is gone would."""
        for writer in self._writers:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
