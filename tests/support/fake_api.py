"""An API server small enough to read, speaking real HTTP: any collection, lists by pages, watches.

Objects live under the path of their collection. Tests script what goes wrong: `fail_next` for the next
matching request, `cut_watches`, `end_watches`, `compact` (old versions answer 410), `send_line` for raw
watch lines. Everything is driven by the test; nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

Json = dict[str, Any]

DEADLINE_S = 10.0


class Cut(Enum):
    """Cut the connection instead of answering: before the request has an effect, or after."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Refusal:
    status: int
    reason: str = ""
    message: str = "scripted"
    headers: dict[str, str] = field(default_factory=dict)
    details: Json = field(default_factory=dict)
    body: bytes | None = None


class Hang(Enum):
    """Never answer, until the server is closed."""

    FOREVER = "forever"


Fault = Cut | Refusal | Hang


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class _Watch:
    path: str
    lines: asyncio.Queue[bytes | Cut | None]


class FakeApi:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.objects: dict[str, dict[str, Json]] = {}
        # What is answered by method and path, whatever is sent.
        self.answers: dict[tuple[str, str], Json] = {}
        # Collections of kinds that are not installed: whatever is asked there answers 404.
        self.absent: set[str] = set()
        # How many further pages of lists answer 410.
        self.refuse_pages = 0
        # Collections of which each watch ends at once.
        self.brief: set[str] = set()
        self.oldest_version = 0
        self.gone_as_event = False
        self._history: dict[str, list[tuple[int, bytes]]] = {}
        self._version = 100
        self._faults: list[tuple[str, str, Fault]] = []
        self._watches: list[_Watch] = []
        self._snapshots: dict[str, tuple[list[Json], int]] = {}
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._server = TestServer(app)

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        self.end_watches()
        await self._server.close()

    @property
    def url(self) -> str:
        return str(self._server.make_url("")).rstrip("/")

    @property
    def version(self) -> str:
        return str(self._version)

    # What tests do to the cluster.

    def put(self, collection: str, obj: Json) -> Json:
        """Create or change an object and tell the watches."""
        held = self.objects.setdefault(collection, {})
        name = obj["metadata"]["name"]
        kind = "MODIFIED" if name in held else "ADDED"
        return self._store(collection, name, obj, kind)

    def remove(self, collection: str, name: str) -> None:
        obj = self.objects[collection][name]
        self._store(collection, name, obj, "DELETED")
        del self.objects[collection][name]

    def remove_silently(self, collection: str, name: str) -> None:
        """Remove without any watch hearing of it, as if the history had been lost."""
        self._version += 1
        del self.objects[collection][name]

    def remove_kind(self, collection: str) -> None:
        """Take a kind away with all its objects and end its watches, as when its CRD is deleted."""
        self.absent.add(collection)
        del self.objects[collection]
        for watch in self._watches:
            if watch.path == collection:
                watch.lines.put_nowait(None)

    def bookmark(self, collection: str) -> str:
        self._version += 1
        meta = {"resourceVersion": self.version}
        self.send_line(collection, _line("BOOKMARK", {"metadata": meta}))
        return self.version

    def send_line(self, collection: str, line: bytes) -> None:
        for watch in self._watches:
            if watch.path == collection:
                watch.lines.put_nowait(line)

    def cut_watches(self) -> None:
        for watch in self._watches:
            watch.lines.put_nowait(Cut.BEFORE)

    def end_watches(self) -> None:
        for watch in self._watches:
            watch.lines.put_nowait(None)

    def compact(self) -> None:
        """Forget all history: older versions and continue tokens answer 410."""
        self._version += 1
        self.oldest_version = self._version
        self._snapshots.clear()

    def fail_next(self, method: str, path: str, fault: Fault) -> None:
        """Let the next request of this method whose path begins so meet the fault."""
        self._faults.append((method, path, fault))

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for a condition of this server, looked at after every request."""
        async with asyncio.timeout(DEADLINE_S):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()

    def is_watched(self, collection: str) -> bool:
        return any(it.path == collection for it in self._watches)

    async def until_watched(self, collection: str, times: int = 1) -> None:
        """Wait until watches of the collection have begun so often, counted from the start."""
        await self.until(lambda: self.count("GET", collection, watch="true") >= times)

    async def until_asked_again(self, collection: str, times: int = 1) -> None:
        """Wait for so many more reads of the collection."""
        wanted = self.count("GET", collection) + times
        await self.until(lambda: self.count("GET", collection) >= wanted)

    def count(self, method: str, path: str, **query: str) -> int:
        return sum(
            request.method == method
            and request.path == path
            and query.items() <= request.query.items()
            for request in self.requests
        )

    # How it answers.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        seen = Request(
            request.method, path, dict(request.query), dict(request.headers), await request.read()
        )
        fault = self._take_fault(request.method, path)
        if fault is None and path in self.absent:
            fault = Refusal(404, "NotFound", "the server could not find the requested resource")
        watch = None
        if request.query.get("watch") == "true" and fault is None:
            # Registered before the test can hear of it, so that no line is lost.
            watch = _Watch(path, asyncio.Queue())
            since = int(request.query.get("resourceVersion", "0"))
            for version, line in self._history.get(path, []):
                if version > since >= self.oldest_version:
                    watch.lines.put_nowait(line)
            self._watches.append(watch)
            if path in self.brief:
                watch.lines.put_nowait(None)
        self.requests.append(seen)
        self._changed.set()
        if fault is Hang.FOREVER:
            await self._closing.wait()
        if isinstance(fault, Refusal):
            return _refused(fault)
        if fault is Cut.BEFORE:
            return _cut(request)
        if watch is not None:
            return await self._stream(request, watch)
        response = self._answer(seen)
        return _cut(request) if fault is Cut.AFTER else response

    def _take_fault(self, method: str, path: str) -> Fault | None:
        for entry in self._faults:
            if entry[0] == method and path.startswith(entry[1]):
                self._faults.remove(entry)
                return entry[2]
        return None

    def _answer(self, request: Request) -> web.Response:
        path, method = request.path, request.method
        if (method, path) in self.answers:
            return _json(self.answers[method, path])
        body = json.loads(request.body) if request.body else {}
        if method == "POST":
            return self._create(path, body)
        collection, _, name = path.rpartition("/")
        held = self.objects.get(collection, {})
        if method == "GET":
            return _json(held[name]) if name in held else self._listed(path, request.query)
        if name not in held:
            return _refused(Refusal(404, "NotFound", f"{name} not found"))
        if method == "DELETE":
            gone = held[name]
            self.remove(collection, name)
            return _json(gone)
        wanted = body.get("metadata", {}).get("resourceVersion") if isinstance(body, dict) else None
        if wanted not in {None, held[name]["metadata"]["resourceVersion"]}:
            return _refused(Refusal(409, "Conflict", f"{name} was changed"))
        if method == "PATCH":
            body = _merged(held[name], body) if isinstance(body, dict) else held[name]
        return _json(self._store(collection, name, body, "MODIFIED"))

    def _create(self, collection: str, obj: Json) -> web.Response:
        name = obj["metadata"]["name"]
        if name in self.objects.get(collection, {}):
            return _refused(Refusal(409, "AlreadyExists", f"{name} exists"))
        return _json(self._store(collection, name, obj, "ADDED"), status=201)

    def _listed(self, path: str, query: dict[str, str]) -> web.Response:
        if path not in self.objects:
            return _refused(Refusal(404, "NotFound", f"{path} not found"))
        token = query.get("continue")
        if token is not None and self.refuse_pages:
            self.refuse_pages -= 1
            self._snapshots.pop(token, None)
        if token is None:
            items = list(self.objects[path].values())
            version = self._version
        elif token in self._snapshots:
            items, version = self._snapshots.pop(token)
        else:
            return _refused(Refusal(410, "Expired", "the continue token is too old"))
        limit = int(query.get("limit", "0")) or len(items)
        meta = {"resourceVersion": str(version)}
        if items[limit:]:
            meta["continue"] = f"token-{version}-{len(items)}"
            self._snapshots[meta["continue"]] = (items[limit:], version)
        return _json({"kind": "List", "metadata": meta, "items": items[:limit]})

    async def _stream(self, request: web.Request, watch: _Watch) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion", "0"))
        response = web.StreamResponse()
        try:
            if since < self.oldest_version:
                status = {"code": 410, "reason": "Expired", "message": "too old"}
                if not self.gone_as_event:
                    return _refused(Refusal(410, "Expired", "too old"))
                watch.lines.put_nowait(_line("ERROR", status))
                watch.lines.put_nowait(None)
            await response.prepare(request)
            while isinstance(line_or_end := await watch.lines.get(), bytes):
                await response.write(line_or_end)
        finally:
            self._watches.remove(watch)
            self._changed.set()
        return _cut(request) if line_or_end is Cut.BEFORE else response

    def _store(self, collection: str, name: str, obj: Json, kind: str) -> Json:
        self._version += 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": self.version}}
        self.objects.setdefault(collection, {})[name] = stored
        line = _line(kind, stored)
        self._history.setdefault(collection, []).append((self._version, line))
        self.send_line(collection, line)
        return stored


def _merged(old: Json, patch: Json) -> Json:
    merged = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            below = merged.get(key)
            merged[key] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _line(kind: str, obj: Json) -> bytes:
    # Without spaces and in this order, as API servers write them.
    return json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n"


def _json(obj: Json, status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(obj).encode(), status=status, content_type="application/json"
    )


def _refused(refusal: Refusal) -> web.Response:
    status = {
        "kind": "Status",
        "reason": refusal.reason,
        "message": refusal.message,
        "details": refusal.details,
        "code": refusal.status,
    }
    body = refusal.body if refusal.body is not None else json.dumps(status).encode()
    return web.Response(body=body, status=refusal.status, headers=refusal.headers)


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
