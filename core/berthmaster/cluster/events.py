"""Write `events.k8s.io/v1` Events without ever being a burden: not on callers, not on the API server.

`record` only puts a line into memory; the task in `run` writes. What repeats within `window_s`
seconds (same object, type, reason, action and note) becomes one Event whose `series` counts it,
patched at most every `series_pause_s` seconds. Per object there is a bucket of 25 new Events, refilled by
one each 5 minutes. The queue is bounded: when it is full the oldest line is dropped. Whatever is
dropped or fails is counted in `dropped` and `failed`; nothing is raised to anybody.

Events explain, they do not decide: losing one must never matter.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from berthmaster.cluster.client import JsonObject, PatchKind
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.stores import Creates, Patches

logger = logging.getLogger(__name__)

NOTE_MAX_BYTES = 1024
REASON_MAX_CHARS = 128
INSTANCE_MAX_CHARS = 128
QUEUE_LIMIT = 1000
# How many objects and kinds of line are remembered for merging and for the buckets.
MEMORY_LIMIT = 4096
BURST = 25
REFILL_S = 300.0
WINDOW_S = 600.0
SERIES_PAUSE_S = 30.0
WRITE_TIMEOUT_S = 10.0
# A flooded API server is left alone, but no longer than this.
MAX_PAUSE_S = 30.0
# Events of cluster-scoped objects live here by convention; the API server insists on it.
CLUSTER_SCOPED_NAMESPACE = "default"

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """Name the object that an Event is about; an empty namespace means cluster-scoped."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


class EventStore(Creates, Patches, Protocol):
    """Name the part of `Client` that is needed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """Hold what makes two events the same."""

    regarding: ObjectRef
    type: EventType
    reason: str
    action: str
    note: str


@dataclass(slots=True, kw_only=True)
class _Entry:
    """Remember one line: how often it came, and what the API server knows of it."""

    first_s: float
    first_at: datetime
    last_at: datetime
    count: int = 1
    name: str = ""
    written_s: float = 0.0
    is_queued: bool = False


class _Buckets:
    """Give each object its allowance of new Events."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: OrderedDict[ObjectRef, tuple[float, float]] = OrderedDict()

    def take(self, ref: ObjectRef) -> bool:
        now_s = self._clock()
        level, since_s = self._levels.pop(ref, (float(BURST), now_s))
        level = min(float(BURST), level + (now_s - since_s) / REFILL_S)
        is_allowed = level >= 1.0
        self._levels[ref] = (level - 1.0 if is_allowed else level, now_s)
        if len(self._levels) > MEMORY_LIMIT:
            self._levels.popitem(last=False)
        return is_allowed


class EventRecorder:
    """Collect Events from anywhere in the process; `run` writes them.

    `component` is the reporting controller, a qualified name like `berthmaster.io/placer`;
    `instance` is this process, for instance the pod's name.
    """

    def __init__(
        self,
        client: EventStore,
        component: str,
        *,
        instance: str | None = None,
        queue_limit: int = QUEUE_LIMIT,
        window_s: float = WINDOW_S,
        series_pause_s: float = SERIES_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._component = component
        self._instance = (instance or component)[:INSTANCE_MAX_CHARS]
        self._queue_limit = queue_limit
        self._window_s = window_s
        self._series_pause_s = series_pause_s
        self._clock = clock
        self._buckets = _Buckets(clock)
        self._entries: OrderedDict[_Line, _Entry] = OrderedDict()
        self._queue: OrderedDict[_Line, _Entry] = OrderedDict()
        # Lines that came again since they were written; they wait for their pause to pass.
        self._repeated: OrderedDict[_Line, _Entry] = OrderedDict()
        self._wake = asyncio.Event()
        self.written = 0
        self.dropped = 0
        self.failed = 0

    def record(
        self,
        regarding: ObjectRef,
        reason: str,
        note: str,
        *,
        action: str,
        type_: EventType = "Normal",
    ) -> None:
        """Note an Event, to be written soon; never blocks, never raises. `note` is cut to 1024 bytes."""
        line = _Line(
            regarding=regarding,
            type=type_,
            reason=reason[:REASON_MAX_CHARS],
            action=action[:REASON_MAX_CHARS],
            note=cut_note(note),
        )
        now_s, now = self._clock(), datetime.now(UTC)
        entry = self._entries.get(line)
        if entry is not None and now_s - entry.first_s < self._window_s:
            self._entries.move_to_end(line)
            entry.count += 1
            entry.last_at = now
            if not entry.is_queued:
                self._repeated.setdefault(line, entry)
        else:
            self._begin(line, _Entry(first_s=now_s, first_at=now, last_at=now))
        self._wake.set()

    def _begin(self, line: _Line, entry: _Entry) -> None:
        if not self._buckets.take(line.regarding):
            self.dropped += 1
            return
        # A line whose window is over is written to the end under its old name, or lost: no matter.
        self._repeated.pop(line, None)
        self._entries[line] = entry
        self._entries.move_to_end(line)
        self._enqueue(line, entry)
        if len(self._entries) > MEMORY_LIMIT:
            old, _ = self._entries.popitem(last=False)
            self._repeated.pop(old, None)

    def _enqueue(self, line: _Line, entry: _Entry) -> None:
        if line not in self._queue and len(self._queue) >= self._queue_limit:
            lost_line, lost = self._queue.popitem(last=False)
            lost.is_queued = False
            self._entries.pop(lost_line, None)
            self.dropped += 1
        entry.is_queued = True
        self._queue[line] = entry

    async def run(self) -> None:
        """Write until cancelled. Failures are counted and logged, the line is given up."""
        while True:
            pause_s = await self._write_due()
            # A flooded API server gets its pause whatever else is recorded meanwhile.
            if pause_s is not None:
                await asyncio.sleep(pause_s)
                continue
            try:
                async with asyncio.timeout(self._idle_s()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, for at most so many seconds; for the end of a process, after `run`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._queue and await self._write_due() is None:
                    pass
        except TimeoutError:
            logger.warning("events not written in time", extra={"left": len(self._queue)})
        self.dropped += len(self._queue)
        self._queue.clear()

    def _idle_s(self) -> float | None:
        """Return the seconds until the first repeated line may be patched, None without any."""
        if self._queue:
            return 0.0
        due_s = [entry.written_s + self._series_pause_s for entry in self._repeated.values()]
        return max(0.0, min(due_s) - self._clock()) if due_s else None

    async def _write_due(self) -> float | None:
        """Write all that may be written; return a pause in seconds if the server asked for one."""
        while self._queue:
            line, entry = self._queue.popitem(last=False)
            entry.is_queued = False
            pause_s = await self._guarded(line, entry)
            if pause_s is not None:
                return pause_s
        now_s = self._clock()
        due = [
            (line, entry)
            for line, entry in self._repeated.items()
            if now_s - entry.written_s >= self._series_pause_s
        ]
        for line, entry in due:
            self._repeated.pop(line, None)
            pause_s = await self._guarded(line, entry)
            if pause_s is not None:
                return pause_s
        return None

    async def _guarded(self, line: _Line, entry: _Entry) -> float | None:
        entry.written_s = self._clock()
        try:
            await self._write(line, entry)
        except ClusterError as error:
            self.failed += 1
            logger.warning(
                "event not written",
                extra={
                    "object": f"{line.regarding.namespace}/{line.regarding.name}",
                    "reason": line.reason,
                    "error": str(error),
                },
            )
            if isinstance(error, ApiError) and error.retry_after_s is not None:
                return min(error.retry_after_s, MAX_PAUSE_S)
            return None
        self.written += 1
        return None

    async def _write(self, line: _Line, entry: _Entry) -> None:
        namespace = line.regarding.namespace or CLUSTER_SCOPED_NAMESPACE
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        if entry.name:
            try:
                await self._client.patch(
                    f"{path}/{entry.name}",
                    {"series": _series(entry)},
                    PatchKind.MERGE,
                    timeout_s=WRITE_TIMEOUT_S,
                )
            except ApiError as error:
                if not error.is_not_found:
                    raise
                # The API server forgot it (after an hour by default, or by hand): write it anew.
                entry.name = ""
        if not entry.name:
            event = self._event(line, entry, namespace)
            await self._client.create(path, event, timeout_s=WRITE_TIMEOUT_S)
            entry.name = event["metadata"]["name"]

    def _event(self, line: _Line, entry: _Entry, namespace: str) -> JsonObject:
        ref = line.regarding
        regarding = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "name": ref.name,
            "namespace": ref.namespace,
            "uid": ref.uid,
        }
        event: JsonObject = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{ref.name[:230].rstrip('.-')}.{secrets.token_hex(8)}",
                "namespace": namespace,
            },
            "eventTime": micro_time(entry.first_at),
            "reportingController": self._component,
            "reportingInstance": self._instance,
            "action": line.action,
            "reason": line.reason,
            "note": line.note,
            "type": line.type,
            "regarding": {key: text for key, text in regarding.items() if text},
        }
        if entry.count > 1:
            event["series"] = _series(entry)
        return event


def micro_time(moment: datetime) -> str:
    """Write a time as Kubernetes' `MicroTime`: UTC with six decimals."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def cut_note(note: str) -> str:
    """Cut to 1024 bytes of UTF-8 without splitting a character, marking the cut by `...`."""
    encoded = note.encode(errors="replace")
    if len(encoded) <= NOTE_MAX_BYTES:
        return encoded.decode()
    return encoded[: NOTE_MAX_BYTES - 3].decode(errors="ignore") + "..."


def _series(entry: _Entry) -> JsonObject:
    return {"count": entry.count, "lastObservedTime": micro_time(entry.last_at)}
