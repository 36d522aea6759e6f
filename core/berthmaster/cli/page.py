"""`page`: the page of the harbour on this machine, for a browser that has no token to show.

A small server on the loopback passes a handful of paths on to the leader. Its own path has a secret in it,
and it answers to no other host name than its own, so that neither other users of this machine nor
pages of others in the same browser can read through it.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Mapping

from berthmaster.cli.errors import CommandError
from berthmaster.cli.reaching import TOKEN_LIFE_S, Answer, Leader

_PATHS = frozenset({"/harbour", "/harbour.css", "/harbour.js", "/harbour.json"})
_MOST_HEAD = 16 * 1024
_READ_TIMEOUT_S = 10.0
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 502: "Bad Gateway"}
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}


async def serve(leader: Leader, port: int) -> None:
    """Say where the page is and serve it until cancelled, or until the token has ended."""
    gate = Gate(leader)
    try:
        server = await asyncio.start_server(gate.answer, "127.0.0.1", port, limit=_MOST_HEAD)
    except OSError as error:
        raise CommandError(f"port {port} cannot be served: {error.strerror}") from error
    async with server:
        gate.port = server.sockets[0].getsockname()[1]
        print(gate.url, flush=True)
        print("Serving until interrupted, for an hour at most.", file=sys.stderr, flush=True)
        await asyncio.sleep(TOKEN_LIFE_S)
    raise CommandError("the hour is over; start the command again")


class Gate:
    """Answers the browser; `port` is where it is served."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._secret = secrets.token_urlsafe(16)
        self.port = 0

    @property
    def url(self) -> str:
        """Return the page's address."""
        return f"http://127.0.0.1:{self.port}/{self._secret}/harbour"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then close."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            answer = await self._reply(head)
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            answer = Answer(400, "text/plain", b"")
        try:
            writer.write(_write(answer))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except OSError:
            # The browser went away.
            writer.close()

    async def _reply(self, head: str) -> Answer:
        first, *lines = head.split("\r\n")
        hosts = [line[5:].strip() for line in lines if line[:5].lower() == "host:"]
        method, _, rest = first.partition(" ")
        path = rest.partition(" ")[0]
        own, _, name = path.removeprefix("/").partition("/")
        is_ours = hosts == [f"127.0.0.1:{self.port}"] and secrets.compare_digest(
            own.encode(), self._secret.encode()
        )
        if method != "GET" or not is_ours or f"/{name}" not in _PATHS:
            return Answer(404, "text/plain", b"nothing here")
        try:
            return await self._leader.get(f"/{name}")
        except CommandError as error:
            return Answer(502, "text/plain", str(error).encode())


def _write(answer: Answer) -> bytes:
    headers = {
        "Content-Type": f"{answer.kind}; charset=utf-8",
        "Content-Length": str(len(answer.body)),
        **HEADERS,
    }
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Other')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + answer.body
