"""What is served: `/healthz` and `/readyz` over plain HTTP, `/metrics` over TLS.

Probes tell nothing secret, and nothing can be changed. Alive means that the event loop answers; ready
means that the whole cluster was seen, whether this process leads or stands by. Metrics are for those
whom the API server lets read them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from berthmaster.cluster.listening import listen
from berthmaster.cluster.reviews import Doorkeeper
from berthmaster_operator.metrics import CONTENT_TYPE, Metrics

_IDLE_S = 90.0
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_probes(not_ready_because: Callable[[], str]) -> web.Application:
    """Return the application of the kubelet's probes."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        because = not_ready_because()
        return web.Response(text=f"{because or 'ok'}\n", status=503 if because else 200)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def build_metrics(
    doorkeeper: Doorkeeper, metrics: Metrics, *, refresh: Callable[[], None]
) -> web.Application:
    """Return the application of metrics; `refresh` is called before a page is rendered."""

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "")
        refusal = await doorkeeper.refuse(shown, request.method.lower(), request.path)
        if refusal is not None:
            return web.Response(status=refusal.status, text=refusal.text)
        return await handler(request)

    async def show_metrics(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(middlewares=[check])
    app.router.add_get("/metrics", show_metrics)
    return app


@dataclass(frozen=True, slots=True)
class Served:
    """An application that is served until `close`."""

    runner: web.AppRunner
    listener: asyncio.Server

    async def close(self) -> None:
        """Take no more connections and close those there are; doing so again does nothing."""
        self.listener.close()
        await self.runner.cleanup()


async def serve(
    app: web.Application, address: str, port: int, context: ssl.SSLContext | None = None
) -> Served:
    """Listen until what is returned is closed. Raises OSError if the port is taken."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=_IDLE_S, shutdown_timeout=1.0)
    await runner.setup()
    server = cast("web.Server", runner.server)
    return Served(runner, await listen(server, address, port, context))
