"""The one door to the API server: a thin HTTP client that tells apart what callers must tell apart.

It owns one pool of connections. Objects go in and come out as plain JSON values, or
as bytes for those who decode into their own types. It keeps no cache and retries nothing but a
request that met a 401, once, with renewed credentials: the API server refused that one before
looking at it.

Three outcomes of a failed request are kept apart, see `errors`: answered with no (`ApiError`), surely
without effect (`UnreachableError`), and unknown (`OutcomeUnknownError`, writes only). aiohttp's own
silent repetition of PUT and DELETE on a connection that was cut is switched off, because a repeated
PUT turns a success into a conflict.

Every request has a time limit in seconds; watches have a limit on silence instead of a total. Where no
answer came in time the connection may be dead without a sign of it, and so may all others of its pool:
later requests get a new one.
"""

from __future__ import annotations

import email.utils
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from yarl import URL

from berthmaster.cluster.connections import HINT, Connection, fixed_connection, load_connection
from berthmaster.cluster.errors import (
    ApiError,
    ClusterError,
    ConfigurationError,
    OutcomeUnknownError,
    UnreachableError,
)

__all__ = [
    "ApiError",
    "Client",
    "ClusterError",
    "ConfigurationError",
    "JsonObject",
    "OutcomeUnknownError",
    "PatchKind",
    "Query",
    "UnreachableError",
]

logger = logging.getLogger(__name__)

# Raw JSON of an object whose shape the caller knows.
JsonObject = dict[str, Any]
Query = Mapping[str, str | int | bool]

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
# One page of 500 pods is about 5 MB and may come from a busy API server.
LIST_TIMEOUT_S = 60.0
WATCH_IDLE_S = 180.0
# Between two new pools: to an API server that is only slow, each means handshakes on top.
POOL_PAUSE_S = 5.0
# Watches hold a connection each; the rest bounds how hard we can press the API server.
MAX_CONNECTIONS = 64
READ_BUFFER_BYTES = 1 << 20
# Raised before the first byte of a request is written.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
NO_ANSWER = "error"
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class PatchKind(Enum):
    """Name the patch languages; the value is the content type."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    # Built-in kinds only.
    STRATEGIC = "application/strategic-merge-patch+json"
    # Needs `fieldManager` in the query; `force` takes fields from other managers.
    APPLY = "application/apply-patch+yaml"


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    details: dict[str, object] | None = None


class _ListMeta(msgspec.Struct):
    next_page: str = msgspec.field(name="continue", default="")


class _Items(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


class _Page(msgspec.Struct):
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)


_STATUS_DECODER = msgspec.json.Decoder(_Status)
_ITEMS_DECODER = msgspec.json.Decoder(_Items)
_PAGE_DECODER = msgspec.json.Decoder(_Page)
_OBJECT_DECODER: msgspec.json.Decoder[JsonObject] = msgspec.json.Decoder(dict[str, Any])


def read_items(page: bytes) -> Sequence[msgspec.Raw]:
    """Return the objects of a list's page, each still JSON. Raises msgspec.DecodeError."""
    return _ITEMS_DECODER.decode(page).items or ()


class _Pool:
    """One aiohttp session, with how many requests and watches use it."""

    def __init__(self, connection: Connection, user_agent: str) -> None:
        self.opened_s = time.monotonic()
        self.users = 0
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                ssl=connection.ssl_context if connection.ssl_context is not None else True,
                keepalive_timeout=60.0,
            ),
            # Inside a cluster bandwidth is cheaper than the CPU of gzip, on both sides.
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": user_agent,
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
        )
        # No public switch exists; see the module docstring for why it must be off.
        self.session._retry_connection = False


class Client:
    """Talk to one API server; make it with `connect` or `at` inside a running event loop."""

    def __init__(self, connection: Connection, *, user_agent: str = "berthmaster") -> None:
        self._connection = connection
        # Told of each request's end: its method, and the status or `error` where no answer came.
        self.on_answer: Callable[[str, str], None] = _ignore
        # Told that no answer came in time: watches that are silent may be dead as well.
        self.on_doubt: Callable[[], None] = _ignore
        self._user_agent = user_agent
        self._pool = _Pool(connection, user_agent)
        # Those that get no new requests and have old ones.
        self._retired: set[_Pool] = set()

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        *,
        context: str | None = None,
        user_agent: str = "berthmaster",
    ) -> Self:
        """Load the configuration (file, KUBECONFIG, ~/.kube/config, in-cluster), sending nothing.

        Raises ConfigurationError when there is none.
        """
        return cls(await load_connection(kubeconfig, context=context), user_agent=user_agent)

    @classmethod
    def at(
        cls, base_url: str, *, token: str | None = None, user_agent: str = "berthmaster"
    ) -> Self:
        """Make a client of a URL alone, without TLS settings of its own: tests, `kubectl proxy`."""
        return cls(fixed_connection(base_url, token=token), user_agent=user_agent)

    @property
    def base_url(self) -> str:
        """Return the API server's URL without a trailing slash."""
        return self._connection.base_url

    async def close(self) -> None:
        """Close all connections; watches in progress end with UnreachableError."""
        for pool in (self._pool, *self._retired):
            await pool.session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def get(
        self, path: str, query: Query | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> JsonObject:
        """Read one object (or one whole list). Raises ApiError, UnreachableError."""
        return _decode(await self.request("GET", path, query=query, timeout_s=timeout_s))

    async def create(
        self,
        path: str,
        obj: object,
        query: Query | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> JsonObject:
        """POST an object to its collection or subresource and return what was stored.

        Raises ApiError, UnreachableError, OutcomeUnknownError.
        """
        return await self._send("POST", path, obj, query, timeout_s)

    async def replace(
        self,
        path: str,
        obj: object,
        query: Query | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> JsonObject:
        """PUT an object; with its resourceVersion a stale one is refused as a conflict.

        Raises ApiError, UnreachableError, OutcomeUnknownError.
        """
        return await self._send("PUT", path, obj, query, timeout_s)

    async def patch(
        self,
        path: str,
        body: object,
        kind: PatchKind,
        query: Query | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> JsonObject:
        """PATCH an object and return what was stored. A failed JSON Patch `test` is an ApiError 422.

        Raises ApiError, UnreachableError, OutcomeUnknownError.
        """
        return await self._send("PATCH", path, body, query, timeout_s, content_type=kind.value)

    async def delete(
        self,
        path: str,
        *,
        body: object = None,
        query: Query | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> JsonObject:
        """Delete an object; `body` is a DeleteOptions, the place for preconditions.

        Raises ApiError, UnreachableError, OutcomeUnknownError.
        """
        return await self._send("DELETE", path, body, query, timeout_s)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        timeout_s: float = TIMEOUT_S,
    ) -> bytes:
        """Send one request and return the body of its 2xx answer, undecoded.

        Raises ApiError, UnreachableError (nothing changed), OutcomeUnknownError (a write whose
        answer was lost or did not come within `timeout_s` seconds).
        """
        timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=min(CONNECT_TIMEOUT_S, timeout_s)
        )
        async with self._respond(method, path, query, body, content_type, timeout) as response:
            return await response.read()

    async def list_pages(
        self,
        path: str,
        query: Query | None = None,
        limit: int = 500,
        *,
        timeout_s: float = LIST_TIMEOUT_S,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the raw pages of a list, all of one snapshot; `timeout_s` is per page.

        A continue token that grew too old raises ApiError 410: the caller starts over, because
        the pages seen so far belong to a snapshot that cannot be finished.
        """
        asked: dict[str, str | int | bool] = {**(query or {}), "limit": limit}
        while True:
            page = await self.request("GET", path, query=asked, timeout_s=timeout_s)
            try:
                token = _PAGE_DECODER.decode(page).metadata.next_page
            except msgspec.DecodeError as error:
                raise UnreachableError(f"the list at {path} is not JSON: {error}") from error
            yield page
            if not token:
                return
            # Kubernetes refuses a continue token together with a version.
            asked.pop("resourceVersion", None)
            asked.pop("resourceVersionMatch", None)
            asked["continue"] = token

    async def watch(
        self, path: str, query: Query | None = None, *, idle_timeout_s: float = WATCH_IDLE_S
    ) -> AsyncGenerator[bytes, None]:
        """Yield the raw JSON lines of a watch, of any length, until the server ends it cleanly.

        Raises ApiError (410: list anew), and UnreachableError when the connection is cut or
        silent for `idle_timeout_s` seconds. Use `contextlib.aclosing` to close it early.
        """
        asked = {**(query or {}), "watch": True}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_timeout_s
        )
        async with self._respond("GET", path, asked, None, "", timeout) as response:
            parts: list[bytes] = []
            async for chunk in response.content.iter_any():
                *complete, rest = chunk.split(b"\n")
                for line in complete:
                    parts.append(line)
                    whole = b"".join(parts)
                    parts = []
                    if whole:
                        yield whole
                if rest:
                    parts.append(rest)
            if parts:
                raise UnreachableError(f"the watch of {path} ended in the middle of a line")

    async def _send(
        self,
        method: str,
        path: str,
        obj: object,
        query: Query | None,
        timeout_s: float,
        *,
        content_type: str = "application/json",
    ) -> JsonObject:
        body = None if obj is None else msgspec.json.encode(obj)
        return _decode(
            await self.request(
                method,
                path,
                query=query,
                body=body,
                content_type=content_type,
                timeout_s=timeout_s,
            )
        )

    @asynccontextmanager
    async def _respond(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: bytes | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - it is aiohttp's set of limits
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield a 2xx response; translate everything that fails before or while it is read."""
        connection = self._connection
        headers = {"Content-Type": content_type} if body is not None else {}
        url = URL(connection.base_url + path).update_query(_query_strings(query))
        for attempt in (1, 2):
            authorization = await connection.authorization(attempt == 2)
            if authorization is not None:
                headers["Authorization"] = authorization
            try:
                async with (
                    self._pooled() as session,
                    session.request(
                        method,
                        url,
                        data=body,
                        headers=headers,
                        timeout=timeout,
                        proxy=connection.proxy,
                        server_hostname=connection.server_hostname,
                        allow_redirects=False,
                    ) as response,
                ):
                    self.on_answer(method, str(response.status))
                    if response.status == 401 and attempt == 1 and authorization is not None:
                        continue
                    if not 200 <= response.status < 300:
                        raise await _refusal(response)
                    yield response
                    return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.on_answer(method, NO_ANSWER)
                raise self._translated(method, path, error) from error

    @asynccontextmanager
    async def _pooled(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield the session of the present pool; it is closed by the last user of one that was retired."""
        pool = self._pool
        pool.users += 1
        try:
            yield pool.session
        except TimeoutError as error:
            if not isinstance(error, _NEVER_SENT):
                self._retire(pool)
            raise
        finally:
            pool.users -= 1
            if pool in self._retired and not pool.users:
                self._retired.remove(pool)
                await pool.session.close()

    def _retire(self, pool: _Pool) -> None:
        """Let later requests open connections anew."""
        if pool is self._pool and time.monotonic() - pool.opened_s > POOL_PAUSE_S:
            logger.warning("no answer in time, opening new connections")
            self._retired.add(pool)
            self._pool = _Pool(self._connection, self._user_agent)
            self.on_doubt()

    def _translated(self, method: str, path: str, error: Exception) -> ClusterError:
        detail = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
            detail = error.os_error.strerror
        base_url = self._connection.base_url
        if isinstance(error, _NEVER_SENT):
            return UnreachableError(f"cannot reach the cluster at {base_url}: {detail}; {HINT}")
        if method in _READS:
            return UnreachableError(f"no answer from {base_url} to {method} {path}: {detail}")
        return OutcomeUnknownError(
            f"{method} {path} was sent to {base_url} but its answer is lost: {detail}"
        )


def _ignore(*_: str) -> None:
    """Tell nobody."""


def _query_strings(query: Query | None) -> dict[str, str]:
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (query or {}).items()
    }


def _decode(body: bytes) -> JsonObject:
    try:
        return _OBJECT_DECODER.decode(body) if body else {}
    except msgspec.DecodeError as error:
        # A 2xx that is no JSON object comes from something in between, not from the API server.
        raise OutcomeUnknownError(f"the answer is not a JSON object: {error}") from error


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    body = await response.read()
    try:
        status = _STATUS_DECODER.decode(body)
    except msgspec.DecodeError:
        text = body[:300].decode(errors="replace").strip()
        status = _Status(message=text or response.reason or "no explanation")
    details = status.details or {}
    retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
    if retry_after_s is None:
        wish = details.get("retryAfterSeconds")
        retry_after_s = float(wish) if isinstance(wish, int | float) and wish > 0 else None
    return ApiError(response.status, status.reason, status.message, retry_after_s, details)


def _retry_after_s(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
