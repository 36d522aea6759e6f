"""Read what the book's jobs name, each when it is due, never many at once and never for long.

    turn, every second:   metrics.k8s.io, if due                  -> usages
                          jobs that are due, a bounded number     -> readings, curves, or why not

One turn starts at most so many jobs; whatever is due beyond that comes in the next turns, so a fleet of
any size costs the same per second and is only read less often. A job that fails is tried again after a
random, growing pause, and nobody waits for it. Nothing here is in the way of a decision.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from berthmaster.api import names
from berthmaster.api.power import CpuUsage, EndpointTerm, node_of_metrics, usage_from_metrics
from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import JsonObject, Query
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.concerns.power.questions import UnaskableError
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.power.asking import Asker
from berthmaster_operator.power.book import Job, PowerBook, Source
from berthmaster_operator.power.fetching import FetchError

logger = logging.getLogger(__name__)

NODE_METRICS = f"/apis/{names.METRICS_API_VERSION}/nodes"
# metrics-server itself samples about as often.
METRICS_INTERVAL_S = 15.0
_POD_TIMEOUT_S = 5.0
_TURN_S = 1.0
JOBS_PER_TURN = 40
# PodMetrics are asked for one by one, only for pods that rule WAOv1 placed lately.
PODS_PER_ROUND = 100
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
# Of a fleet that was just seen, nothing is asked all at once.
_SPREAD_S = 5.0

Key = tuple[str, Source]


class Lists(Protocol):
    """Lists objects page by page."""

    def list_pages(self, path: str) -> AsyncIterator[bytes]:
        """Yield each page of a list as JSON."""
        ...

    async def get(self, path: str, query: Query | None = None, *, timeout_s: float) -> JsonObject:
        """Read one object."""
        ...


class _Page(msgspec.Struct):
    items: list[dict[str, Any]] | None = None


_decode_page = msgspec.json.Decoder(_Page).decode


@dataclass(slots=True, kw_only=True)
class Slot:
    """When a job is due, and how it went."""

    job: Job
    due_s: float
    backoff: Backoff
    is_busy: bool = False
    # Whether the last attempt met a server that gave nothing; then only the pause ends the wait.
    is_failing: bool = False
    # The power model's endpoint, once a provider has named it.
    term: EndpointTerm = field(default_factory=EndpointTerm)


class Collector:
    """Reads; `clock` is monotonic seconds, `wall_clock` seconds since the epoch."""

    def __init__(
        self,
        book: PowerBook,
        asker: Asker,
        lists: Lists,
        *,
        may_collect: Callable[[], bool],
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._book = book
        self._asker = asker
        self._lists = lists
        self._may_collect = may_collect
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, no secret
        self._slots: dict[Key, Slot] = {}
        self._seen_version = -1

    @property
    def slots(self) -> Collection[Slot]:
        """Return what there is to do and when it is due."""
        return self._slots.values()

    async def run(self) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_metrics())
            while True:
                if self._may_collect():
                    for slot in self.start_due():
                        tasks.create_task(self.work(slot))
                await asyncio.sleep(_TURN_S)

    def start_due(self) -> list[Slot]:
        """Return the jobs to begin now, the longest due first, and mark them busy."""
        now_s = self._clock()
        if self._seen_version != self._book.version:
            self._seen_version = self._book.version
            self._take_jobs(now_s)
        due = [it for it in self._slots.values() if it.due_s <= now_s and not it.is_busy]
        due.sort(key=lambda it: it.due_s)
        for slot in due[:JOBS_PER_TURN]:
            slot.is_busy = True
        return due[:JOBS_PER_TURN]

    def _take_jobs(self, now_s: float) -> None:
        jobs = {(job.node, job.source): job for job in self._book.jobs()}
        self._book.round_s = len(jobs) / JOBS_PER_TURN * _TURN_S
        for key in self._slots.keys() - jobs.keys():
            del self._slots[key]
        for key, job in jobs.items():
            slot = self._slots.get(key)
            if slot is None:
                due_s = now_s + self._rng.uniform(0.0, min(_SPREAD_S, job.interval_s))
                self._slots[key] = Slot(job=job, due_s=due_s, backoff=self._new_backoff())
            elif slot.job != job:
                slot.job, slot.due_s, slot.is_failing = job, now_s, False

    async def work(self, slot: Slot) -> None:
        """Do one job and set when it is due again; never raises on what others do wrong."""
        job = slot.job
        try:
            if job.source is Source.MODEL:
                await self._ask_model(slot)
            else:
                values = await self._asker.read(job)
                self._book.take_readings(job, values, now_s=self._wall_clock())
                self._hurry(job.node)
            self._metrics.count_fetch(str(job.source), "ok")
            slot.due_s, slot.is_failing = self._clock() + job.interval_s, False
        except (FetchError, UnaskableError) as error:
            is_unasked = isinstance(error, UnaskableError)
            self._metrics.count_fetch(str(job.source), "unasked" if is_unasked else "failed")
            self._book.fail(job, str(error)[:500])
            slot.is_failing = not is_unasked
            slot.due_s = self._clock() + slot.backoff.next_s()
        # The boundary of one job: whatever trips over a strange answer, the others go on.
        except Exception:
            logger.exception("power job failed", extra={"node": job.node})
            self._metrics.count_fetch(str(job.source), "failed")
            slot.due_s = self._clock() + _LONGEST_PAUSE_S
        finally:
            slot.is_busy = False

    async def take_metrics(self) -> None:
        """List the usage of all nodes once.

        Raises ClusterError: it cannot be had now.
        """
        found: list[tuple[str, CpuUsage]] = []
        async for page in self._lists.list_pages(NODE_METRICS):
            for manifest in _decode_page(page).items or ():
                usage = usage_from_metrics(manifest)
                if usage is not None:
                    found.append((node_of_metrics(manifest), usage))
        self._book.take_usages(found, now_s=self._wall_clock())

    async def take_pod_metrics(self) -> None:
        """Ask for what some of the pods use that rule WAOv1 placed.

        Raises ClusterError: it cannot be had now. A pod without PodMetrics is asked for again in its turn.
        """
        for pod in self._book.pods.next(PODS_PER_ROUND):
            try:
                found = await self._lists.get(pod.metrics_path, timeout_s=_POD_TIMEOUT_S)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                continue
            usage = usage_from_metrics(found)
            if usage is not None:
                self._book.take_pod_usage(pod, usage)

    async def _follow_metrics(self) -> None:
        while True:
            if self._may_collect():
                try:
                    await self.take_metrics()
                    await self.take_pod_metrics()
                    self._metrics.count_fetch("usage", "ok")
                except (ClusterError, msgspec.DecodeError) as error:
                    # 404: nobody serves metrics.k8s.io; 503: who serves it is away.
                    is_absent = isinstance(error, ApiError) and error.is_not_found
                    self._metrics.count_fetch("usage", "absent" if is_absent else "failed")
            await asyncio.sleep(METRICS_INTERVAL_S)

    async def _ask_model(self, slot: Slot) -> None:
        job = slot.job
        terms = self._book.terms_of(job.node)
        if terms is not None:
            slot.term = await self._asker.power_term(terms, job.namespace)
        question = self._book.question(job.node, slot.term, now_s=self._wall_clock())
        if self._book.is_answered(job.node, question, now_s=self._wall_clock()):
            return
        curve = await self._asker.curve(question, slot.term, job.namespace)
        self._book.take_curve(job, question, curve, now_s=self._wall_clock())

    def _hurry(self, node: str) -> None:
        """Have the model asked again soon, if what was read makes it another question."""
        slot = self._slots.get((node, Source.MODEL))
        if slot is None or slot.is_busy or slot.is_failing:
            return
        now_s = self._wall_clock()
        try:
            question = self._book.question(node, slot.term, now_s=now_s)
        except UnaskableError:
            # Not asked yet where its model is, or a reading is missing still: the job finds out.
            question = None
        if question is None or not self._book.is_answered(node, question, now_s=now_s):
            slot.due_s = self._clock()

    def _new_backoff(self) -> Backoff:
        return Backoff(
            first_s=_FIRST_PAUSE_S, cap_s=_LONGEST_PAUSE_S, rng=self._rng, clock=self._clock
        )
