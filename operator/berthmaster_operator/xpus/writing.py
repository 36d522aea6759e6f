"""Carry out the plan for a node's NodeXPU and for what its Node advertises; tell of pods that miss theirs.

Each is written only when it says something else, and the NodeXPU's status a pause after that, at most once per
pause: it is a picture for people, and a burst of pods, or a pod and its plugin's answer, is one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from berthmaster.api import names
from berthmaster.cluster.client import JsonObject, PatchKind, Query
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster.cluster.stores import Creates, Gets, Patches
from berthmaster_operator.fleet import Fleet, NodeState
from berthmaster_operator.handlers import node_xpus
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.sightings import decode_node
from berthmaster_operator.xpus import planning
from berthmaster_operator.xpus.planning import NodeXPUPlan

WRITE_TIMEOUT_S = 10.0
MANAGED: Query = {"fieldManager": names.OPERATOR_MANAGER}
_APPLY: Query = {**MANAGED, "force": True}


class Store(Creates, Gets, Patches, Protocol):
    """Name the part of `Client` that is needed here."""


class NodeXPUWriter:
    """Bring the NodeXPU of a node in line with what is known of it."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        *,
        events: EventRecorder,
        metrics: Metrics,
        pause_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._events = events
        self._metrics = metrics
        self._pause_s = pause_s
        self._clock = clock

    async def write(self, state: NodeState, plan: NodeXPUPlan) -> float | None:
        """Write what the plan says; return in how many seconds to look again.

        Raises ClusterError: nothing is lost, the caller repeats.
        """
        self._tell(state, plan)
        waits_s = (await self._write(state, plan), plan.look_again_s)
        return min((it for it in waits_s if it is not None), default=None)

    async def _write(self, state: NodeState, plan: NodeXPUPlan) -> float | None:
        if plan.spec is not None:
            await self._write_spec(state, plan.spec)
        if plan.status is None or state.node_xpu is None:
            state.node_xpu_due_s = None
            return None
        if state.node_xpu_due_s is None:
            pause_s = self._pause_s if state.node_xpu.status else 0.0
            state.node_xpu_due_s = self._clock() + pause_s
        left_s = state.node_xpu_due_s - self._clock()
        if left_s > 0:
            return left_s
        seen = state.node_xpu.node_xpu
        body = planning.status_apply(state.name, seen.uid, plan.status)
        try:
            stored = await self._store.patch(
                f"{node_xpus.PATH}/{state.name}/status",
                body,
                PatchKind.APPLY,
                _APPLY,
                timeout_s=WRITE_TIMEOUT_S,
            )
        except ApiError as error:
            if error.is_not_found:
                self._fleet.lose_node_xpu(state.name, seen.uid)
            raise
        state.node_xpu_due_s = None
        self._metrics.count_write("NodeXPU", "patch")
        node_xpus.take(self._fleet, stored)
        return None

    async def advertise(self, state: NodeState, amounts: Mapping[str, str]) -> None:
        """Put amounts into the Node's capacity; a kubelet takes them over into allocatable."""
        node = state.node
        if node is None:
            return
        body = {
            "metadata": {"uid": node.uid},
            "status": {"capacity": dict(amounts), "allocatable": dict(amounts)},
        }
        stored = await self._store.patch(
            f"/api/v1/nodes/{state.name}/status",
            body,
            PatchKind.MERGE,
            MANAGED,
            timeout_s=WRITE_TIMEOUT_S,
        )
        self._metrics.count_write("Node", "patch")
        self._fleet.see_node(decode_node(msgspec.json.encode(stored)))

    async def _write_spec(self, state: NodeState, spec: Mapping[str, object]) -> None:
        node, seen = state.node, state.node_xpu
        if node is None:
            return
        stored: JsonObject
        if seen is None:
            manifest = planning.node_xpu_manifest(state.name, node.uid, spec)
            try:
                stored = await self._store.create(
                    node_xpus.PATH, manifest, MANAGED, timeout_s=WRITE_TIMEOUT_S
                )
                self._metrics.count_write("NodeXPU", "create")
            except ApiError as error:
                if not error.is_already_exists:
                    raise
                # An agent was faster; what it says is looked at next.
                stored = await self._store.get(
                    f"{node_xpus.PATH}/{state.name}", timeout_s=WRITE_TIMEOUT_S
                )
        else:
            # The version, so that a wish of somebody in this moment is not lost.
            metadata = {"uid": seen.node_xpu.uid, "resourceVersion": seen.version}
            stored = await self._store.patch(
                f"{node_xpus.PATH}/{state.name}",
                {"metadata": metadata, "spec": dict(spec)},
                PatchKind.MERGE,
                MANAGED,
                timeout_s=WRITE_TIMEOUT_S,
            )
            self._metrics.count_write("NodeXPU", "patch")
        node_xpus.take(self._fleet, stored)

    def _tell(self, state: NodeState, plan: NodeXPUPlan) -> None:
        """Record an Event on each pod that has no known device, or shares one that is past its memory."""
        told = set()
        for uid in plan.missing:
            told.add(("missing", uid))
            note = (
                "it asks for accelerator memory and nothing says which device it has; it was bound "
                "past Berthmaster, and its device plugin may have given it none"
            )
            self._record(state, ("missing", uid), "XPUAllocationMissing", note)
        for uid in plan.unserved:
            told.add(("unserved", uid))
            note = (
                f"bound to node {state.name} and not served by its device plugin yet; it keeps its "
                "devices, and pods that the plugin could mistake for it wait: is the plugin well?"
            )
            if ("unserved", uid) not in state.told_xpus:
                self._metrics.xpu_assign_timeouts.inc()
            self._record(state, ("unserved", uid), "XPUNotAssigned", note)
        for uid in plan.overcommitted:
            told.add(("over", uid))
            note = f"pods have more of a device of node {state.name} than there is"
            self._record(state, ("over", uid), "XPUOverCommitted", note)
        state.told_xpus = frozenset(told)

    def _record(self, state: NodeState, key: tuple[str, str], reason: str, note: str) -> None:
        pod = state.pods.get(key[1])
        if pod is None or key in state.told_xpus:
            return
        ref = ObjectRef(
            api_version="v1", kind="Pod", name=pod.name, namespace=pod.namespace, uid=pod.uid
        )
        self._events.record(ref, reason, note, action="Allocate", type_="Warning")
