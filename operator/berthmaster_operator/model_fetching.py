"""Fetch a disk model from a URL: only from origins that the operator was told, only what has the hash.

Who may write the ConfigMap could otherwise have the operator call anything that it can reach. So
nothing is fetched until the administrator names origins (`https://models.example.com`); redirects are
followed only to these; no credentials, no cookies, no proxy. What arrives is bounded in size and
time, compared with the entry's sha256, and only then read, as JSON or YAML. It is data in the form of
an entry's own fields, and can name neither code nor another URL.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp
import yaml

from berthmaster.concerns.diskio.models import ModelSource, read_source

MAX_BYTES = 64 * 1024
MAX_REDIRECTS = 3
DEFAULT_TIMEOUT_S = 10.0

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"https": 443, "http": 80}


class FetchError(ValueError):
    """A URL gave no model; the message says why, and what to do about it."""


def read_origin(text: str) -> str:
    """Return an origin, `https://host` or `https://host:8443`, in its normal form.

    Raises:
        ValueError: it is none, or has more than scheme, host and port.
    """
    parts = urlsplit(text.strip())
    if parts.path.rstrip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f'"{text}" has more than scheme, host and port')
    return _origin_of(text.strip())


class ModelFetcher:
    """Fetches models. `origins` are as `read_origin` gives them; none switches fetching off.

    `ca_file` names authorities (PEM) that are trusted beside the system's. Nothing is opened before
    the first fetch; call `close` at the end.
    """

    def __init__(
        self,
        origins: Iterable[str] = (),
        *,
        ca_file: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._origins = frozenset(origins)
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End what is open."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str, sha256: str) -> ModelSource:
        """Return the tables or the expression that a URL gives.

        Raises:
            FetchError: not allowed, not reached, not found, too long, too late, another hash, or
                no model.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(url)
        except TimeoutError as error:
            raise FetchError(f"url: no answer within {self._timeout_s:g} s") from error
        except FetchError:
            raise
        # ValueError: a redirect to what is no URL.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            words = str(error)[:200] or type(error).__name__
            raise FetchError(f"url: cannot be fetched: {words}") from error
        found = hashlib.sha256(body).hexdigest()
        if found != sha256:
            raise FetchError(
                f"sha256: what the url gives has {found}, expected {sha256}; if the new content is "
                "what you want, put its hash into the entry"
            )
        return await asyncio.to_thread(_read_document, body)

    async def _read(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url)
            session = self._open()
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS:
                    url = urljoin(url, answer.headers.get("Location", ""))
                    continue
                if answer.status != 200:
                    raise FetchError(f"url: status {answer.status}, expected 200")
                return await self._read_body(answer)
        raise FetchError(f"url: more than {MAX_REDIRECTS} redirects; give the last address")

    async def _read_body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = b""
        async for chunk in answer.content.iter_chunked(self._max_bytes):
            body += chunk
            if len(body) > self._max_bytes:
                raise FetchError(
                    f"url: gives more than {self._max_bytes} bytes; a model is a few hundred"
                )
        return body

    def _check(self, url: str) -> None:
        try:
            origin = _origin_of(url)
        except ValueError as error:
            raise FetchError(f"url: {error}") from error
        if origin not in self._origins:
            allowed = ", ".join(sorted(self._origins)) or "none"
            raise FetchError(
                f"url: {origin} is not among the origins that the operator may fetch from "
                f"({allowed}); add it to the operator's --model-origins, or give tables inline"
            )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context()
            if self._ca_file is not None:
                context.load_verify_locations(self._ca_file)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=4, ssl=context, force_close=True),
                headers={"User-Agent": "berthmaster-operator", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _origin_of(url: str) -> str:
    """Return scheme, host and port of a URL; raises ValueError for what cannot be fetched."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f'scheme "{parts.scheme[:20]}" cannot be fetched, expected https')
    if "@" in parts.netloc or not parts.hostname:
        raise ValueError("expected a host, without user name or password")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port
    if port is None or port == _PORTS[parts.scheme]:
        return f"{parts.scheme}://{host}"
    return f"{parts.scheme}://{host}:{port}"


def _read_document(body: bytes) -> ModelSource:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise FetchError("url: gives no text, expected a table in JSON or YAML") from error
    try:
        source = read_source(_parse(text))
    except (ValueError, RecursionError) as error:
        raise FetchError(f"url: what it gives is no model: {str(error)[:300]}") from error
    if source.url:
        raise FetchError("url: what it gives names another url, expected tables or an expression")
    return source


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError("neither JSON nor YAML") from error


class _PlainLoader(yaml.SafeLoader):
    """Loads plain data; aliases, with which a short text can become a huge one, are refused."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)
