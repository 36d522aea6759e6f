"""One client for all meters and model servers, by HTTP and by gRPC, with a limit on everything.

A server may be dead, slow, broken or hostile: each request has a deadline and each answer a largest size,
redirects are not followed, certificates are checked, and nothing that came is ever shown again but its
status. Hosts whose certificates cannot be checked, as BMCs often have them, are named by the administrator.
Whether by HTTP or by gRPC, a request takes its turn among all; gRPC is loaded when something is first asked by it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from berthmaster_operator.power.trust import Trust

if TYPE_CHECKING:
    from berthmaster_operator.power.channels import Channels

MAX_BYTES = 1024 * 1024
TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 3.0
_MOST_AT_ONCE = 16


UNCHECKED = (
    "its certificate cannot be checked; name its authority by --power-ca-file, or the host by "
    "--power-unverified"
)
UNCONNECTED = "it cannot be connected to"


class FetchError(ValueError):
    """A server gave nothing that can be used; the message says why, without the server's own words."""


def too_long(max_bytes: int) -> str:
    """Return the words for an answer that is too long."""
    return f"its answer is longer than {max_bytes} bytes"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """A user and a password; they show nowhere."""

    username: str
    password: str


class Fetcher:
    """Fetches JSON, text and answers of gRPC. Nothing is opened before the first fetch; call `close` at the end.

    `unverified` are host names and networks whose certificates are not checked.
    """

    def __init__(
        self,
        *,
        ca_file: Path | None = None,
        unverified: Iterable[str] = (),
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._trust = Trust(ca_file=ca_file, unverified=unverified)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None
        self._channels: Channels | None = None
        self._turn = asyncio.Semaphore(_MOST_AT_ONCE)

    async def close(self) -> None:
        """End what is open."""
        if self._session is not None:
            await self._session.close()
        if self._channels is not None:
            await self._channels.close()

    async def get_json(self, url: str, credentials: Credentials | None = None) -> Any:
        """Return what a URL gives, as JSON data; raises `FetchError`."""
        return _parse(await self._fetch("GET", url, credentials))

    async def get_text(self, url: str, credentials: Credentials | None = None) -> str:
        """Return what a URL gives, as text; raises `FetchError`."""
        return (await self._fetch("GET", url, credentials)).decode(errors="replace")

    async def post_json(
        self, url: str, body: object, credentials: Credentials | None = None
    ) -> Any:
        """Return what a server answers to JSON data, as JSON data; raises `FetchError`."""
        return _parse(await self._fetch("POST", url, credentials, body))

    async def call(
        self, origin: str, method: str, message: bytes, credentials: Credentials | None = None
    ) -> bytes:
        """Return what a server answers to a gRPC message; raises `FetchError`.

        `origin` is `grpc://host:port`, or `grpcs://host:port` over TLS; `method` is its path.
        """
        try:
            async with self._turn_and_deadline():
                channels = await self._open_channels()
                return await channels.call(origin, method, message, _authorization(credentials))
        except FetchError:
            raise
        except (OSError, ValueError) as error:
            raise _unfetched(error) from error

    @asynccontextmanager
    async def _turn_and_deadline(self) -> AsyncIterator[None]:
        try:
            async with self._turn, asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise FetchError(f"no answer within {self._timeout_s:g} s") from error

    async def _fetch(
        self, method: str, url: str, credentials: Credentials | None, body: object = None
    ) -> bytes:
        try:
            async with self._turn_and_deadline():
                return await self._send(method, url, credentials, body)
        except aiohttp.ClientConnectorCertificateError as error:
            raise FetchError(UNCHECKED) from error
        except aiohttp.ClientConnectorError as error:
            raise FetchError(UNCONNECTED) from error
        except FetchError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _unfetched(error) from error

    async def _send(
        self, method: str, url: str, credentials: Credentials | None, body: object
    ) -> bytes:
        session = self._open()
        async with session.request(
            method,
            url,
            json=body,
            headers=_authorization(credentials),
            allow_redirects=False,
            ssl=not self._trust.is_unverified(urlsplit(url).hostname or ""),
        ) as answer:
            if answer.status != 200:
                raise FetchError(f"status {answer.status}, expected 200")
            found = b""
            async for chunk in answer.content.iter_chunked(65536):
                found += chunk
                if len(found) > self._max_bytes:
                    # Not read to its end, so not to be used again.
                    answer.close()
                    raise FetchError(too_long(self._max_bytes))
            return found

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(self._trust.make_context(), limit=_MOST_AT_ONCE),
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),
                headers={"User-Agent": "berthmaster-operator", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def _open_channels(self) -> Channels:
        if self._channels is None:
            make = await asyncio.to_thread(_load_channels)
            # Somebody else may have been as fast.
            self._channels = self._channels or make(self._trust, max_bytes=self._max_bytes)
        return self._channels


def _unfetched(error: Exception) -> FetchError:
    return FetchError(f"it cannot be fetched ({type(error).__name__})")


def _load_channels() -> type[Channels]:
    """Load what gRPC needs: a big package, and not everybody installs it."""
    try:
        from berthmaster_operator.power.channels import Channels
    except ImportError as error:
        raise FetchError(
            "the operator cannot speak gRPC, since the package grpcio is missing here: install "
            "berthmaster[grpc], as the image has it, or name the server's REST port"
        ) from error
    return Channels


def _authorization(credentials: Credentials | None) -> dict[str, str]:
    if credentials is None:
        return {}
    value = aiohttp.encode_basic_auth(credentials.username, credentials.password, "utf-8")
    return {"Authorization": value}


class _Connector(aiohttp.TCPConnector):
    """Connections that keep no DNS answer longer than a BMC may keep its address."""

    def __init__(self, context: ssl.SSLContext, *, limit: int) -> None:
        super().__init__(ssl=context, limit=limit, ttl_dns_cache=60, keepalive_timeout=30)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FetchError("its answer is no JSON") from error
