"""The HTTP side: routes, limits, TLS. What an answer says is decided in `admission`.

An answer that could not be written within the API server's patience is not sent, and what it held is
given back; one that was written, or perhaps written, keeps it until its pod is seen or it lapses.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence

from aiohttp import web

from berthmaster.api.admission import MAX_BODY_BYTES
from berthmaster_webhook import callers, deciding, gating
from berthmaster_webhook.admission import Admission, MalformedReviewError, Reply
from berthmaster_webhook.deciding import Tools
from berthmaster_webhook.outcomes import Outcome

logger = logging.getLogger(__name__)

# The API server's default where it sends none.
DEFAULT_TIMEOUT_S = 10.0
# The longest that Kubernetes lets a webhook take.
LONGEST_TIMEOUT_S = 30.0
# From the connection's beginning, or the last answer, to a whole head of a request.
IDLE_S = 90.0
_TOO_LONG = f"the body is longer than {MAX_BODY_BYTES} bytes"
_DURATION = re.compile(r"(?:(\d{1,4})m)?(?:(\d{1,4}(?:\.\d{1,9})?)s)?(?:(\d{1,6})ms)?")

NotReady = Callable[[], list[str]]


class Routes:
    """The handlers; `not_ready` says what is missing before this replica may be called Ready.

    Where `callers_names` are given, reviews are taken of clients whose certificate has one of them.
    """

    def __init__(
        self,
        admission: Admission,
        tools: Tools,
        not_ready: NotReady,
        *,
        callers_names: Sequence[str] = (),
    ) -> None:
        self._callers = callers_names
        self._admission = admission
        self._tools = tools
        self._not_ready = not_ready
        self._writing = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no answer is being written, for at most so many seconds; return whether that is so.

        Requests that are still being received are not waited for: once deciding has stopped they find
        no decision, and one that trickles in would hold up the successor.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
            return True
        except TimeoutError:
            logger.warning("answers still being written", extra={"answers": self._writing})
            return False

    def admission_app(self) -> web.Application:
        """Return the application of the TLS port."""
        # The handler bounds bodies itself, to answer with words of its own.
        app = web.Application(
            client_max_size=MAX_BODY_BYTES + 1,
            middlewares=[callers.only(self._callers)] if self._callers else [],
        )
        app.router.add_post("/place/{epoch}", self._place)
        app.router.add_post("/place", self._place)
        app.router.add_post("/gate/{act:.+}", self._gate)
        return app

    def probe_app(self) -> web.Application:
        """Return the application of the plain port: the kubelet's probes."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        return app

    async def _place(self, request: web.Request) -> web.StreamResponse:
        clock = self._tools.clock
        received_s = clock()
        patience_s = read_timeout(request.query.get("timeout", ""))
        body = await self._receive(request, patience_s)
        if isinstance(body, web.Response):
            return body
        if request.transport is None or request.transport.is_closing():
            # Nobody waits for it any more: under a flood the time is better spent on those who do.
            return self._hang_up(request)
        reply = self._reply(request, body)
        if clock() - received_s > patience_s:
            if reply.decision_id is not None:
                deciding.give_back(self._tools, reply.decision_id)
            return self._hang_up(request)
        response = await self._write(request, reply)
        answered_s = clock()
        if reply.decision_id is not None:
            self._tools.state.ledger.answered(reply.decision_id, answered_s)
        self._tools.metrics.admission_duration.observe(answered_s - received_s)
        return response

    async def _write(self, request: web.Request, reply: Reply) -> web.Response:
        self._writing += 1
        self._idle.clear()
        try:
            response = _response(reply)
            await response.prepare(request)
            await response.write_eof()
        finally:
            self._writing -= 1
            if not self._writing:
                self._idle.set()
        return response

    def _reply(self, request: web.Request, body: bytes) -> Reply:
        epoch = request.match_info.get("epoch", "")
        try:
            number = int(epoch) if epoch.isdecimal() and len(epoch) < 12 else None
            return self._admission.reply(body, epoch=number)
        # The boundary of one request: the API server takes a 500 for a failed call, so the pod
        # waits at its gate, and the next request is answered as if nothing had happened.
        except Exception:
            logger.exception("request failed")
            return Reply(status=500, body=b"internal error", outcome=Outcome.MALFORMED)

    async def _gate(self, request: web.Request) -> web.StreamResponse:
        """Gate a pod where the API server has no policies for it; every replica does."""
        body = await self._receive(request, read_timeout(request.query.get("timeout", "")))
        if isinstance(body, web.Response):
            return body
        try:
            answer = gating.answer(request.match_info["act"], body)
        except gating.UnknownGateError as error:
            return web.Response(status=404, text=str(error))
        except MalformedReviewError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(body=answer, content_type="application/json")

    async def _receive(self, request: web.Request, patience_s: float) -> bytes | web.Response:
        """Return the body, or the answer to one that is too long or does not come in time."""
        try:
            async with asyncio.timeout(patience_s):
                body = await read_body(request, MAX_BODY_BYTES)
        except TimeoutError:
            return self._hang_up(request)
        if body is None:
            response = web.Response(status=413, text=_TOO_LONG)
            response.force_close()
            return response
        return body

    def _hang_up(self, request: web.Request) -> web.Response:
        self._tools.metrics.late_answers.inc()
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        missing = self._not_ready()
        if missing:
            return web.Response(status=503, text="\n".join(missing))
        return web.Response(text="ok")


def read_timeout(text: str) -> float:
    """Return a Go duration such as `1s` in seconds, 30 at most; the default where it is none."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return DEFAULT_TIMEOUT_S
    minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    timeout_s = minutes * 60 + seconds + milliseconds / 1000
    return min(timeout_s, LONGEST_TIMEOUT_S) or DEFAULT_TIMEOUT_S


async def read_body(request: web.Request, most_bytes: int) -> bytes | None:
    """Return the body, None as soon as it is too long."""
    if (request.content_length or 0) > most_bytes:
        return None
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > most_bytes:
            return None
    return bytes(body)


def _response(reply: Reply) -> web.Response:
    kind = "application/json" if reply.status == 200 else "text/plain"
    response = web.Response(status=reply.status, body=reply.body, content_type=kind)
    if reply.closes_connection:
        response.force_close()
    return response
