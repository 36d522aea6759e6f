"""Kopf inside our own event loop: it watches the custom kinds and does nothing else.

Kopf gets a registry of its own with `on.event` handlers only, so it never puts a finalizer or an
annotation on an object; it posts no Events and knows no peers (we elect a leader ourselves). It
sends its requests through a session that carries our client's credentials, so a rotated token is
used at once.

Three of Kopf's habits are answered here. It takes over SIGTERM and SIGINT: `run` puts our handler back.
When it ends it cancels every task that began after it: so its end, for whatever reason, is
the end of the process. And it ends when a kind that it watches is not there (404), as when a CRD is deleted: the
session makes that a lost connection, which Kopf tries again until it is told to watch the kind no more. Nor may it end
where a page of a list is asked for too late (410): an answer that breaks off has it begin the list anew. Which
kinds there are is the business of `kinds`, and that Kopf forgets deletions which happened while a watch was broken that
of `auditing`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, cast

import aiohttp
import kopf

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.connections import Connection, load_connection
from berthmaster_operator.kinds import Kinds

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 60.0
# The API server ends a watch after so long, and Kopf begins a new one.
WATCH_S = 300
PAGE_LIMIT = 500
# Between attempts while the API server cannot be reached; the last one again and again, because the
# end of Kopf is the end of the process and with it of all that was seen.
RETRY_PAUSES_S = (1.0, 1.0, 2.0, 3.0, 5.0)
LONGEST_LOGIN_PAUSE_S = 30.0
# Between the beginnings of two watches of one kind: Kopf begins the next as soon as one ends.
WATCH_PAUSE_S = 1.0
# Kopf installs its signal handlers about when it says that it is ready, before or after.
_SIGNALS_PAUSE_S = 0.5


class _NoDifferences(kopf.DiffBaseStorage):
    """Tell Kopf that no object ever differs: it copies objects to find out, and `on.event` does not ask."""

    def build(self, **_: object) -> kopf.BodyEssence:
        """Return nothing of the object."""
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        """Return nothing: nothing is kept on objects."""

    def store(self, **_: object) -> None:
        """Keep nothing."""


class _EndlessPauses:
    """Iterate over `RETRY_PAUSES_S`, then over its last one for ever; each request starts anew."""

    def __iter__(self) -> Iterator[float]:
        yield from RETRY_PAUSES_S
        yield from itertools.repeat(RETRY_PAUSES_S[-1])


def kopf_settings() -> kopf.OperatorSettings:
    """Return Kopf's settings as we want them."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = None
    settings.watching.server_timeout = WATCH_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.chunk_size = PAGE_LIMIT
    settings.networking.request_timeout = REQUEST_TIMEOUT_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.error_backoffs = _EndlessPauses()
    # An idle worker per object is a task each; events of one object rarely come in one second.
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 1.0
    settings.persistence.diffbase_storage = _NoDifferences()
    # Beyond the look for kinds at the start.
    settings.scanning.disabled = True
    return settings


def register_login(registry: kopf.OperatorRegistry) -> None:
    """Have Kopf use the same cluster and credentials as our own client.

    Kopf calls this at start and after a refusal (401), each time the configuration is read anew, and tries what
    was refused again at once. One refusal after the other is followed by growing pauses.
    """
    refusals = Backoff(first_s=0.2, cap_s=LONGEST_LOGIN_PAUSE_S)
    logins = itertools.count()

    async def login(**_: object) -> kopf.AiohttpSession:
        if next(logins):
            await asyncio.sleep(refusals.next_s())
        connection = await load_connection()
        return kopf.AiohttpSession(
            server=connection.base_url, aiohttp_session=_open_session(connection)
        )

    kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, backoff=5.0)(login)


def _open_session(connection: Connection) -> aiohttp.ClientSession:
    begun_s: dict[str, float] = {}

    async def pace(path: str) -> None:
        left_s = begun_s.get(path, -math.inf) + WATCH_PAUSE_S - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        begun_s[path] = time.monotonic()

    async def authorize(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if "watch" in request.url.query:
            await pace(request.url.path)
        value = await connection.authorization(False)
        if value is not None:
            request.headers["Authorization"] = value
        response = await handler(request)
        # Lists and watches have a query; a look for kinds has none, and Kopf knows what its 404 means.
        if response.status == HTTPStatus.NOT_FOUND and request.url.query:
            response.release()
            raise aiohttp.ClientConnectionError(f"{request.url.path} is not served now")
        if response.status == HTTPStatus.GONE and "continue" in request.url.query:
            response.release()
            raise aiohttp.ClientPayloadError(f"the list of {request.url.path} took too long")
        return response

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, ssl=connection.ssl_context if connection.ssl_context is not None else True
        ),
        headers={"User-Agent": "berthmaster-operator", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(authorize,),
        proxy=connection.proxy,
        trust_env=False,
    )


async def run(
    registry: kopf.OperatorRegistry,
    kinds: Kinds,
    *,
    name: str,
    stop: asyncio.Event,
    restore_signals: Callable[[], None],
) -> None:
    """Run Kopf until `stop` is set; `restore_signals` is called once Kopf has taken the signals.

    `name` is the pod's; Kopf would otherwise ask for the name of a user that has none in a container.

    Returns earlier, without an error, when a signal reached Kopf first.
    """
    ready = asyncio.Event()

    async def restore() -> None:
        await ready.wait()
        await asyncio.sleep(_SIGNALS_PAUSE_S)
        restore_signals()

    async with asyncio.TaskGroup() as tasks:
        beside = (
            tasks.create_task(restore(), name="restore signal handlers"),
            tasks.create_task(kinds.follow(registry), name="follow the kinds"),
        )
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(),
            insights=kinds.insights,
            # Kopf's type for it is a str and not public.
            identity=cast("Any", name),
            standalone=True,
            clusterwide=True,
            ready_flag=ready,
            stop_flag=stop,
        )
        for task in beside:
            task.cancel()
