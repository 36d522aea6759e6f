"""Web servers on loopback that play meters, BMCs and model servers, well and badly behaved."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from berthmaster_operator import certificates

Answer = Callable[[web.Request, Any], Any]


class Meters:
    """`answers` by path: JSON data, text, bytes, a response, or a function of request and body.

    Paths in `hangs` never answer; other paths are not found. `asked` has what came: path, user, body.
    """

    def __init__(self) -> None:
        self.origin = ""
        self.answers: dict[str, Any] = {}
        self.hangs: set[str] = set()
        self.asked: list[tuple[str, str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, request.headers.get("Authorization", ""), body))
        if request.path in self.hangs:
            await asyncio.Event().wait()
        if request.path not in self.answers:
            raise web.HTTPNotFound
        found = self.answers[request.path]
        if callable(found):
            found = found(request, body)
        if isinstance(found, web.StreamResponse):
            return found
        if isinstance(found, str | bytes):
            return web.Response(body=found)
        return web.json_response(found)


@asynccontextmanager
async def serve_meters(folder: Path | None = None) -> AsyncIterator[Meters]:
    """Run meters; with a folder over TLS, whose authority is written to `ca.pem` there."""
    meters = Meters()
    context: ssl.SSLContext | None = None
    if folder is not None:
        now = datetime.now(UTC)
        authority = certificates.issue_authority(now)
        leaf = certificates.issue_leaf(authority, ("127.0.0.1",), now)
        (folder / "site.pem").write_bytes(leaf.certificate + leaf.key)
        (folder / "ca.pem").write_bytes(authority.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "site.pem")
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", meters.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        scheme = "http" if context is None else "https"
        meters.origin = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        yield meters
    finally:
        await runner.cleanup()
