"""Make disk models of what the ConfigMap lists: tables at once, expressions and URLs by and by.

    ConfigMap --read_list--> entries --+-- tables ------------------+
                                       +-- expression --tabulate----+--resolve--> Fleet
                                       +-- url --fetch (cached)-----+

What a URL gave is kept by its hash for as long as an entry names it, so a source that goes away
changes nothing; one that cannot be read is tried again, after 5 s first, later every 5 minutes. While
it is awaited, and whenever an entry is faulty, disks keep the model that they have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from berthmaster.api import names
from berthmaster.api.inventory import DiskModel
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster.concerns.diskio.models import (
    DiskModels,
    ModelEntry,
    ModelList,
    ModelSource,
    read_list,
    resolve,
)
from berthmaster_operator.fleet import Fleet
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.model_expressions import ExpressionError, tabulate
from berthmaster_operator.model_fetching import FetchError
from berthmaster_operator.sightings import ModelsSeen

logger = logging.getLogger(__name__)

KEY = names.DISK_MODELS_CONFIG_MAP
# How many entries may need work beyond reading a table.
MOST_SOURCES = 256
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
_TOGETHER = 4
_TOLD_AT_ONCE = 10

# A URL and the hash of what it is to give.
_Address = tuple[str, str]


class Fetches(Protocol):
    """Name the part of `ModelFetcher` that is needed here."""

    async def fetch(self, url: str, sha256: str) -> ModelSource:
        """Return the tables or the expression that a URL gives, or raise `FetchError`."""


@dataclass(slots=True)
class _Failure:
    fault: str
    backoff: Backoff
    again_s: float


class ModelLoader:
    """Load the models; `see` tells of a change, `reconcile` does the work and is the queue's."""

    def __init__(
        self,
        fleet: Fleet,
        fetcher: Fetches,
        *,
        events: EventRecorder,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._fetcher = fetcher
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self._seen: ModelsSeen | None = None
        self._tables: dict[str, DiskModel | str] = {}
        self._documents: dict[_Address, ModelSource] = {}
        self._failures: dict[_Address, _Failure] = {}
        self._told: tuple[str, ...] = ()
        # Set once everything was loaded that can be had without a wait.
        self.loaded = asyncio.Event()

    def see(self, seen: ModelsSeen | None) -> None:
        """Take over the ConfigMap, None when it is gone; the models follow with `reconcile`."""
        self._seen = seen
        # A change is told anew, even where the fault is an old one.
        self._told = ()

    async def reconcile(self, key: str) -> float | None:
        """Load what can be loaded; return in how many seconds to try again what cannot."""
        del key
        seen = self._seen
        if seen is None:
            self._publish(None, DiskModels())
            return None
        listed = read_list(seen.data)
        self._forget(listed)
        outcomes = await self._outcomes(listed)
        self._publish(seen, resolve(listed, outcomes, self._fleet.models))
        if await self._fetch(listed) and self._seen is seen:
            outcomes = await self._outcomes(listed)
            self._publish(seen, resolve(listed, outcomes, self._fleet.models))
        again_s = min((it.again_s for it in self._failures.values()), default=None)
        return None if again_s is None else max(0.0, again_s - self._clock())

    async def _outcomes(self, listed: ModelList) -> dict[str, DiskModel | str]:
        """Return what became of each entry that is not a table; one to be fetched is left out."""
        outcomes: dict[str, DiskModel | str] = {}
        for index, entry in enumerate(_sourced(listed)):
            if index >= MOST_SOURCES:
                outcomes[entry.key] = (
                    f"only {MOST_SOURCES} expressions and urls are read; give tables inline"
                )
                continue
            source: ModelSource | None = entry.source
            if entry.source.url:
                source = self._documents.get(_address(entry))
                failure = self._failures.get(_address(entry))
                if source is None and failure is not None:
                    outcomes[entry.key] = failure.fault
            if source is not None:
                outcomes[entry.key] = source.tables or await self._tabulate(source.expression)
        return outcomes

    async def _tabulate(self, expression: str) -> DiskModel | str:
        found = self._tables.get(expression)
        if found is None:
            try:
                found = await tabulate(expression)
            except ExpressionError as error:
                found = str(error)
            self._tables[expression] = found
        return found

    async def _fetch(self, listed: ModelList) -> bool:
        """Fetch what is due, a few at a time; return whether anything was."""
        now_s = self._clock()
        due = {
            address
            for entry in _sourced(listed)[:MOST_SOURCES]
            if entry.source.url and (address := _address(entry)) not in self._documents
            if address not in self._failures or self._failures[address].again_s <= now_s
        }
        gate = asyncio.Semaphore(_TOGETHER)

        async def fetch_one(address: _Address) -> None:
            async with gate:
                await self._fetch_one(address)

        async with asyncio.TaskGroup() as tasks:
            for address in sorted(due):
                tasks.create_task(fetch_one(address))
        return bool(due)

    async def _fetch_one(self, address: _Address) -> None:
        url, sha256 = address
        try:
            self._documents[address] = await self._fetcher.fetch(url, sha256)
        except FetchError as error:
            failure = self._failures.get(address)
            if failure is None:
                backoff = Backoff(first_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S, clock=self._clock)
                failure = self._failures[address] = _Failure("", backoff, 0.0)
            failure.fault = str(error)
            # Full jitter can be next to nothing, and a source in trouble wants some peace.
            failure.again_s = self._clock() + max(FIRST_PAUSE_S, failure.backoff.next_s())
            return
        self._failures.pop(address, None)
        logger.info("disk model fetched", extra={"url": url, "sha256": sha256})

    def _forget(self, listed: ModelList) -> None:
        """Drop what no entry names any more."""
        if listed.unreadable:
            return
        addresses = {_address(entry) for entry in _sourced(listed)}
        self._documents = {key: it for key, it in self._documents.items() if key in addresses}
        self._failures = {key: it for key, it in self._failures.items() if key in addresses}
        expressions = {entry.source.expression for entry in _sourced(listed)}
        expressions |= {it.expression for it in self._documents.values()}
        self._tables = {key: it for key, it in self._tables.items() if key in expressions}

    def _publish(self, seen: ModelsSeen | None, models: DiskModels) -> None:
        self._fleet.see_models(models)
        self._metrics.model_problems.set(len(models.problems))
        self.loaded.set()
        if seen is None:
            return
        ref = ObjectRef(
            api_version="v1",
            kind="ConfigMap",
            name=seen.name,
            namespace=seen.namespace,
            uid=seen.uid,
        )
        for problem in models.problems[:_TOLD_AT_ONCE]:
            if problem not in self._told:
                note = f"{problem}; correct the entry or its source, it is read again by itself"
                self._events.record(ref, "BadDiskModel", note, action="ReadModels", type_="Warning")
        self._told = models.problems


def _sourced(listed: ModelList) -> list[ModelEntry]:
    """Return the entries that are not simply tables."""
    return [entry for entry in listed.entries if entry.source.tables is None]


def _address(entry: ModelEntry) -> _Address:
    return entry.source.url, entry.source.sha256
