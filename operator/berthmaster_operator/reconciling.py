"""Carry out the plan for one node: a few writes, each only when something moved.

The order matters. The report that a driver gave for the present list is taken into the books
before a new list is written, because that write makes the report outdated. What the API server
answers to a write is taken over at once, so that our own echo causes no second write.

One worker per node at a time (`work_queues` sees to that). Nothing is written unless `may_write`
says so, which is asked again before each write: leadership can end between two of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Protocol

import msgspec
from pydantic import ValidationError

from berthmaster.api import names
from berthmaster.api.diskio import NodeDiskDevice, stats_from_manifest, stats_name
from berthmaster.api.inventory import NodeInventoryStatus
from berthmaster.cluster.client import JsonObject, PatchKind, Query
from berthmaster.cluster.conditions import rfc3339
from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster.cluster.stores import Creates, Gets, Patches
from berthmaster.concerns.xpu.inventory import NodeDevices
from berthmaster_operator import plans
from berthmaster_operator.fleet import Fleet, NodeState
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.plans import NodeFacts, NodePlan
from berthmaster_operator.sightings import NodeSeen, decode_inventory, decode_node
from berthmaster_operator.xpus.writing import NodeXPUWriter

logger = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 10.0
MANAGED: Query = {"fieldManager": names.OPERATOR_MANAGER}
# Answers that the same write will get again.
_REFUSALS = (400, 403, 413, 422)
INVENTORIES = f"/apis/{names.API_VERSION}/nodeinventories"


class Store(Creates, Gets, Patches, Protocol):
    """Name the part of `Client` that is needed here."""


class NodeReconciler:
    """Bring what is stored for a node in line with what is known of it."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        *,
        may_write: Callable[[], bool],
        events: EventRecorder,
        metrics: Metrics,
        inventory_pause_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._may_write = may_write
        self._events = events
        self._metrics = metrics
        self._inventory_pause_s = inventory_pause_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._xpus = NodeXPUWriter(
            store, fleet, events=events, metrics=metrics, pause_s=inventory_pause_s, clock=clock
        )

    async def reconcile(self, name: str) -> float | None:
        """Do what the node needs; return in how many seconds to look again, None for never.

        Raises ClusterError: nothing is lost, the caller repeats.
        """
        state = self._fleet.find(name)
        if state is None or not self._fleet.is_complete or not self._may_write():
            self._metrics.forget_node(name)
            return None
        if state.node is None:
            self._metrics.forget_node(name)
            return None
        plan = plans.plan_node(self._facts(state), now=rfc3339(self._wall_clock()))
        state.computed, state.rises, state.is_stale = plan.computed, plan.rises, plan.is_stale
        state.unreflected, state.load = plan.unreflected, plan.load
        self._account(state, plan)
        self._tell(state, plan.problems)
        waits_s = [plan.look_again_s]
        failures: list[ClusterError] = []
        for write in self._writes(state, plan):
            if not self._may_write():
                break
            try:
                waits_s.append(await write())
            except ClusterError as error:
                # Whatever is wrong with one object, readers need the others all the same.
                failures.append(error)
                if isinstance(error, ApiError) and error.status == HTTPStatus.TOO_MANY_REQUESTS:
                    break
        if failures:
            raise failures[0]
        return min((it for it in waits_s if it is not None), default=None)

    def _writes(
        self, state: NodeState, plan: NodePlan
    ) -> Iterator[Callable[[], Awaitable[float | None]]]:
        """Yield what is to be written; each returns in how many seconds to look again, None for never."""
        if plan.reserved is not None:
            yield partial(self._write_reserved, state, plan.reserved)
        if plan.status is not None:
            yield partial(self._write_inventory, state, plan.status)
        if plan.node_conditions or plan.dropped_conditions:
            yield partial(self._write_node_conditions, state, plan)
        if plan.advertised is not None:
            yield partial(self._xpus.advertise, state, plan.advertised)
        yield partial(self._xpus.write, state, plan.node_xpu)

    def _facts(self, state: NodeState) -> NodeFacts:
        fleet = self._fleet
        seen = fleet.stats_of(state)
        if state.published is None and state.inventory is not None:
            state.published = _read_status(state.inventory.status)
        # What was published for an older machine of this name says nothing of the present one.
        is_other = _is_of_other_node(state)
        published = None if is_other else state.published
        power, power_lasts_s = fleet.power.build(
            state.name,
            now_s=self._wall_clock().timestamp(),
            previous=published.power if published is not None else None,
        )
        return NodeFacts(
            name=state.name,
            node_conditions=state.node.conditions if state.node is not None else {},
            device=fleet.device_of(state),
            stats=seen.stats if seen is not None else None,
            silence_s=self._clock() - seen.alive_s if seen is not None else 0.0,
            pods=state.pods,
            failures=state.failures,
            white_list=fleet.white_list,
            models=fleet.models,
            stale_after_s=fleet.stale_after_s,
            stale_safety_percent=fleet.stale_safety_percent,
            rises=state.rises,
            now_s=self._clock(),
            computed=state.computed,
            published=published,
            topology=state.topology.topology if state.topology is not None else None,
            topology_stale_after_s=fleet.topology_stale_after_s,
            unreflected=state.unreflected,
            datasets=fleet.datasets.here(state.name),
            dataset_condition=fleet.datasets.judge(state.name),
            load=state.load,
            overload=fleet.overload,
            cpu_load=fleet.power.cpu_load(state.name, self._wall_clock().timestamp()),
            wall_s=self._wall_clock().timestamp(),
            devices=_devices_of(state.node) if state.node is not None else None,
            node_xpu=state.node_xpu.node_xpu if state.node_xpu is not None else None,
            node_xpu_status=state.node_xpu.status if state.node_xpu is not None else {},
            unhealthy=fleet.unhealthy_of(state.name),
            xpu_names=fleet.xpu_names,
            xpu_stale_after_s=fleet.xpu_stale_after_s,
            xpu_assign_timeout_s=fleet.xpu_assign_timeout_s,
            xpus=state.xpus,
            power=power,
            power_lasts_s=power_lasts_s,
        )

    def _pause_s(self, state: NodeState) -> float:
        if state.published_s is None:
            return 0.0
        return state.published_s + self._inventory_pause_s - self._clock()

    async def _write_reserved(self, state: NodeState, reserved: tuple[str, ...]) -> None:
        try:
            await self._store_reserved(state, reserved)
        except ApiError as error:
            self._tell_unreserved(state, error)
            raise

    async def _store_reserved(self, state: NodeState, reserved: tuple[str, ...]) -> None:
        device, seen, node = self._fleet.device_of(state), self._fleet.stats_of(state), state.node
        if device is None or node is None:
            return
        collection = (
            f"/apis/{names.DISKIO_API_VERSION}/namespaces/{device.namespace}/nodediskiostats"
        )
        path = f"{collection}/{stats_name(state.name)}"
        try:
            if seen is None:
                manifest = plans.stats_manifest(state.name, device.namespace, node.uid, reserved)
                stored = await self._store.create(
                    collection, manifest, MANAGED, timeout_s=WRITE_TIMEOUT_S
                )
                self._metrics.count_write("NodeDiskIOStats", "create")
            else:
                patch = {
                    "metadata": {"uid": seen.stats.uid},
                    "spec": {"reservedPods": list(reserved)},
                }
                stored = await self._store.patch(
                    path, patch, PatchKind.MERGE, MANAGED, timeout_s=WRITE_TIMEOUT_S
                )
                self._metrics.count_write("NodeDiskIOStats", "patch")
        except ApiError as error:
            if error.is_already_exists:
                # Made by somebody whose event has not come yet: its own list is compared next.
                stored = await self._store.get(path, timeout_s=WRITE_TIMEOUT_S)
                self._take_stats(stored, state)
                raise
            if error.is_not_found and seen is not None:
                self._fleet.lose_stats(device.namespace, seen.stats.name)
            raise
        self._take_stats(stored, state)

    def _take_stats(self, stored: JsonObject, state: NodeState) -> None:
        stats = stats_from_manifest(stored)
        self._fleet.see_stats(stats, stored.get("metadata", {}).get("resourceVersion", ""))
        if stats.node_name != state.name:
            ref = ObjectRef(
                api_version=names.DISKIO_API_VERSION,
                kind="NodeDiskIOStats",
                name=stats.name,
                namespace=stats.namespace,
                uid=stats.uid,
            )
            note = (
                f'spec.nodeName: found "{stats.node_name}", expected "{state.name}" by the object\'s '
                "name; delete the object, it is made anew"
            )
            self._events.record(ref, "BadField", note, action="Reserve", type_="Warning")

    async def _write_inventory(self, state: NodeState, status: NodeInventoryStatus) -> float | None:
        """Write the status, or return in how many seconds that may be done again."""
        pause_s = self._pause_s(state)
        if pause_s > 0:
            return pause_s
        node = state.node
        if node is None:
            return None
        if _is_of_other_node(state):
            # It belongs to a machine that is gone and goes with it; ours comes after.
            raise ApiError(409, "Conflict", f"NodeInventory {state.name} is of an older Node")
        path = f"{INVENTORIES}/{state.name}"
        if state.inventory is None:
            await self._create_inventory(state, node.uid)
        if state.inventory is None:
            return None
        patch = plans.status_patch(status, uid=state.inventory.uid)
        try:
            stored = await self._store.patch(
                f"{path}/status", patch, PatchKind.MERGE, MANAGED, timeout_s=WRITE_TIMEOUT_S
            )
        except ApiError as error:
            if error.is_not_found:
                self._fleet.lose_inventory(state.name, state.inventory.uid)
            raise
        self._metrics.count_write("NodeInventory", "patch")
        state.inventory = decode_inventory(msgspec.json.encode(stored))
        state.published = status
        state.published_s = self._clock()
        return None

    async def _create_inventory(self, state: NodeState, node_uid: str) -> None:
        manifest = plans.inventory_manifest(state.name, node_uid)
        try:
            stored = await self._store.create(
                INVENTORIES, manifest, MANAGED, timeout_s=WRITE_TIMEOUT_S
            )
            self._metrics.count_write("NodeInventory", "create")
        except ApiError as error:
            if not error.is_already_exists:
                raise
            stored = await self._store.get(f"{INVENTORIES}/{state.name}", timeout_s=WRITE_TIMEOUT_S)
        self._fleet.see_inventory(decode_inventory(msgspec.json.encode(stored)))

    async def _write_node_conditions(self, state: NodeState, plan: NodePlan) -> None:
        node = state.node
        if node is None:
            return
        patch = plans.node_conditions_patch(
            plan.node_conditions,
            plan.dropped_conditions,
            node.conditions,
            uid=node.uid,
            now=rfc3339(self._wall_clock()),
        )
        try:
            stored = await self._store.patch(
                f"/api/v1/nodes/{state.name}/status",
                patch,
                PatchKind.STRATEGIC,
                MANAGED,
                timeout_s=WRITE_TIMEOUT_S,
            )
        except ApiError as error:
            if error.is_not_found:
                # The Node is gone; the watch says so soon, and there is nobody to tell.
                return
            raise
        self._metrics.count_write("Node", "patch")
        self._fleet.see_node(decode_node(msgspec.json.encode(stored)))

    def _account(self, state: NodeState, plan: NodePlan) -> None:
        seen = self._fleet.stats_of(state)
        lag = 0
        if seen is not None and seen.stats.observed_generation is not None:
            lag = abs(seen.stats.generation - seen.stats.observed_generation)
        self._metrics.account_node(
            state.name,
            is_stale=plan.is_stale,
            lag=lag,
            unknown_devices=plan.unknown_devices,
            ignored_report=(seen.stats.uid, seen.alive_s)
            if plan.is_report_ignored and seen is not None
            else None,
        )

    def _tell(self, state: NodeState, problems: tuple[str, ...]) -> None:
        """Record an Event on the NodeDiskDevice for each fault that was not told before."""
        device = self._fleet.device_of(state)
        if device is not None:
            ref = device_ref(device)
            for problem in problems:
                if problem not in state.told:
                    self._events.record(
                        ref, "DiskIONotReady", problem, action="ReadDevice", type_="Warning"
                    )
        state.told = problems

    def _tell_unreserved(self, state: NodeState, failure: ApiError) -> None:
        """Record an Event when the list of pods is refused; what only fails is repeated in silence."""
        device = self._fleet.device_of(state)
        if device is None or failure.status not in _REFUSALS:
            return
        note = (
            f"the reserved pods cannot be written to {stats_name(state.name)}: {failure}; the "
            "driver's reports do not count them, our own books do"
        )
        self._events.record(
            device_ref(device), "ReserveFailed", note, action="Reserve", type_="Warning"
        )


def device_ref(device: NodeDiskDevice) -> ObjectRef:
    """Return what names a NodeDiskDevice in an Event."""
    return ObjectRef(
        api_version=names.DISKIO_API_VERSION,
        kind="NodeDiskDevice",
        name=device.name,
        namespace=device.namespace,
        uid=device.uid,
    )


def _devices_of(node: NodeSeen) -> NodeDevices:
    return NodeDevices(
        name=node.name,
        capacity=node.capacity,
        allocatable=node.allocatable,
        annotations=node.annotations,
    )


def _is_of_other_node(state: NodeState) -> bool:
    if state.node is None or state.inventory is None:
        return False
    return state.inventory.owner_uid not in ("", state.node.uid)


def _read_status(raw: bytes) -> NodeInventoryStatus:
    try:
        return NodeInventoryStatus.model_validate(msgspec.json.decode(raw))
    except (ValidationError, msgspec.DecodeError):
        # Written by a newer or a careless hand: what we compute replaces it.
        logger.warning("stored inventory cannot be read, it is written anew")
        return NodeInventoryStatus()
