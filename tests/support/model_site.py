"""A web server on loopback that gives disk models over TLS, with an authority of its own."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from berthmaster_operator import certificates


class ModelSite:
    """`pages` are bodies by path, `redirects` targets by path; paths in `hangs` never answer."""

    def __init__(self, ca_file: Path) -> None:
        self.ca_file = ca_file
        self.origin = ""
        self.pages: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.hangs: set[str] = set()
        self.asked: list[str] = []

    def put(self, path: str, body: str | bytes) -> tuple[str, str]:
        """Give a body at a path; return its URL and hash."""
        self.pages[path] = body.encode() if isinstance(body, str) else body
        return self.origin + path, hashlib.sha256(self.pages[path]).hexdigest()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path in self.hangs:
            await asyncio.Event().wait()
        if request.path in self.redirects:
            # As it is, though it were no URL.
            return web.Response(status=302, headers={"Location": self.redirects[request.path]})
        if request.path not in self.pages:
            raise web.HTTPNotFound
        return web.Response(body=self.pages[request.path])


@asynccontextmanager
async def serve_models(folder: Path) -> AsyncIterator[ModelSite]:
    """Run a site; `folder` gets its certificate and the authority's."""
    now = datetime.now(UTC)
    authority = certificates.issue_authority(now)
    leaf = certificates.issue_leaf(authority, ("127.0.0.1",), now)
    (folder / "site.pem").write_bytes(leaf.certificate + leaf.key)
    site = ModelSite(folder / "ca.pem")
    site.ca_file.write_bytes(authority.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "site.pem")
    app = web.Application()
    app.router.add_get("/{path:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        site.origin = f"https://127.0.0.1:{runner.addresses[0][1]}"
        yield site
    finally:
        await runner.cleanup()
