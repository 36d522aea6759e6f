"""The IO drivers of simulated nodes, and the judge of what was placed there.

One driver per node plays the reference driver's rules: it publishes the node's disks, and whenever
the list of reserved pods in its NodeDiskIOStats got a new generation it charges every pod of the list
with what the pod's annotation takes, and writes what is left, below zero if need be, together with
the generation that it answers. A uid that it cannot find takes the default. All drivers share one
watch of the reports and one of the pods; otherwise they know nothing of each other.

    NodeDiskIOStats.spec.reservedPods --watch--> driver --lag--> status of the same object
    pods --watch--> books: what is used now, and what was ever over

The judge does not look at reports or annotations of Berthmaster's: `judge` lists the pods afresh and
adds up, `overflows` is what the pod watch showed at any moment. Unlike the reference driver, one
here survives malformed annotations (they take the default), and takes a report that was deleted
and made anew for a new one. All amounts are bytes per second, all times seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import ApiError, Client, ClusterError, PatchKind, read_items
from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.world.disk_books import (
    BEST_EFFORT,
    DEFAULT_DISK_TYPE,
    FAKE_DISKS,
    NOTHING,
    PLAIN,
    Amount,
    Books,
    DiskFunction,
    Overflow,
    PodView,
    SimulatedDisk,
    decode_pod,
    measure_leniently,
)
from berthmaster_sandbox.world.listing import EventsInOrder
from berthmaster_sandbox.world.living import Work, World

logger = logging.getLogger(__name__)

API = "/apis/diskio.x-k8s.io/v1alpha1"
PODS = "/api/v1/pods"
NAMESPACE = "ioi-system"
# The reference driver looks at its numbers again so often.
PERIOD_S = 5.0
# A reserved pod is stored before it is reserved; our watch shows it at the latest after this.
POD_PATIENCE_S = 2.0
# What an emulated burst takes every other period.
BURST = BEST_EFFORT

Status = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverHabits:
    """How one driver behaves.

    `lag_s` passes between working out an answer and writing it, so that it may be old by then.
    `keeps_silent_when_equal` is upstream's defect D13: the observed generation is not written when the
    numbers are those of the last report. `distort` gets the status about to be written and returns
    what is written instead (None removes a field, as in a merge patch).
    """

    lag_s: float = 0.0
    has_bursts: bool = False
    period_s: float = PERIOD_S
    keeps_silent_when_equal: bool = False
    distort: Callable[[Status], Status] | None = None


class _StatsMeta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""


class _StatsSpec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    reserved_pods: list[str] | None = None


class _Stats(msgspec.Struct, frozen=True):
    metadata: _StatsMeta
    spec: _StatsSpec = _StatsSpec()


_STATS = msgspec.json.Decoder(_Stats)


class DiskWorld(World):
    """Simulated disks of simulated nodes; `async with` starts its watches and stops everything.

    `functions` are the disk models by `<vendor>-<model>`; unknown ones count 1:1. Pods of the
    `uncounted` namespaces take nothing.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str = NAMESPACE,
        functions: Mapping[str, DiskFunction] | None = None,
        uncounted: tuple[str, ...] = (),
        pod_patience_s: float = POD_PATIENCE_S,
    ) -> None:
        super().__init__()
        self._client = client
        self._stats_path = f"{API}/namespaces/{namespace}/nodediskiostats"
        self._devices_path = f"{API}/namespaces/{namespace}/nodediskdevices"
        self._functions = dict(functions or {})
        self._uncounted = uncounted
        self._pod_patience_s = pod_patience_s
        self._disks: dict[str, dict[str, SimulatedDisk]] = {}
        self._habits: dict[str, DriverHabits] = {}
        self._drivers: dict[str, _Driver] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._books = Books(self._functions, uncounted=uncounted)
        self._stats_of: dict[str, _Stats] = {}
        self._pod_event = asyncio.Event()
        self._answered = asyncio.Event()
        # Status writes so far, of all drivers.
        self.reports = 0
        pods = EventsInOrder(self._see_pod, key=lambda pod: pod.uid)
        self._pods = pods.informer = Informer(
            client,
            PODS,
            decode=decode_pod,
            key=lambda pod: pod.uid,
            version=lambda pod: pod.version,
            on_event=pods.take,
            on_sync=pods.flush,
        )
        self._stats = Informer(
            client,
            self._stats_path,
            decode=_STATS.decode,
            key=lambda stats: stats.metadata.name,
            version=lambda stats: stats.metadata.resource_version,
            on_event=self._see_stats,
        )

    def _informers(self) -> Sequence[Informer[Any]]:
        return (self._pods, self._stats)

    def _others(self) -> Iterable[Work]:
        return ()

    def _stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._drivers.clear()

    # Nodes and drivers.

    async def add_node(
        self,
        node: str,
        *,
        devices: Mapping[str, SimulatedDisk] | None = None,
        habits: DriverHabits | None = None,
    ) -> None:
        """Give a node disks, by default the reference driver's fake one, and start its driver.

        For a known node this changes its disks. Raises ClusterError when they cannot be published.
        """
        self._disks[node] = dict(FAKE_DISKS if devices is None else devices)
        self._books.add_node(node, self._disks[node])
        for pod in self._pods.store.values():
            if pod.node == node:
                self._books.see(pod)
        await self._publish_disks(node)
        if habits is not None or node not in self._habits:
            self._habits[node] = habits or DriverHabits()
        if node in self._drivers:
            self._drivers[node].wake.set()
        else:
            self.start_driver(node)

    def set_habits(self, node: str, habits: DriverHabits) -> None:
        """Change how a node's driver behaves, also of one that is dead."""
        self._habits[node] = habits
        if node in self._drivers:
            self._drivers[node].wake.set()

    def start_driver(self, node: str) -> None:
        """Start a node's driver, without any memory of an earlier life; a running one goes on."""
        if node in self._tasks:
            return
        driver = _Driver(node)
        self._drivers[node] = driver
        self._tasks[node] = self._start(self._drive(driver))
        driver.wake.set()

    def stop_driver(self, node: str) -> None:
        """Kill a node's driver at once; what it published stays. A dead one stays dead."""
        task = self._tasks.pop(node, None)
        self._drivers.pop(node, None)
        if task is not None:
            task.cancel()

    # The judge.

    async def judge(self) -> list[Overflow]:
        """Count anew from the API server's pods alone and return what is over its capacity now.

        Raises ClusterError when the pods cannot be listed.
        """
        books = Books(self._functions, uncounted=self._uncounted)
        for node, disks in self._disks.items():
            books.add_node(node, disks)
        async for page in self._client.list_pages(PODS):
            for item in read_items(page):
                books.see(decode_pod(bytes(item)))
        return books.over_now()

    @property
    def overflows(self) -> tuple[Overflow, ...]:
        """Return every disk and dimension that was over at any moment the pod watch showed."""
        return tuple(self._books.overflows.values())

    def used(self, node: str) -> Amount:
        """Return what bound, unfinished pods use of the node's default disk now."""
        return self._books.used(node)

    def highest(self, node: str) -> Amount:
        """Return the most that was used at any moment, per dimension."""
        return self._books.highest(node)

    async def settled(self, *, deadline_s: float = 30.0) -> None:
        """Wait until every living driver has answered the lists that the API server holds now.

        Raises `TimeoutError`, and ClusterError when the reports cannot be listed.
        """
        asked: list[_Stats] = []
        async with asyncio.timeout(deadline_s):
            async for page in self._client.list_pages(self._stats_path):
                asked.extend(_STATS.decode(item) for item in read_items(page))
            while not all(map(self._is_answered, asked)):
                await self._answered.wait()

    def _is_answered(self, stats: _Stats) -> bool:
        driver = self._drivers.get(stats.spec.node_name)
        if driver is None:
            return True
        meta = stats.metadata
        is_handled = driver.report_uid == meta.uid and driver.handled >= meta.generation
        return is_handled and not driver.is_busy

    # What the watches show.

    def _see_pod(self, kind: EventKind, pod: PodView) -> None:
        if kind is EventKind.DELETED:
            self._books.forget(pod.uid)
        else:
            self._books.see(pod)
        self._pod_event.set()
        self._pod_event = asyncio.Event()

    def _see_stats(self, kind: EventKind, stats: _Stats) -> None:
        node = stats.spec.node_name
        if kind is EventKind.DELETED:
            self._stats_of.pop(node, None)
            return
        self._stats_of[node] = stats
        driver = self._drivers.get(node)
        if driver is not None and self._is_behind(driver):
            driver.wake.set()

    def _is_behind(self, driver: _Driver) -> bool:
        stats = self._stats_of.get(driver.node)
        if stats is None:
            return False
        meta = stats.metadata
        return meta.uid != driver.report_uid or meta.generation > driver.handled

    # What a driver does.

    async def _drive(self, driver: _Driver) -> None:
        backoff = Backoff(first_s=0.1, cap_s=5.0)
        while True:
            driver.is_busy = driver.wake.is_set()
            self._tell_answered()
            habits = self._habits[driver.node]
            try:
                async with asyncio.timeout(habits.period_s if habits.has_bursts else None):
                    await driver.wake.wait()
            except TimeoutError:
                driver.is_bursting = not driver.is_bursting
            driver.is_busy = True
            driver.wake.clear()
            try:
                await self._answer(driver, self._habits[driver.node])
            except ClusterError as error:
                logger.warning(
                    "driver cannot report", extra={"node": driver.node, "error": str(error)}
                )
                await asyncio.sleep(backoff.next_s())
                driver.wake.set()

    def _tell_answered(self) -> None:
        self._answered.set()
        self._answered = asyncio.Event()

    async def _answer(self, driver: _Driver, habits: DriverHabits) -> None:
        stats = self._stats_of.get(driver.node)
        if stats is None:
            return
        if stats.metadata.uid != driver.report_uid:
            driver.start_over(stats.metadata.uid)
        if stats.metadata.generation > driver.handled:
            await self._charge(driver, stats.spec.reserved_pods or [])
            driver.handled = stats.metadata.generation
        allocable = self._allocable(driver)
        is_equal = allocable == driver.published
        if is_equal and (habits.keeps_silent_when_equal or driver.answered == driver.handled):
            return
        status_generation = driver.handled
        status: Status = {
            "observedGeneration": status_generation,
            "allocableBandwidth": {
                id_: {"read": str(it.read), "write": str(it.write), "total": str(it.total)}
                for id_, it in allocable.items()
            },
        }
        if habits.lag_s > 0:
            await asyncio.sleep(habits.lag_s)
        if habits.distort is not None:
            status = habits.distort(status)
        await self._write(driver, stats.metadata.name, status)
        driver.published, driver.answered = allocable, status_generation

    async def _charge(self, driver: _Driver, reserved: list[str]) -> None:
        """Take the list over: charge uids that are new, forget those that are gone."""
        listed = dict.fromkeys(reserved)
        driver.charged = {uid: it for uid, it in driver.charged.items() if uid in listed}
        fresh = [uid for uid in listed if uid not in driver.charged]
        await self._await_pods(fresh)
        for uid in fresh:
            pod = self._pods.store.get(uid)
            is_mine = pod is not None and pod.node in {"", driver.node}
            driver.charged[uid] = pod.request if pod is not None and is_mine else None

    async def _await_pods(self, uids: list[str]) -> None:
        """Wait for the watch to show pods that a list would have shown, for a while."""
        give_up_s = time.monotonic() + self._pod_patience_s
        while any(uid not in self._pods.store for uid in uids):
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await self._pod_event.wait()
            except TimeoutError:
                return

    def _allocable(self, driver: _Driver) -> dict[str, Amount]:
        disks = self._disks[driver.node]
        default = min((id_ for id_ in disks if disks[id_].type == DEFAULT_DISK_TYPE), default=None)
        allocable = {id_: disk.capacity for id_, disk in disks.items()}
        if default is None:
            return allocable
        function = self._functions.get(disks[default].key, PLAIN)
        taken = BURST if driver.is_bursting else NOTHING
        for request in driver.charged.values():
            taken = taken.plus(measure_leniently(request, function))
        allocable[default] = allocable[default].minus(taken)
        return allocable

    async def _write(self, driver: _Driver, name: str, status: Status) -> None:
        path = f"{self._stats_path}/{name}/status"
        try:
            await self._client.patch(path, {"status": status}, PatchKind.MERGE)
        except ApiError as error:
            if not error.is_not_found and not error.is_invalid:
                raise
            # Gone meanwhile, or refused as nonsense: the reference driver shrugs at both.
            logger.info("report refused", extra={"node": driver.node, "error": str(error)})
        self.reports += 1

    async def _publish_disks(self, node: str) -> None:
        name = f"{node}-nodediskdevice"
        spec = {"nodeName": node, "devices": _devices(self._disks[node])}
        body = {
            "apiVersion": "diskio.x-k8s.io/v1alpha1",
            "kind": "NodeDiskDevice",
            "metadata": {"name": name},
            "spec": spec,
        }
        try:
            await self._client.create(self._devices_path, body)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            path = f"{self._devices_path}/{name}"
            known = await self._client.get(path)
            await self._client.replace(path, {**known, "spec": spec})


@dataclass(slots=True)
class _Driver:
    """The memory of one driver's life; `charged` holds the annotation by uid."""

    node: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    report_uid: str = ""
    handled: int = 0
    answered: int = 0
    charged: dict[str, str | None] = field(default_factory=dict)
    published: dict[str, Amount] | None = None
    is_bursting: bool = False
    # Woken, or between a wake and its answer.
    is_busy: bool = True

    def start_over(self, report_uid: str) -> None:
        self.report_uid = report_uid
        self.handled = self.answered = 0
        self.charged = {}
        self.published = None


def _devices(disks: Mapping[str, SimulatedDisk]) -> dict[str, Any]:
    return {
        id_: {
            "name": id_,
            "vendor": disk.vendor,
            "model": disk.model,
            "type": disk.type,
            "capacity": {
                "read": str(disk.capacity.read),
                "write": str(disk.capacity.write),
                "total": str(disk.capacity.total),
            },
        }
        for id_, disk in disks.items()
    }
