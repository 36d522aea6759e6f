"""One HTTP client for all meters and model servers, with a limit on everything.

A server may be dead, slow, broken or hostile: each request has a deadline and each answer a largest size,
redirects are not followed, certificates are checked, and nothing that came is ever shown again but its
status. Hosts whose certificates cannot be checked, as BMCs often have them, are named by the administrator.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

MAX_BYTES = 1024 * 1024
TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 3.0
_MOST_AT_ONCE = 16

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class FetchError(ValueError):
    """A server gave nothing that can be used; the message says why, without the server's own words."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """A user and a password; they show nowhere."""

    username: str
    password: str


class Fetcher:
    """Fetches JSON and text. Nothing is opened before the first fetch; call `close` at the end.

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
        self._ca_file = ca_file
        self._hosts, self._networks = _split(unverified)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Semaphore(_MOST_AT_ONCE)

    async def close(self) -> None:
        """End what is open."""
        if self._session is not None:
            await self._session.close()

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

    async def _fetch(
        self, method: str, url: str, credentials: Credentials | None, body: object = None
    ) -> bytes:
        try:
            async with self._turn, asyncio.timeout(self._timeout_s):
                return await self._send(method, url, credentials, body)
        except TimeoutError as error:
            raise FetchError(f"no answer within {self._timeout_s:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise FetchError(
                "its certificate cannot be checked; name its authority by --power-ca-file, or the "
                "host by --power-unverified"
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise FetchError("it cannot be connected to") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, FetchError):
                raise
            raise FetchError(f"it cannot be fetched ({type(error).__name__})") from error

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
            ssl=not self._is_unverified(url),
        ) as answer:
            if answer.status != 200:
                raise FetchError(f"status {answer.status}, expected 200")
            found = b""
            async for chunk in answer.content.iter_chunked(65536):
                found += chunk
                if len(found) > self._max_bytes:
                    # Not read to its end, so not to be used again.
                    answer.close()
                    raise FetchError(f"its answer is longer than {self._max_bytes} bytes")
            return found

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context()
            if self._ca_file is not None:
                context.load_verify_locations(self._ca_file)
            self._session = aiohttp.ClientSession(
                connector=_Connector(context, limit=_MOST_AT_ONCE),
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),
                headers={"User-Agent": "berthmaster-operator", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _is_unverified(self, url: str) -> bool:
        host = urlsplit(url).hostname or ""
        if host in self._hosts:
            return True
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _authorization(credentials: Credentials | None) -> dict[str, str]:
    if credentials is None:
        return {}
    value = aiohttp.encode_basic_auth(credentials.username, credentials.password, "utf-8")
    return {"Authorization": value}


class _Connector(aiohttp.TCPConnector):
    """Connections that keep no DNS answer longer than a BMC may keep its address."""

    def __init__(self, context: ssl.SSLContext, *, limit: int) -> None:
        super().__init__(ssl=context, limit=limit, ttl_dns_cache=60, keepalive_timeout=30)


def read_hosts(text: str) -> tuple[str, ...]:
    """Return the hosts and networks of a comma-separated list.

    Raises:
        ValueError: an entry has more than a host's name, an address or a network in it.
    """
    entries = tuple(it.strip().lower() for it in text.split(",") if it.strip())
    for entry in entries:
        if "/" in entry:
            _read_network(entry)
        elif not entry.replace(".", "").replace("-", "").replace(":", "").isalnum():
            raise ValueError(f'"{entry}" is no host, address or network such as 10.0.100.0/24')
    return entries


def _read_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f'"{text}" is no host or network: {error}') from error


def _split(entries: Iterable[str]) -> tuple[frozenset[str], tuple[Network, ...]]:
    hosts: set[str] = set()
    networks: list[Network] = []
    for entry in entries:
        if "/" in entry:
            networks.append(ipaddress.ip_network(entry))
        else:
            hosts.add(entry)
    return frozenset(hosts), tuple(networks)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FetchError("its answer is no JSON") from error
