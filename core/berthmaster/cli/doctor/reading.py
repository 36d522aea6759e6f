"""Reads that never raise: an object, a list, an answer, or the reason why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from berthmaster.cli.doctor.facts import Found, JsonObject, Listed, Unread
from berthmaster.cluster.client import ApiError, Client, ClusterError, read_items

T = TypeVar("T")

READ_S = 10.0
LIST_S = 25.0
# More objects of a kind than that are not looked at.
MOST_LISTED = 20_000


_decode_any: Callable[[bytes], dict[str, Any]] = msgspec.json.Decoder(dict[str, Any]).decode


class Reader:
    """Reads with a limit of time each; `cuts` says which lists were not read to their end."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.cuts: list[str] = []

    async def get(self, path: str) -> Found:
        """Read one object; None if it is not there."""
        return await _answer(self._client.get(path, timeout_s=READ_S), f"get {describe(path)}")

    async def post(self, path: str, body: JsonObject, *, is_dry_run: bool = False) -> Found:
        """Send an object that is an answer by itself, or a dry run."""
        query = {"dryRun": "All"} if is_dry_run else None
        pending = self._client.create(path, body, query, timeout_s=READ_S)
        return await _answer(pending, f"create {describe(path)}")

    async def list(self, path: str, query: dict[str, str] | None = None) -> Listed:
        """Read a list; None if the API server does not have the kind."""
        return await self.list_as(_decode_any, path, query)

    async def list_as(
        self, decode: Callable[[bytes], T], path: str, query: dict[str, str] | None = None
    ) -> tuple[T, ...] | Unread | None:
        """Read a list of decoded objects, leaving out those that cannot be decoded."""
        found: list[T] = []

        async def collect() -> tuple[T, ...]:
            async with aclosing(self._client.list_pages(path, query, timeout_s=LIST_S)) as pages:
                async for page in pages:
                    for raw in read_items(page):
                        try:
                            found.append(decode(bytes(raw)))
                        except msgspec.DecodeError:
                            continue
                    if len(found) >= MOST_LISTED:
                        self._cut(path, len(found))
                        break
            return tuple(found)

        answer = await _answer(collect(), f"list {describe(path)}", LIST_S)
        if isinstance(answer, Unread) and found:
            # What came in time is worth looking at.
            self._cut(path, len(found))
            return tuple(found)
        return answer

    def _cut(self, path: str, count: int) -> None:
        self.cuts.append(f"only the first {count} {path.rpartition('/')[2]} were looked at")


async def _answer(pending: Awaitable[T], what: str, limit_s: float = READ_S) -> T | Unread | None:
    try:
        async with asyncio.timeout(limit_s + 1):
            return await pending
    except ApiError as error:
        if error.is_not_found:
            return None
        if error.status in (401, 403):
            return Unread(f"needs {what}")
        return Unread(f"{what}: {error}")
    except TimeoutError:
        return Unread(f"{what}: no answer within {limit_s:g} s")
    except (ClusterError, msgspec.DecodeError) as error:
        return Unread(f"{what}: {' '.join(str(error).split())}")


def describe(path: str) -> str:
    """Return a path of the API as people name it: `secrets/tls in berthmaster-system`."""
    parts = path.strip("/").split("/")
    # `api/v1` or `apis/GROUP/VERSION` before it.
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    where = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        where = f" in {rest[1]}"
        rest = rest[2:]
    group = f".{parts[1]}" if parts[0] == "apis" else ""
    resource, *names = rest or ["?"]
    return "/".join((f"{resource}{group}", *names)) + where
