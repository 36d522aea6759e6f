"""The NodeXPU of a node, and what its Node must advertise: from what is known, to what to write. Pure.

An agent's or an administrator's NodeXPU is read, and of its status only what pods have is ours. Where
nobody writes one for a node with devices, it is ours as a whole but for people's wishes: `topology`, and
`cordoned` of each device, which stay when devices change. The status is a picture for people; decisions
are made from the pods themselves, as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from berthmaster.api import names as keys
from berthmaster.api.inventory import XPU
from berthmaster.api.names import SLICE_DIALECT
from berthmaster.api.node_xpus import (
    NodeXPU,
    NodeXPUDeviceStatus,
    XPUAllocation,
    XPUPending,
    XPUTotals,
)
from berthmaster.api.objects import Resources
from berthmaster.api.schema import StatusCondition
from berthmaster.api.xpu_names import XPUNames
from berthmaster.cluster.conditions import rfc3339
from berthmaster.concerns.xpu.holdings import Held, XPUHolding, list_devices, resolve
from berthmaster.concerns.xpu.inventory import XPUInventory
from berthmaster_operator.transitions import keep_times

Phase = Literal["Reserved", "Bound", "Assigned", "Releasing"]
# What is ours in an entry of `status.devices`; an agent writes the rest of it.
_OUR_FIELDS = ("index", "allocatedMiB", "sliceMiB", "allocations")
_OUR_PARTS = ("totals", "pending", "conditions", "observedGeneration")
_MOST_ALLOCATIONS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class XPUPod:
    """A pod that is on a node or sent there, with what it says of devices."""

    uid: str
    namespace: str
    name: str
    holding: XPUHolding
    is_bound: bool
    is_leaving: bool
    created_s: float | None = None
    # Seconds since the epoch, None where nobody says it.
    bound_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigning:
    """How long a bound pod may wait for its device plugin, and the time now, in seconds since the epoch."""

    timeout_s: float = 300.0
    wall_s: float = 0.0

    def left_s(self, pod: XPUPod) -> float | None:
        """Return for how long a pod may go on waiting; None where nobody knows since when it does."""
        return None if pod.bound_s is None else pod.bound_s + self.timeout_s - self.wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeXPUPlan:
    """What to write, None for what stands; `look_again_s` is when a pod will have waited too long.

    Uids of pods to tell of: `missing` have no known device, `overcommitted` share one that is past its
    memory, `unserved` were bound long ago and their device plugin has handed out nothing.
    """

    spec: dict[str, Any] | None = None
    status: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()
    overcommitted: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()
    look_again_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A pod with what it has of the node."""

    pod: XPUPod
    held: Held

    @property
    def phase(self) -> Phase:
        """Return how far the pod is."""
        if self.pod.is_leaving:
            return "Releasing"
        if not self.pod.is_bound:
            return "Reserved"
        return "Bound" if self.held.waits_for is not None else "Assigned"


def silence_left_s(node_xpu: NodeXPU | None, stale_after_s: float, wall_s: float) -> float | None:
    """Return for how long an agent's heartbeat still counts, not above 0 when it is stale.

    None where nobody promises a heartbeat.
    """
    if node_xpu is None or node_xpu.status.heartbeat_time is None:
        return None
    try:
        beaten = datetime.fromisoformat(node_xpu.status.heartbeat_time)
        return beaten.timestamp() + stale_after_s - wall_s
    except (ValueError, OverflowError):
        return 0.0


def plan_node_xpu(
    node: str,
    found: XPUInventory,
    node_xpu: NodeXPU | None,
    stored_status: Mapping[str, Any],
    pods: Iterable[XPUPod],
    names: XPUNames,
    *,
    now: str,
    assigning: Assigning = Assigning(),
) -> NodeXPUPlan:
    """Return what to write to the NodeXPU of a node; `stored_status` is its status as JSON."""
    xpus = found.xpus
    if xpus is None or found.xpu is None:
        return NodeXPUPlan()
    is_ours = node_xpu is None or node_xpu.spec.source != "Agent"
    spec = _plan_spec(found.xpu.source, xpus, node_xpu) if is_ours else None
    devices = list_devices(node, xpus)
    taken = [_Taken(pod=it, held=resolve(it.holding, names, devices)) for it in pods]
    taken.sort(key=lambda it: (it.pod.namespace, it.pod.name, it.pod.uid))
    used = _used(taken)
    over = [it.index for it in xpus if used.get(it.index, 0) > it.memory_mib]
    missing = [it for it in taken if it.held.pending_mib and it.pod.is_bound]
    conditions = keep_times(
        _conditions(found, over, missing), _stored_conditions(stored_status), now=now
    )
    generation = node_xpu.generation if node_xpu is not None else 1
    status = {
        "observedGeneration": generation if spec is None or node_xpu is None else generation + 1,
        "totals": _totals(xpus, used, missing).to_wire(),
        "devices": [
            it.to_wire() if is_ours else _only(it.to_wire(), _OUR_FIELDS)
            for it in _device_statuses(xpus, taken, used)
        ],
        "pending": [
            XPUPending(
                pod_uid=it.pod.uid,
                namespace=it.pod.namespace,
                name=it.pod.name,
                memory_mib=it.held.pending_mib,
            ).to_wire()
            for it in missing[:_MOST_ALLOCATIONS]
        ],
        "conditions": [it.to_wire() for it in conditions],
    }
    waits_s = {
        it.pod.uid: left_s
        for it in taken
        if it.phase == "Bound" and (left_s := assigning.left_s(it.pod)) is not None
    }
    is_news = _essence(status) != _essence(_ours(stored_status, is_ours=is_ours))
    return NodeXPUPlan(
        spec=spec,
        status=status if is_news else None,
        missing=tuple(it.pod.uid for it in missing),
        overcommitted=tuple(
            it.pod.uid for it in taken if any(index in over for index, _ in it.held.mib)
        ),
        unserved=tuple(uid for uid, left_s in waits_s.items() if left_s <= 0),
        look_again_s=min((it for it in waits_s.values() if it > 0), default=None),
    )


def plan_advertised(
    found: XPUInventory, capacity: Resources, names: XPUNames
) -> dict[str, str] | None:
    """Return what to put into the Node's capacity, None for nothing.

    HAMi's plugin advertises cards, not their memory, and its scheduler has kube-scheduler look away
    from it. Without that scheduler nobody would: a pod that names memory would never be bound.
    """
    registered = [it for it in found.xpus or () if it.registered_id]
    if not registered:
        return None
    value = str(sum(it.memory_mib for it in registered))
    return (
        None if str(capacity.get(names.slice_memory, "")) == value else {names.slice_memory: value}
    )


def node_xpu_manifest(node: str, uid: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the NodeXPU to create, owned by its Node."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    return {
        "apiVersion": keys.API_VERSION,
        "kind": "NodeXPU",
        "metadata": {"name": node, "ownerReferences": [owner]},
        "spec": dict(spec),
    }


def status_apply(node: str, uid: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to apply to `/status`; the uid makes the API server refuse another object."""
    return {
        "apiVersion": keys.API_VERSION,
        "kind": "NodeXPU",
        "metadata": {"name": node, "uid": uid},
        "status": dict(status),
    }


def _plan_spec(
    source: str, xpus: tuple[XPU, ...], node_xpu: NodeXPU | None
) -> dict[str, Any] | None:
    wishes = {it.index: it.cordoned for it in node_xpu.spec.devices} if node_xpu is not None else {}
    devices = [
        {
            "index": it.index,
            "id": it.id,
            "model": it.model,
            "memoryMiB": max(it.memory_mib, 1),
            "numaNode": it.numa_node,
            "cordoned": wishes.get(it.index, False),
        }
        for it in xpus
    ]
    if node_xpu is None:
        return {"source": source, "devices": devices}
    stored = [
        _only(it.to_wire(), ("index", "id", "model", "memoryMiB", "numaNode", "cordoned"))
        for it in node_xpu.spec.devices
    ]
    if (node_xpu.spec.source, stored) == (source, devices):
        return None
    return {"source": source, "devices": devices}


def _used(taken: Iterable[_Taken]) -> dict[int, int]:
    used: dict[int, int] = {}
    for it in taken:
        for index, mib in it.held.mib:
            used[index] = used.get(index, 0) + mib
    return used


def _device_statuses(
    xpus: tuple[XPU, ...], taken: list[_Taken], used: Mapping[int, int]
) -> Iterator[NodeXPUDeviceStatus]:
    for xpu in xpus:
        here = [(it, mib) for it in taken for index, mib in it.held.mib if index == xpu.index]
        slices = [(it, mib) for it, mib in here if it.held.dialect == SLICE_DIALECT]
        entries = sum(
            count for it, _ in slices for index, count in it.held.entries if index == xpu.index
        )
        yield NodeXPUDeviceStatus(
            index=xpu.index,
            health="Healthy" if xpu.healthy else "Unhealthy",
            allocated_mib=used.get(xpu.index, 0),
            slice_mib=sum(mib for _, mib in slices) // entries if entries else None,
            allocations=tuple(
                XPUAllocation(
                    pod_uid=it.pod.uid,
                    namespace=it.pod.namespace,
                    name=it.pod.name,
                    memory_mib=mib,
                    dialect=it.held.dialect,
                    phase=it.phase,
                    since=_time(it.pod.created_s),
                )
                for it, mib in here[:_MOST_ALLOCATIONS]
            ),
        )


def _totals(xpus: tuple[XPU, ...], used: Mapping[int, int], missing: Iterable[_Taken]) -> XPUTotals:
    free = {it.index: max(0, it.memory_mib - used.get(it.index, 0)) for it in xpus if it.healthy}
    open_ = [free[it.index] for it in xpus if it.healthy and not it.cordoned]
    return XPUTotals(
        devices=len(xpus),
        healthy=len(free),
        memory_mib=sum(it.memory_mib for it in xpus),
        allocated_mib=sum(used.values()),
        free_mib=sum(free.values()),
        largest_free_mib=max(open_, default=0),
        pending_mib=sum(it.held.pending_mib for it in missing),
    )


def _conditions(
    found: XPUInventory, over: list[int], missing: list[_Taken]
) -> Iterator[StatusCondition]:
    ready = found.condition
    reason = ready.reason if ready is not None else "Unknown"
    message = ready.message if ready is not None else ""
    yield _condition("Ready", ready is not None and ready.status == "True", reason, message)
    yield _condition("Stale", reason == "Stale", reason)
    is_mismatch = reason == "InventoryMismatch"
    yield _condition("InventoryMismatch", is_mismatch, reason, message if is_mismatch else "")
    words = f"pods have more of device {', '.join(map(str, over))} than there is" if over else ""
    if not over and missing and found.xpus == ():
        words = "pods ask for devices and there are none"
    yield _condition("OverCommitted", bool(words), "MoreThanThereIs" if words else "Enough", words)


def _condition(type_: str, holds: bool, reason: str, message: str = "") -> StatusCondition:
    status: Literal["True", "False"] = "True" if holds else "False"
    return StatusCondition(type=type_, status=status, reason=reason, message=message)


def _stored_conditions(stored: Mapping[str, Any]) -> Iterator[StatusCondition]:
    """Yield the conditions that stand there; what cannot be read is written anew."""
    for it in stored.get("conditions") or ():
        try:
            yield StatusCondition.model_validate(it)
        except ValidationError:
            continue


def _ours(stored: Mapping[str, Any], *, is_ours: bool) -> dict[str, Any]:
    """Return of a stored status what we would write."""
    fields = (*_OUR_FIELDS, "health") if is_ours else _OUR_FIELDS
    devices = [_only(it, fields) for it in stored.get("devices") or () if isinstance(it, dict)]
    return {**_only(stored, _OUR_PARTS), "devices": devices}


def _essence(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a status says, without times and fields that say nothing."""
    conditions = [
        {key: value for key, value in it.items() if key != "lastTransitionTime"}
        for it in status.get("conditions") or ()
    ]
    devices = [
        {key: value for key, value in it.items() if value not in ("", [], None)}
        for it in status.get("devices") or ()
    ]
    pending = status.get("pending") or []
    rest = {"totals": status.get("totals"), "observedGeneration": status.get("observedGeneration")}
    return {**rest, "conditions": conditions, "devices": devices, "pending": pending}


def _only(found: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {key: found[key] for key in fields if key in found}


def _time(created_s: float | None) -> str | None:
    return None if created_s is None else rfc3339(datetime.fromtimestamp(created_s, UTC))
