"""The part of the kubelet's HTTPS interface that `kubectl logs` needs.

Only the API server may ask: a client certificate of the sandbox's authority for the group
`system:masters` is required, since a loopback port is open to every user of the machine. The
serving certificate is made at the start; the API server does not verify it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from berthmaster_sandbox.pki import Authority

_FOLLOW_S = 0.2
_ASKER = ("organizationName", "system:masters")


class LogSource(Protocol):
    """What knows where logs are."""

    def log_path(self, namespace: str, name: str, container: str | None, *, previous: bool) -> Path:
        """Return the file of a container's run. Raises KeyError when there is no container."""

    def is_running(self, namespace: str, name: str, container: str, path: Path) -> bool:
        """Say whether a container still writes to `path`."""


@contextlib.asynccontextmanager
async def serve_logs(
    source: LogSource, *, folder: Path, ca_path: Path, host: str
) -> AsyncIterator[int]:
    """Serve logs on a free port, which is yielded, until the block is left."""
    context = await asyncio.to_thread(_build_context, folder, ca_path, host)

    async def container_logs(request: web.Request) -> web.StreamResponse:
        return await _container_logs(request, source)

    application = web.Application(middlewares=[_require_asker])
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", container_logs)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0, ssl_context=context)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def tail_offset(content: bytes, lines: int) -> int:
    """Return where the last `lines` lines begin."""
    offset = len(content) - 1 if content.endswith(b"\n") else len(content)
    for _ in range(lines):
        offset = content.rfind(b"\n", 0, max(offset, 0))
        if offset < 0:
            return 0
    return offset + 1 if lines else len(content)


@web.middleware
async def _require_asker(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    certificate: Mapping[str, Any] = request.get_extra_info("peercert") or {}
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    if _ASKER not in subject:
        raise web.HTTPForbidden(text="only the API server may ask\n")
    return await handler(request)


async def _container_logs(request: web.Request, source: LogSource) -> web.StreamResponse:
    place = (request.match_info["namespace"], request.match_info["pod"])
    container = request.match_info["container"]
    query = request.query
    try:
        path = source.log_path(*place, container, previous=query.get("previous") == "true")
    except KeyError as error:
        raise web.HTTPNotFound(text=f"{error.args[0]}\n") from error
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    content = await asyncio.to_thread(_read, path, 0)
    position = tail_offset(content, int(query["tailLines"])) if "tailLines" in query else 0
    limit = int(query.get("limitBytes") or 0) or len(content)
    await response.prepare(request)
    await response.write(content[position : position + limit])
    if query.get("follow") == "true":
        await _follow(
            response, path, len(content), lambda: source.is_running(*place, container, path)
        )
    await response.write_eof()
    return response


async def _follow(
    response: web.StreamResponse, path: Path, position: int, is_written: Callable[[], bool]
) -> None:
    """Send what is appended until the container's run has ended."""
    while True:
        was_written = is_written()
        added = await asyncio.to_thread(_read, path, position)
        if added:
            position += len(added)
            await response.write(added)
        elif not was_written:
            return
        await asyncio.sleep(_FOLLOW_S)


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read()
    except FileNotFoundError:
        return b""


def _build_context(folder: Path, ca_path: Path, host: str) -> ssl.SSLContext:
    pair = Authority(folder, name="serving-ca").issue_server("serving", "kubelet", addresses=[host])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_path, pair.key_path)
    context.load_verify_locations(ca_path)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
