"""Delete what a driver left behind on a Node that is gone.

NodeInventory and the NodeDiskIOStats that we create are owned by the Node, so the garbage collector
takes them. A NodeDiskDevice is the vendor's, who sets no owner, and vendors' objects are left as they
are; so is a NodeDiskIOStats that somebody else made. Both are deleted when the Node has been missing
for the grace time and the API server, asked directly, confirms it. The uid goes along as a precondition: an
object made anew in the meantime stays. Events on the objects say so, before and after: a driver may just
have the node's name wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from berthmaster.api import names
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster.cluster.stores import Deletes, Gets
from berthmaster_operator.fleet import Fleet, NodeState
from berthmaster_operator.metrics import Metrics

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0


class Store(Deletes, Gets, Protocol):
    """Name the part of `Client` that is needed here."""


def plan_wait_s(state: NodeState, *, now_s: float, grace_s: float) -> float | None:
    """Return in how many seconds the node's leftovers may go, None if there are none to go."""
    if state.node is not None or state.missing_since_s is None:
        return None
    if not state.devices and not state.stats:
        return None
    return max(0.0, state.missing_since_s + grace_s - now_s)


class Cleaner:
    """Delete leftovers; keys are node names."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        *,
        may_write: Callable[[], bool],
        events: EventRecorder,
        metrics: Metrics,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._may_write = may_write
        self._events = events
        self._metrics = metrics
        # Uids of objects whose end was announced, by node.
        self._announced: dict[str, set[str]] = {}
        self._grace_s = grace_s
        self._clock = clock

    async def reconcile(self, name: str) -> float | None:
        """Delete what may go; return in how many seconds to look again. Raises ClusterError."""
        state = self._fleet.find(name)
        wait_s = None
        if state is not None and self._fleet.is_complete and self._may_write():
            wait_s = plan_wait_s(state, now_s=self._clock(), grace_s=self._grace_s)
        if state is None or wait_s is None:
            self._announced.pop(name, None)
            return None
        if wait_s > 0:
            self._announce(state, wait_s)
            return wait_s
        if await self._exists(f"/api/v1/nodes/{name}"):
            return self._grace_s
        logger.info("deleting what a gone node left behind", extra={"node": name})
        for plural, ref in _leftovers(state):
            await self._delete(plural, ref, name)
        self._announced.pop(name, None)
        return None

    def _announce(self, state: NodeState, wait_s: float) -> None:
        announced = self._announced.setdefault(state.name, set())
        for _, ref in _leftovers(state):
            if ref.uid in announced:
                continue
            announced.add(ref.uid)
            note = (
                f'spec.nodeName: there is no Node "{state.name}"; this object is deleted in '
                f"{wait_s:.0f} s unless that Node appears, or the field is corrected"
            )
            self._events.record(ref, "NodeNotFound", note, action="Delete", type_="Warning")

    async def _exists(self, path: str) -> bool:
        try:
            await self._store.get(path, timeout_s=TIMEOUT_S)
        except ApiError as error:
            if error.is_not_found:
                return False
            raise
        return True

    async def _delete(self, plural: str, ref: ObjectRef, node: str) -> None:
        if not self._may_write():
            return
        path = f"/apis/{names.DISKIO_API_VERSION}/namespaces/{ref.namespace}/{plural}/{ref.name}"
        try:
            await self._store.delete(
                path, body={"preconditions": {"uid": ref.uid}}, timeout_s=TIMEOUT_S
            )
            self._metrics.count_write(plural, "delete")
            note = f'deleted: there has been no Node "{node}" for {self._grace_s:.0f} s'
            self._events.record(ref, "NodeNotFound", note, action="Delete")
        except ApiError as error:
            # A conflict is the precondition: another object of that name, which may stay.
            if not error.is_not_found and not error.is_conflict:
                raise


def _leftovers(state: NodeState) -> Iterator[tuple[str, ObjectRef]]:
    """Return each object that a node's driver left, with its plural."""
    for (namespace, name), device in tuple(state.devices.items()):
        yield "nodediskdevices", _ref("NodeDiskDevice", namespace, name, device.device.uid)
    for (namespace, name), stats in tuple(state.stats.items()):
        yield "nodediskiostats", _ref("NodeDiskIOStats", namespace, name, stats.stats.uid)


def _ref(kind: str, namespace: str, name: str, uid: str) -> ObjectRef:
    return ObjectRef(
        api_version=names.DISKIO_API_VERSION, kind=kind, name=name, namespace=namespace, uid=uid
    )
