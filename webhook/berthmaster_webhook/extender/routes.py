"""The extender's HTTP side: paths, who may ask, and what the protocol wants where something is wrong.

`filter` says what is wrong in its `Error`, with status 200; `bind` does with status 500. The path's
prefix is that of xpushare or of gpushare, so that an old configuration needs a new host only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.extender.binding import Binding, RefusedError
from berthmaster_webhook.extender.filtering import Filtering
from berthmaster_webhook.extender.guarding import Guard
from berthmaster_webhook.extender.inspecting import inspect_node, inspect_nodes
from berthmaster_webhook.extender.protocol import (
    MAX_BODY_BYTES,
    FilterResult,
    MalformedError,
    read_bind,
    read_filter,
    write_bind,
    write_filter,
    write_scores,
)
from berthmaster_webhook.server import read_body

logger = logging.getLogger(__name__)

BODY_TIMEOUT_S = 5.0
VERSION = "berthmaster"
_PREFIX = "/{prefix:(?:xpushare|gpushare)-scheduler}"
_TOO_LONG = f"the body is longer than {MAX_BODY_BYTES} bytes"

_encode = msgspec.json.Encoder().encode
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ExtenderRoutes:
    """The handlers of the extender's port."""

    def __init__(self, tools: Tools, filtering: Filtering, binding: Binding, guard: Guard) -> None:
        self._tools = tools
        self._filtering = filtering
        self._binding = binding
        self._guard = guard

    def app(self) -> web.Application:
        """Return the application of the extender's port."""
        app = web.Application(client_max_size=MAX_BODY_BYTES + 1, middlewares=[self._check])
        for before in ("", "/{token}"):
            app.router.add_post(f"{before}{_PREFIX}/filter", self._filter)
            app.router.add_post(f"{before}{_PREFIX}/prioritize", self._prioritize)
            app.router.add_post(f"{before}{_PREFIX}/bind", self._bind)
            app.router.add_get(f"{before}{_PREFIX}/inspect", self._inspect)
            app.router.add_get(f"{before}{_PREFIX}/inspect/{{node}}", self._inspect_one)
            app.router.add_get(f"{before}/version", self._version)
        return app

    @web.middleware
    async def _check(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        header = request.headers.get("Authorization", "")
        if not self._guard.lets_in(header, request.match_info.get("token", "")):
            return web.Response(status=401, text="expected the extender's token")
        started_s = time.perf_counter()
        response = await handler(request)
        verb = request.path.rpartition("/")[2]
        if request.method == "POST" and response.status != 404:
            taken_s = time.perf_counter() - started_s
            self._tools.metrics.extender_duration.labels(verb).observe(taken_s)
        return response

    async def _filter(self, request: web.Request) -> web.StreamResponse:
        args = None
        try:
            args = read_filter(await _read(request))
            result = self._filtering.filter(args)
        except MalformedError as error:
            result = FilterResult(error=str(error))
        # The boundary of one request: kube-scheduler tries the pod again.
        except Exception:
            logger.exception("filter failed")
            result = FilterResult(error="internal error, see the log of Berthmaster's webhook")
        self._count("filter", is_well=not result.error)
        return _json(write_filter(args, result))

    async def _prioritize(self, request: web.Request) -> web.StreamResponse:
        try:
            scores = self._filtering.prioritize(read_filter(await _read(request)))
        except MalformedError as error:
            self._count("prioritize", is_well=False)
            return web.Response(status=400, text=str(error))
        self._count("prioritize", is_well=True)
        return _json(write_scores(scores))

    async def _bind(self, request: web.Request) -> web.StreamResponse:
        error = ""
        try:
            # Whoever asked may have hung up meanwhile; what was begun is finished all the same.
            await asyncio.shield(self._binding.bind(read_bind(await _read(request))))
        except (MalformedError, RefusedError) as refused:
            error = str(refused)
        # As in `_filter`.
        except Exception:
            logger.exception("bind failed")
            error = "internal error, see the log of Berthmaster's webhook"
        self._count("bind", is_well=not error)
        return _json(write_bind(error), status=500 if error else 200)

    async def _inspect(self, request: web.Request) -> web.StreamResponse:
        return _json(_encode(inspect_nodes(self._tools.state.engine)))

    async def _inspect_one(self, request: web.Request) -> web.StreamResponse:
        name, engine = request.match_info["node"], self._tools.state.engine
        if name not in engine.table:
            error = f"node {name} is not known"
            return _json(_encode({"nodes": [], "error": error}), status=404)
        return _json(_encode({"nodes": [inspect_node(engine, name)]}))

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=VERSION)

    def _count(self, verb: str, *, is_well: bool) -> None:
        self._tools.metrics.extender_answers.labels(verb, "ok" if is_well else "error").inc()


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await read_body(request, MAX_BODY_BYTES)
    except TimeoutError:
        raise MalformedError("the body did not come in time") from None
    if body is None:
        raise MalformedError(_TOO_LONG)
    return body


def _json(body: bytes, *, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
