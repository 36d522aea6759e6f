"""How many connections a program of ours takes on a port: no more than it can hold.

What comes beyond `MOST_CONNECTIONS` is closed as it is accepted, before TLS costs anything, and a handshake
that has not ended after `HANDSHAKE_S` is given up. How long a connection may sit idle, and how much head
and body a request may have, is for the HTTP server to say.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import weakref
from collections.abc import Callable
from typing import Any

# The API server keeps 25 idle ones to a webhook, and opens more in a burst.
MOST_CONNECTIONS = 512
HANDSHAKE_S = 5.0
_BACKLOG = 128


class LimitedSocket(socket.socket):
    """A listening socket that counts what it accepted and is still open."""

    def __init__(self, address: str, port: int, *, most: int) -> None:
        """Bind and listen. Raises OSError if the port is taken."""
        super().__init__(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self._most = most
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.setblocking(False)
            self.bind((address, port))
            self.listen(_BACKLOG)
        except OSError:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; beyond the limit close it and raise ConnectionAbortedError."""
        connection, peer = super().accept()
        if len(self._open) >= self._most:
            for it in [it for it in self._open if it.fileno() < 0]:
                self._open.discard(it)
        if len(self._open) >= self._most:
            connection.close()
            raise ConnectionAbortedError("too many connections")
        self._open.add(connection)
        return connection, peer


async def listen(
    make: Callable[[], asyncio.Protocol],
    address: str,
    port: int,
    context: ssl.SSLContext | None = None,
    *,
    most: int = MOST_CONNECTIONS,
) -> asyncio.Server:
    """Serve until the returned server is closed. Raises OSError if the port is taken."""
    return await asyncio.get_running_loop().create_server(
        make,
        sock=LimitedSocket(address, port, most=most),
        ssl=context,
        ssl_handshake_timeout=None if context is None else HANDSHAKE_S,
    )
