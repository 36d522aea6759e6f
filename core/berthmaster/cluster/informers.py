"""Keep a local copy of one kind of objects by LIST and WATCH, and tell its owner what changes.

A list is read page by page from the freshest state, and each page is decoded into the owner's small
types and compared with what was known at once, so that a big cluster is never held as a whole. New and
changed objects are told as their pages come; when the list is complete, so are vanished ones, for
which a DELETED with the last known state is made up. A list that breaks off tells nothing wrong: the next
one goes on from what is known by then. Then a watch goes on from the list's version. It is resumed from the last
version seen when it ends or breaks, and a new list is made only when the server says that this
version is too old (410), or that there is no such kind (404).

Guarantees. `on_event` is called in the server's order and never concurrently; at its return `store`
already holds the change. ADDED and MODIFIED tell whether the key was in the store, so each key goes
ADDED, MODIFIED*, DELETED. One object that cannot be decoded harms nobody else: it is counted, told
to `on_bad_object`, and the state known before stays until the object decodes again or is gone.
A watch that is silent for `silent_after_s` seconds counts as broken.

The store is always late. `on_progress` is the proof of how late it cannot be: it is called only for
what came through the living watch, never for a list, whose content is as old as its first page.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import aclosing
from enum import Enum
from typing import Generic, TypeVar

import msgspec

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client, Query
from berthmaster.cluster.errors import ApiError, ClusterError, UnreachableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SILENT_AFTER_S = 180.0
PAGE_LIMIT = 500
# Between two looks for a kind that is not installed.
ABSENT_PAUSE_S = 30.0
# The same for a kind that ought to be there, whose CRD was deleted: less than pods wait for the policy that took them over.
LOST_PAUSE_S = 5.0
# client-go's span: so that the watches of many clients do not end together.
WATCH_TIMEOUT_RANGE_S = (300, 600)
# A watch that ends cleanly before this, without an event, is a failure in disguise.
_SHORT_WATCH_S = 1.0
# Let leases and requests run between this many objects of a list.
_BREATH = 250


class EventKind(Enum):
    """Say what happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class _Meta(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    namespace: str = ""
    name: str = ""
    uid: str = ""


class _Stub(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _ListPage(msgspec.Struct):
    metadata: _Meta
    # Go writes an empty list as null in some answers.
    items: list[msgspec.Raw] | None = None


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Failure(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


_EVENT_START = re.compile(rb'\{"type":"([A-Z]+)","object":(?=\{)')
_PAGE = msgspec.json.Decoder(_ListPage)
_EVENT = msgspec.json.Decoder(_WatchEvent)
_STUB = msgspec.json.Decoder(_Stub)
_FAILURE = msgspec.json.Decoder(_Failure)


class Informer(Generic[T]):
    """Mirror the objects at `path`; the task that awaits `run` owns it.

    `decode` gets the JSON of one object (items of a list lack `kind` and `apiVersion`); `key` must
    be stable for an object, `namespace/name` and the uid are both fine. `version` reads the
    resourceVersion from a decoded object and saves a second look at its JSON. `keep` returns what of an
    object the store holds, with its resourceVersion, for those who need each object once: `on_event`
    gets it whole, except that of one that vanished between two lists only what was kept is known. With `is_optional` a kind whose
    CRD is not there (404) counts as synced and without objects. All
    callbacks are synchronous and quick; what `on_event`, `on_sync` or `on_progress` raise ends `run`.
    """

    def __init__(  # noqa: PLR0913 - callbacks and limits are independent of each other
        self,
        client: Client,
        path: str,
        *,
        decode: Callable[[bytes], T],
        key: Callable[[T], str],
        query: Query | None = None,
        on_event: Callable[[EventKind, T], None] | None = None,
        on_sync: Callable[[], None] | None = None,
        on_progress: Callable[[str], None] | None = None,
        on_bad_object: Callable[[bytes, Exception], None] | None = None,
        version: Callable[[T], str] | None = None,
        keep: Callable[[T], T] = lambda obj: obj,
        silent_after_s: float = SILENT_AFTER_S,
        page_limit: int = PAGE_LIMIT,
        backoff: Backoff | None = None,
        is_optional: bool = False,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._path = path
        self._decode = decode
        self._key = key
        self._query = dict(query or {})
        self._on_event = on_event
        self._on_sync = on_sync
        self._on_progress = on_progress
        self._on_bad_object = on_bad_object
        self._version = version
        self._keep = keep
        self._silent_after_s = silent_after_s
        self._page_limit = page_limit
        self._is_optional = is_optional
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, no secret
        self._clock = clock
        self._backoff = backoff if backoff is not None else Backoff(rng=self._rng, clock=clock)
        # What ends the present watch.
        self._limit: asyncio.Timeout | None = None
        self.store: dict[str, T] = {}
        # Set once the first list is in the store, and for good.
        self.synced = asyncio.Event()
        # Whether the server did not know the kind when it was last asked; `store` is what there was before.
        self.is_absent = False
        # The version to resume from; empty means that the next step is a list.
        self.resource_version = ""
        # When, by `clock`, the server last sent us anything; None before the first list.
        self.last_contact_s: float | None = None
        self.lists = 0
        self.failures = 0
        self.bad_objects = 0

    async def run(self) -> None:
        """List and watch until cancelled. Cluster errors are logged, counted, and retried for ever."""
        while True:
            try:
                if not self.resource_version:
                    await self._list()
                await self._watch()
            except ClusterError as error:
                is_missing = isinstance(error, ApiError) and error.is_not_found
                if is_missing:
                    self.is_absent = True
                    self.resource_version = ""
                if is_missing and self._is_optional:
                    await self._do_without()
                else:
                    await self._recover(error)

    def renew(self) -> None:
        """Give the present watch up, if there is one, and go on from where it was by a new one.

        For an owner who knows that it has missed something: a connection may be half-open, and would
        be believed for `silent_after_s`.
        """
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def _do_without(self) -> None:
        """Take a kind that is not installed for one without objects, and look again later."""
        await self._drop_vanished(set())
        self.synced.set()
        await asyncio.sleep(ABSENT_PAUSE_S)

    async def _recover(self, error: ClusterError) -> None:
        self.failures += 1
        wish_s = None
        if isinstance(error, ApiError):
            wish_s = error.retry_after_s
            if error.is_gone:
                self.resource_version = ""
        wait_s = self._backoff.next_s(wish_s)
        if isinstance(error, ApiError) and error.is_not_found:
            wait_s = min(wait_s, LOST_PAUSE_S)
        logger.warning(
            "list or watch failed",
            extra={"path": self._path, "error": str(error), "retry_in_s": round(wait_s, 2)},
        )
        await asyncio.sleep(wait_s)

    async def _list(self) -> None:
        listed: set[str] = set()
        version = ""
        async with aclosing(
            self._client.list_pages(self._path, self._query, self._page_limit)
        ) as pages:
            async for raw in pages:
                try:
                    page = _PAGE.decode(raw)
                except msgspec.DecodeError as error:
                    raise UnreachableError(f"no list at {self._path}: {error}") from error
                version = version or page.metadata.resource_version
                await self._take_page(page.items or (), listed)
        self.last_contact_s = self._clock()
        self.is_absent = False
        await self._drop_vanished(listed)
        self.resource_version = version
        self.lists += 1
        self.synced.set()
        if self._on_sync is not None:
            self._on_sync()

    async def _take_page(self, items: list[msgspec.Raw] | tuple[()], listed: set[str]) -> None:
        """Turn the difference between a page and the store into events; note whose keys it had."""
        for count, item in enumerate(items, 1):
            raw = bytes(item)
            obj = self._decoded(raw)
            if obj is None:
                # An object that is there but cannot be read has not vanished.
                listed.update(_names_in(raw))
                continue
            key = self._key(obj)
            listed.add(key)
            old = self.store.get(key)
            if old is None:
                self._put(EventKind.ADDED, key, obj)
            elif old != self._keep(obj):
                self._put(EventKind.MODIFIED, key, obj)
            if count % _BREATH == 0:
                await asyncio.sleep(0)

    async def _drop_vanished(self, listed: set[str]) -> None:
        vanished = [key for key in self.store if key not in listed]
        for count, key in enumerate(vanished, 1):
            self._drop(key, self.store[key])
            if count % _BREATH == 0:
                await asyncio.sleep(0)

    async def _watch(self) -> None:
        low_s, high_s = WATCH_TIMEOUT_RANGE_S
        query = {
            **self._query,
            "allowWatchBookmarks": True,
            "resourceVersion": self.resource_version,
            "timeoutSeconds": self._rng.randint(low_s, high_s),
        }
        began_s = self._clock()
        was_silent = True
        try:
            async with (
                asyncio.timeout(None) as self._limit,
                aclosing(
                    self._client.watch(self._path, query, idle_timeout_s=self._silent_after_s)
                ) as lines,
            ):
                async for line in lines:
                    was_silent = False
                    self._take_line(line)
        except TimeoutError as error:
            raise UnreachableError(f"the watch of {self._path} missed something") from error
        finally:
            self._limit = None
        if was_silent and self._clock() - began_s < _SHORT_WATCH_S:
            raise UnreachableError(f"the watch of {self._path} ended at once")

    def _take_line(self, line: bytes) -> None:
        try:
            kind, raw = _split_event(line)
            if kind == "ERROR":
                failure = _FAILURE.decode(raw)
                raise ApiError(failure.code, failure.reason, failure.message)
            if kind == "BOOKMARK":
                self._advance(_STUB.decode(raw).metadata.resource_version)
                return
        except msgspec.DecodeError as error:
            raise UnreachableError(f"the watch of {self._path} is garbled: {error}") from error
        if kind not in EventKind.__members__:
            return
        is_gone = kind == EventKind.DELETED.value
        obj = self._decoded(raw)
        if obj is None:
            self._skip(raw, is_gone=is_gone)
            return
        key = self._key(obj)
        if is_gone:
            self._drop(key, obj)
        else:
            self._put(
                EventKind.MODIFIED if key in self.store else EventKind.ADDED,
                key,
                obj,
            )
        if self._version is not None:
            self._advance(self._version(obj))
        else:
            self._advance(_STUB.decode(raw).metadata.resource_version)

    def _skip(self, raw: bytes, *, is_gone: bool) -> None:
        """Pass over an object that does not decode, but let its end be known."""
        if is_gone:
            for key in _names_in(raw):
                if key in self.store:
                    self._drop(key, self.store[key])
        try:
            self._advance(_STUB.decode(raw).metadata.resource_version)
        except msgspec.DecodeError as error:
            # Not even metadata: the version is lost, so only a new list tells where we stand.
            self.resource_version = ""
            raise UnreachableError(f"an object of {self._path} has no metadata") from error

    def _advance(self, version: str) -> None:
        self.last_contact_s = self._clock()
        if version:
            self.resource_version = version
        if self._on_progress is not None:
            self._on_progress(self.resource_version)

    def _put(self, kind: EventKind, key: str, obj: T) -> None:
        self.store[key] = self._keep(obj)
        if self._on_event is not None:
            self._on_event(kind, obj)

    def _drop(self, key: str, obj: T) -> None:
        if self.store.pop(key, None) is not None and self._on_event is not None:
            self._on_event(EventKind.DELETED, obj)

    def _decoded(self, raw: bytes) -> T | None:
        try:
            return self._decode(raw)
        # The boundary of one object: whatever its decoder trips over, the others must go on.
        except Exception as error:  # noqa: BLE001
            self.bad_objects += 1
            logger.warning(
                "object cannot be decoded",
                extra={"path": self._path, "names": _names_in(raw), "error": str(error)},
            )
            if self._on_bad_object is not None:
                self._on_bad_object(raw, error)
            return None


def _split_event(line: bytes) -> tuple[str, bytes]:
    """Return an event's type and the JSON of its object.

    Raises:
        msgspec.DecodeError: it is no event.
    """
    # As API servers write them, so that an object is gone through once, by its own decoder.
    start = _EVENT_START.match(line)
    if start is not None and line.endswith(b"}"):
        return start[1].decode(), line[start.end() : -1]
    event = _EVENT.decode(line)
    return event.type, bytes(event.object)


def _names_in(raw: bytes) -> tuple[str, ...]:
    """Give every form in which an owner may have made a key of this object."""
    try:
        meta = _STUB.decode(raw).metadata
    except msgspec.DecodeError:
        return ()
    forms = (meta.uid, meta.name, f"{meta.namespace}/{meta.name}")
    return tuple(form for form in forms if form)
