"""What may be read of this replica over TLS, by those whom the API server lets: metrics, the harbour.

A route that is added here is guarded: the caller needs the right to its path (`nonResourceURLs`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from berthmaster.cluster.reviews import Doorkeeper
from berthmaster_webhook.metrics import CONTENT_TYPE, Metrics

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(doorkeeper: Doorkeeper, metrics: Metrics) -> web.Application:
    """Return the application of the port for readers."""

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "")
        refusal = await doorkeeper.refuse(shown, request.method.lower(), request.path)
        if refusal is not None:
            return web.Response(status=refusal.status, text=refusal.text)
        return await handler(request)

    async def show_metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(middlewares=[check])
    app.router.add_get("/metrics", show_metrics)
    return app
