"""Choose one leader among replicas by a `coordination.k8s.io/v1` Lease.

The protocol is that of client-go, with its timing made strict on both sides:

* Every write carries the resourceVersion that was read, so of two writers one gets a conflict.
* A candidate lets a holder be until the record has not changed for the lease's duration, counted
  on the candidate's own clock from when it *received* the last change. No clock of another machine
  is ever compared. A Lease that is absent is first planted without a holder and then waited for
  just as long: somebody may have deleted it under a living leader, and absence has no version by
  which to see that it was interrupted.
* A leader trusts itself only until `renew_deadline_s` after its last successful renewal was *sent*.

The holder sends before the candidate can receive, and `renew_deadline_s < duration_s`, so there is
a gap and never an overlap between two leaders, provided their clocks run at the same rate. The
clock is CLOCK_BOOTTIME, which goes on while the process is stopped or the machine sleeps.

What this is not: a fence. A write that a leader sent while it was leader may arrive later; whatever
matters needs a precondition of its own.

A leader that stops in order writes an empty holder, and with it annotations for its successor, who
takes over at once. These are removed by the write that acquires, so that they are used once: if
that successor crashes, the next one sees an expired lease and no hand-over.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import random
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Protocol

from berthmaster.cluster.client import JsonObject
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.stores import Creates, Gets, Replaces

logger = logging.getLogger(__name__)

# Lists the annotation keys that a released Lease hands over.
HANDOVER_KEYS_ANNOTATION = "berthmaster.io/handover-keys"
_RELEASE_ATTEMPTS = 4
_MIN_TIMEOUT_S = 0.5
Notice = Callable[[], Awaitable[None] | None]


class Acquisition(Enum):
    """Say what a new leader found; it decides how long in-flight work of another may matter."""

    # Nobody ever held this Lease object: a first start, or somebody deleted the old one.
    CREATED = "created"
    # The holder stopped renewing: it crashed, hangs, or is cut off.
    EXPIRED = "expired"
    # The holder had stopped its work and said so; its annotations are for us.
    RELEASED = "released"
    # We held it, were late with a renewal, and nobody took it meanwhile.
    REGAINED = "regained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """Describe one acquisition.

    `transitions` grows with every acquisition, REGAINED included, and names the epoch.
    `annotations` holds what `release` of the previous holder handed over, else nothing.
    """

    kind: Acquisition
    transitions: int
    previous_holder: str
    annotations: Mapping[str, str]


class LeaseStore(Creates, Gets, Replaces, Protocol):
    """Name the part of `Client` that is needed here."""


def make_identity(pod_name: str) -> str:
    """Name this process: a container that restarts in the same pod is a stranger to itself."""
    return f"{pod_name}_{secrets.token_hex(8)}"


def boottime_s() -> float:
    """Return seconds since boot, counting also those in which the machine slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """Hold a Lease as read or written; `obj` is None when it does not exist."""

    obj: JsonObject | None
    version: str = ""
    holder: str = ""
    transitions: int = 0
    duration_s: float = 0.0
    ever_held: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)


_ABSENT = _Record(obj=None)


class LeaderElector:
    """Hold or seek one Lease; `run` does it for ever, `step` does one round.

    `on_acquired` and `on_lost` are called one after the other by a task of their own, so a slow one
    delays the next call but never a renewal. What they raise ends `run`. They are late by nature:
    before each act of a leader ask `is_leader`. Leadership may also pause, where the answer to a renewal
    comes after its time and still in time: nothing was lost then, and `on_resumed` is called, for those who
    did not do something meanwhile.
    """

    def __init__(  # noqa: PLR0913 - times, clock and callbacks are independent of each other
        self,
        client: LeaseStore,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_s: float = 6.0,
        renew_deadline_s: float = 4.0,
        retry_s: float = 1.0,
        clock: Callable[[], float] = boottime_s,
        on_acquired: Callable[[Acquired], Awaitable[None] | None] | None = None,
        on_lost: Notice | None = None,
        on_resumed: Notice | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare, sending nothing; raise ValueError if the times (seconds) do not stand in order."""
        if not duration_s > renew_deadline_s > retry_s * 1.2 > 0:
            raise ValueError("lease times must satisfy duration > renew deadline > 1.2 * retry > 0")
        if not identity:
            raise ValueError("an empty identity means that nobody holds the lease")
        self._client = client
        self._namespace = namespace
        self._name = name
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self.identity = identity
        self._duration_s = float(math.ceil(duration_s))
        self._renew_deadline_s = renew_deadline_s
        self._retry_s = retry_s
        self._clock = clock
        self._on_acquired = on_acquired
        self._on_lost = on_lost
        self._on_resumed = on_resumed
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, no secret
        # The last record known, when it was first received, and whether it is surely the newest.
        self._record: _Record | None = None
        self._changed_at_s = 0.0
        self._is_current = False
        # Leadership: since which acquisition, and how long it may be trusted.
        self._acquired: Acquired | None = None
        self._until_s = -math.inf
        # An acquisition that was sent and whose answer is not known.
        self._attempt: Acquired | None = None
        self._stopped = False
        self._notices: deque[Notice] = deque()
        self._noticed = asyncio.Event()
        self._hinted = asyncio.Event()

    def is_leader(self) -> bool:
        """Tell whether leader work may be done at this instant."""
        return self._acquired is not None and not self._stopped and self._clock() < self._until_s

    @property
    def acquired(self) -> Acquired | None:
        """Return how the present leadership began, None without one."""
        return self._acquired if self.is_leader() else None

    @property
    def transitions(self) -> int:
        """Return the leaseTransitions last seen."""
        return self._record.transitions if self._record is not None else 0

    @property
    def holder(self) -> str:
        """Return the holder last seen, empty if nobody."""
        return self._record.holder if self._record is not None else ""

    async def run(self) -> None:
        """Seek and keep the lease until cancelled; afterwards call `release`."""
        async with asyncio.TaskGroup() as tasks:
            notifier = tasks.create_task(self._notify(), name=f"lease {self._name} notices")
            while not self._stopped:
                await self.step()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._hinted.wait()
                self._hinted.clear()
            notifier.cancel()

    def look_soon(self) -> None:
        """Do the next round at once: something hints that the lease is free."""
        self._hinted.set()

    async def step(self) -> None:
        """Do one round: renew, or look and perhaps acquire. Cluster errors are logged, not raised."""
        if self._stopped:
            return
        self._note_lapse()
        try:
            if self._acquired is not None and self._is_current and self._record is not None:
                await self._renew(self._record)
            else:
                await self._look_and_act()
        except ClusterError as error:
            self._is_current = False
            logger.warning(
                "lease round failed",
                extra={"lease": f"{self._namespace}/{self._name}", "error": str(error)},
            )
        self._note_lapse()

    async def release(self, annotations: Mapping[str, str] | None = None) -> bool:
        """Give the lease back with `annotations` for the successor; return whether that is stored.

        Call it after all leader work has stopped: the successor starts at once. From the call on
        this elector is never leader again. Never raises a ClusterError; a lease that cannot be
        released expires by itself.
        """
        was_held = self._acquired is not None or self._attempt is not None
        self._stopped = True
        self._acquired = None
        if not was_held:
            return False
        for _ in range(_RELEASE_ATTEMPTS):
            try:
                if not self._is_current:
                    await self._look()
                record = self._record
                if record is None or record.obj is None or record.holder != self.identity:
                    return record is not None and record.obj is not None and not record.holder
                self._is_current = False
                self._remember(
                    await self._client.replace(
                        self._path,
                        self._released(record, annotations or {}),
                        timeout_s=self._limit_s(),
                    )
                )
                return True
            except ClusterError as error:
                self._is_current = False
                logger.warning("lease not released yet", extra={"error": str(error)})
        return False

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self._name}"

    def _limit_s(self) -> float:
        """Leave time for a second try before the deadline."""
        left_s = self._until_s - self._clock() if self._acquired is not None else math.inf
        return max(_MIN_TIMEOUT_S, min(left_s, self._renew_deadline_s) / 2)

    def _pause_s(self) -> float:
        if self._acquired is not None:
            return min(self._retry_s, max(0.05, self._until_s - self._clock()))
        pause_s = self._retry_s * self._rng.uniform(1.0, 1.2)
        # Not to be late where the holder has fallen silent.
        left_s = self._expires_at_s() - self._clock()
        return min(pause_s, left_s) if left_s > 0 else pause_s

    def _expires_at_s(self) -> float:
        """Return when the record last seen may be taken, if it does not change before."""
        duration_s = self._record.duration_s if self._record is not None else 0.0
        return self._changed_at_s + max(self._duration_s, duration_s)

    async def _renew(self, record: _Record) -> None:
        try:
            await self._write(record, self._held(record, record.transitions))
        except ApiError as error:
            if not (error.is_conflict or error.is_not_found):
                raise
            # Somebody wrote: a rival, or a hand that annotated. Look at once, the deadline is near.
            await self._look_and_act()

    async def _look_and_act(self) -> None:
        record = await self._look()
        if self._stopped:
            return
        self._note_lapse()
        if self._acquired is not None:
            if record.holder == self.identity:
                await self._write(record, self._held(record, record.transitions))
                return
            self._lose()
        if record.obj is None:
            await self._plant()
            return
        kind = self._acquirable(record)
        if kind is not None:
            await self._acquire(record, kind)

    def _acquirable(self, record: _Record) -> Acquisition | None:
        if record.holder == self.identity:
            return Acquisition.REGAINED
        if record.ever_held and not record.holder:
            return Acquisition.RELEASED
        if self._clock() < self._expires_at_s():
            return None
        return Acquisition.EXPIRED if record.ever_held else Acquisition.CREATED

    async def _plant(self) -> None:
        """Make a Lease that nobody holds, so that waiting for it has a beginning."""
        spec = {"leaseDurationSeconds": int(self._duration_s)}
        planted = self._lease(_ABSENT, spec, {})
        try:
            stored = await self._client.create(self._collection, planted, timeout_s=self._limit_s())
        except ApiError as error:
            if not error.is_already_exists:
                raise
            self._is_current = False
            return
        self._remember(stored)

    async def _acquire(self, record: _Record, kind: Acquisition) -> None:
        before = self._attempt
        if kind is Acquisition.REGAINED and before is not None:
            # Our earlier attempt had succeeded, only its answer was lost: what it found counts.
            kind, holder, handed = before.kind, before.previous_holder, before.annotations
        else:
            holder, handed = record.holder, _handed_over(record)
        attempt = Acquired(
            kind=kind,
            transitions=record.transitions + 1,
            previous_holder=holder,
            annotations=handed if kind is Acquisition.RELEASED else {},
        )
        self._attempt = attempt
        try:
            await self._write(record, self._held(record, attempt.transitions, acquiring=True))
        except ApiError as error:
            if not error.is_unknown:
                # Refused, so it never happened; an earlier attempt may still be the holder.
                self._attempt = before
            if error.is_conflict:
                self._is_current = False
                return
            raise
        if self._stopped:
            return
        self._attempt = None
        self._acquired = attempt
        self._tell(self._on_acquired and partial(self._on_acquired, attempt))
        logger.info(
            "lease acquired",
            extra={"lease": f"{self._namespace}/{self._name}", "kind": kind.value},
        )

    async def _write(self, record: _Record, obj: JsonObject) -> None:
        """Store our claim; on success leadership counts from before the request was sent."""
        limit_s = self._limit_s()
        self._is_current = False
        sent_at_s = self._clock()
        stored = await self._client.replace(self._path, obj, timeout_s=limit_s)
        self._remember(stored)
        was_paused = self._acquired is not None and not self.is_leader()
        self._until_s = max(self._until_s, sent_at_s + self._renew_deadline_s)
        if was_paused and self.is_leader():
            self._tell(self._on_resumed)
            logger.warning("lease renewed late", extra={"lease": f"{self._namespace}/{self._name}"})

    async def _look(self) -> _Record:
        try:
            return self._remember(await self._client.get(self._path, timeout_s=self._limit_s()))
        except ApiError as error:
            if not error.is_not_found:
                raise
            return self._remember(None)

    def _remember(self, obj: JsonObject | None) -> _Record:
        # Called after the answer came: never earlier than the change itself.
        record = _ABSENT if obj is None else _parse(obj)
        if self._record is None or self._record.version != record.version:
            self._changed_at_s = self._clock()
        self._record = record
        self._is_current = True
        return record

    def _note_lapse(self) -> None:
        if self._acquired is not None and not self.is_leader():
            self._lose()

    def _lose(self) -> None:
        self._acquired = None
        self._until_s = -math.inf
        self._tell(self._on_lost)
        logger.warning("lease lost", extra={"lease": f"{self._namespace}/{self._name}"})

    def _tell(self, notice: Notice | None) -> None:
        if notice is not None:
            self._notices.append(notice)
            self._noticed.set()

    async def _notify(self) -> None:
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            while self._notices:
                pending = self._notices.popleft()()
                if inspect.isawaitable(pending):
                    await pending

    def _held(self, record: _Record, transitions: int, *, acquiring: bool = False) -> JsonObject:
        now = _micro_time()
        old_spec = (record.obj or {}).get("spec") or {}
        since = now if acquiring else old_spec.get("acquireTime") or now
        spec = {
            **old_spec,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self._duration_s),
            "acquireTime": since,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        used = {HANDOVER_KEYS_ANNOTATION, *_handover_keys(record)} if acquiring else set()
        kept = {key: text for key, text in record.annotations.items() if key not in used}
        return self._lease(record, spec, kept)

    def _released(self, record: _Record, annotations: Mapping[str, str]) -> JsonObject:
        spec = {
            **((record.obj or {}).get("spec") or {}),
            "holderIdentity": "",
            "leaseDurationSeconds": 1,
            "renewTime": _micro_time(),
        }
        marker = {HANDOVER_KEYS_ANNOTATION: json.dumps(sorted(annotations))}
        return self._lease(record, spec, {**record.annotations, **annotations, **marker})

    def _lease(
        self, record: _Record, spec: JsonObject, annotations: Mapping[str, str]
    ) -> JsonObject:
        # The uid stays in: a PUT to a Lease that was deleted would create it anew, if not for the uid,
        # which the API server takes as a precondition.
        metadata = dict((record.obj or {}).get("metadata") or {})
        metadata.pop("managedFields", None)
        metadata.update(name=self._name, namespace=self._namespace)
        metadata["annotations"] = dict(annotations)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }


def _parse(obj: JsonObject) -> _Record:
    metadata = obj.get("metadata") or {}
    spec = obj.get("spec") or {}
    transitions = spec.get("leaseTransitions") or 0
    return _Record(
        obj=obj,
        version=metadata.get("resourceVersion", ""),
        holder=spec.get("holderIdentity") or "",
        transitions=transitions,
        duration_s=float(spec.get("leaseDurationSeconds") or 0),
        ever_held=bool(transitions or spec.get("acquireTime")),
        annotations=metadata.get("annotations") or {},
    )


def _handover_keys(record: _Record) -> frozenset[str]:
    try:
        keys = json.loads(record.annotations.get(HANDOVER_KEYS_ANNOTATION, "[]"))
    except ValueError:
        return frozenset()
    return (
        frozenset(key for key in keys if isinstance(key, str))
        if isinstance(keys, list)
        else frozenset()
    )


def _handed_over(record: _Record) -> dict[str, str]:
    keys = _handover_keys(record)
    return {key: text for key, text in record.annotations.items() if key in keys}


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
