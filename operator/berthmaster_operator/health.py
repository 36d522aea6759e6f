"""Health and metrics over plain HTTP: `/healthz`, `/readyz`, `/metrics`.

Nothing here is secret and nothing can be changed. Alive means that the event loop answers; ready
means that the whole cluster was seen, whether this process leads or stands by.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from berthmaster_operator.metrics import CONTENT_TYPE, Metrics


def build_app(
    metrics: Metrics, *, not_ready_because: Callable[[], str], refresh: Callable[[], None]
) -> web.Application:
    """Return the application; `refresh` is called before a page of metrics is rendered."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        because = not_ready_because()
        return web.Response(text=f"{because or 'ok'}\n", status=503 if because else 200)

    async def show_metrics(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    return app


async def serve(app: web.Application, address: str, port: int) -> web.AppRunner:
    """Listen until the returned runner is cleaned up. Raises OSError if the port is taken."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, address, port).start()
    return runner
