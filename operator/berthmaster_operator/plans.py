"""What to write for one node, given what is known of it. Pure: values in, values out.

    facts --plan_node--> NodePlan: the NodeDiskIOStats to create or the list to put into it,
                                   the NodeInventory's status, the Node's condition, faults to tell,
                                   and when to look again although nothing happened

**The list** is sorted and holds bare pod UIDs: bound here or sent here by us, not finished, not in a
white-listed namespace. Equal sets write nothing; an absent list and an empty one are equal.

**The status** is written when it says something else, with two exceptions: numbers that rise have to
last first (`settling`), and the generation of a list that nobody has answered yet is no news.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from berthmaster.api import names
from berthmaster.api.diskio import NodeDiskDevice, NodeDiskIOStats
from berthmaster.api.inventory import (
    DatasetRole,
    Disk,
    NodeDataset,
    NodeInventoryStatus,
    Sources,
)
from berthmaster.api.node_xpus import NodeXPU
from berthmaster.api.objects import Condition
from berthmaster.api.schema import Model, StatusCondition
from berthmaster.api.settings.dataset import GatewayOverload, GatewayReading
from berthmaster.api.topology import NodeResourceTopology
from berthmaster.api.xpu_names import DEFAULT_NAMES, XPUNames
from berthmaster.concerns.diskio.inventory import build_disks
from berthmaster.concerns.diskio.models import DiskModels
from berthmaster.concerns.numa.inventory import PodOnNode, TopologyInventory, build_topology
from berthmaster.concerns.power.inventory import NO_POWER, PowerInventory
from berthmaster.concerns.xpu.inventory import (
    NodeDevices,
    XPUInventory,
    build_xpus,
    read_unhealthy,
)
from berthmaster_operator.datasets.overload import Load, disk_percent, look
from berthmaster_operator.power.book import CpuLoad
from berthmaster_operator.remembering import Remembered
from berthmaster_operator.settling import Rises, settle
from berthmaster_operator.sightings import FailureSeen, PodSeen
from berthmaster_operator.transitions import keep_times
from berthmaster_operator.xpus.planning import (
    Assigning,
    NodeXPUPlan,
    plan_advertised,
    plan_node_xpu,
    silence_left_s,
)

# A kubelet that turned a pod away knew better than its topology; an unchanged one counts again after this.
DISTRUST_S = 600.0
# Our conditions: on the inventory, and the same on the Node.
ON_NODE = {
    names.DISK_IO_READY: names.DISK_IO_READY_ON_NODE,
    names.TOPOLOGY_READY: names.TOPOLOGY_READY_ON_NODE,
    names.DATASET_READY: names.DATASET_READY_ON_NODE,
    names.XPU_READY: names.XPU_READY_ON_NODE,
    names.POWER_READY: names.POWER_READY_ON_NODE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """All that the plan for one node depends on."""

    name: str
    node_conditions: Mapping[str, Condition]
    device: NodeDiskDevice | None
    stats: NodeDiskIOStats | None
    silence_s: float
    pods: Mapping[str, PodSeen]
    failures: Mapping[str, FailureSeen]
    white_list: frozenset[str]
    models: DiskModels
    stale_after_s: float
    stale_safety_percent: int
    rises: Rises
    now_s: float
    # Seconds since the epoch by our own clock.
    wall_s: float
    computed: NodeInventoryStatus | None
    published: NodeInventoryStatus | None
    topology: NodeResourceTopology | None = None
    topology_stale_after_s: float = 180.0
    # Pods that the topology does not show as they are, and since when.
    unreflected: Mapping[str, float] = field(default_factory=dict)
    datasets: tuple[NodeDataset, ...] | None = None
    dataset_condition: StatusCondition | None = None
    load: Load = field(default_factory=Load)
    overload: GatewayOverload = field(default_factory=GatewayOverload)
    cpu_load: CpuLoad | None = None
    devices: NodeDevices | None = None
    node_xpu: NodeXPU | None = None
    # The status of the NodeXPU as JSON.
    node_xpu_status: Mapping[str, Any] = field(default_factory=dict)
    unhealthy: str = ""
    xpu_names: XPUNames = DEFAULT_NAMES
    xpu_stale_after_s: float = 90.0
    xpu_assign_timeout_s: float = 300.0
    xpus: Remembered[XPUInventory] = field(default_factory=Remembered)
    power: PowerInventory = NO_POWER
    # In how many seconds something that power was made from becomes too old.
    power_lasts_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What to do. `None` in a field that says what to write: leave it as it is."""

    reserved: tuple[str, ...] | None
    computed: NodeInventoryStatus
    rises: Rises
    status: NodeInventoryStatus | None
    node_conditions: tuple[StatusCondition, ...]
    dropped_conditions: tuple[str, ...]
    unreflected: Mapping[str, float]
    load: Load
    problems: tuple[str, ...]
    look_again_s: float | None
    is_stale: bool
    is_report_ignored: bool
    unknown_devices: int
    node_xpu: NodeXPUPlan
    # Amounts that the Node does not advertise and has to.
    advertised: Mapping[str, str] | None


def plan_node(facts: NodeFacts, *, now: str) -> NodePlan:
    """Compute everything for one node; `now` is the time to put into a condition that flips."""
    has_report = facts.stats is not None and facts.stats.observed_generation is not None
    left_s = facts.stale_after_s - facts.silence_s
    is_stale = has_report and left_s <= 0
    previous = facts.computed if facts.computed is not None else facts.published
    found = build_disks(
        facts.device,
        facts.stats,
        facts.models,
        previous=previous,
        is_stale=is_stale,
        stale_safety_percent=facts.stale_safety_percent,
    )
    numa, unreflected, reflects_s = plan_topology(facts, previous)
    xpu, beats_s = plan_xpus(facts)
    has_source = any(it is not None for it in (found.source, numa.source, xpu.source))
    wanted = {
        names.DISK_IO_READY: found.condition,
        names.TOPOLOGY_READY: numa.condition,
        names.XPU_READY: xpu.condition,
        names.DATASET_READY: facts.dataset_condition,
        names.POWER_READY: facts.power.condition,
    }
    busy, load, changes_s = plan_gateway(facts, found.disks)
    computed = NodeInventoryStatus(
        sources=Sources(diskio=found.source, topology=numa.source, xpu=xpu.source)
        if has_source
        else None,
        disks=found.disks,
        topology=numa.topology,
        zones=numa.zones,
        datasets=facts.datasets,
        gateway_busy=busy,
        xpu=xpu.xpu,
        xpus=xpu.xpus,
        xpu_summary=xpu.summary,
        power=facts.power.power,
        power_now=facts.power.power_now,
        conditions=merge_conditions(facts.published, wanted, now=now),
        free_zones=numa.free_zones,
        free_disk=found.free_disk,
    )
    settled, rises, lasts_s = settle(computed, facts.published, facts.rises, now_s=facts.now_s)
    silence_s = left_s if has_report and not is_stale else None
    waits_s = [
        it for it in (lasts_s, silence_s, reflects_s, beats_s, changes_s, facts.power_lasts_s) if it
    ]
    known = {device.id for device in facts.device.devices} if facts.device is not None else set()
    return NodePlan(
        reserved=plan_reserved(facts),
        computed=computed,
        rises=rises,
        status=settled if is_news(settled, facts.published) else None,
        node_conditions=plan_node_conditions(facts.node_conditions, wanted),
        dropped_conditions=tuple(
            on_node
            for type_, on_node in ON_NODE.items()
            if wanted[type_] is None and on_node in facts.node_conditions
        ),
        unreflected=unreflected,
        load=load,
        problems=find_problems(facts, found.condition),
        look_again_s=min(waits_s, default=None),
        is_stale=is_stale,
        is_report_ignored=found.is_report_ignored and not is_stale,
        unknown_devices=len(set(facts.stats.allocable) - known) if facts.stats is not None else 0,
        node_xpu=plan_node_xpu(
            facts.name,
            xpu,
            facts.node_xpu,
            facts.node_xpu_status,
            [it.xpu for it in facts.pods.values() if it.xpu is not None and not it.is_finished],
            facts.xpu_names,
            assigning=Assigning(timeout_s=facts.xpu_assign_timeout_s, wall_s=facts.wall_s),
            now=now,
        ),
        advertised=plan_advertised(
            xpu, facts.devices.capacity if facts.devices is not None else {}, facts.xpu_names
        ),
    )


def plan_xpus(facts: NodeFacts) -> tuple[XPUInventory, float | None]:
    """Return the devices, and in how many seconds an agent's heartbeat will be stale."""
    devices = facts.devices
    if devices is None:
        return XPUInventory(), None
    left_s = silence_left_s(facts.node_xpu, facts.xpu_stale_after_s, facts.wall_s)
    is_stale = left_s is not None and left_s <= 0
    of_node = (devices.capacity, devices.allocatable, devices.annotations)
    built = facts.xpus.of(
        (*of_node, facts.node_xpu, facts.xpu_names, facts.unhealthy, is_stale),
        lambda: _build_xpus(facts, devices, is_stale=is_stale),
    )
    return built, None if is_stale else left_s


def _build_xpus(facts: NodeFacts, devices: NodeDevices, *, is_stale: bool) -> XPUInventory:
    unhealthy, strange = read_unhealthy(facts.unhealthy)
    built = build_xpus(
        devices, facts.node_xpu, facts.xpu_names, unhealthy=unhealthy, is_stale=is_stale
    )
    if strange and built.condition is not None:
        words = "; ".join((built.condition.message, *strange))
        built = replace(built, condition=built.condition.model_copy(update={"message": words}))
    return built


def plan_reserved(facts: NodeFacts) -> tuple[str, ...] | None:
    """Return the list to write, None if the stored one is equal as a set or has no device."""
    if facts.device is None:
        return None
    wanted = tuple(
        sorted(
            pod.uid
            for pod in facts.pods.values()
            if not pod.is_finished and pod.namespace not in facts.white_list
        )
    )
    if facts.stats is not None and set(facts.stats.reserved_pods) == set(wanted):
        return None
    return wanted


def plan_gateway(
    facts: NodeFacts, disks: tuple[Disk, ...] | None
) -> tuple[bool | None, Load, float | None]:
    """Return whether gateways here are overloaded, from what load that was found, and when that changes.

    None where there is no gateway, or nothing is measured.
    """
    is_gateway = any(it.role is DatasetRole.GATEWAY for it in facts.datasets or ())
    if not is_gateway or facts.overload.reading is GatewayReading.NONE:
        return None, Load(), None
    percent, lasts_s = disk_percent(disks), None
    if facts.overload.reading is GatewayReading.CPU:
        percent, lasts_s = facts.cpu_load or (None, None)
    load, changes_s = look(percent, facts.load, facts.overload, now_s=facts.now_s)
    again_s = min((it for it in (changes_s, lasts_s) if it is not None), default=None)
    return None if percent is None else load.is_busy, load, again_s


def plan_topology(
    facts: NodeFacts, previous: NodeInventoryStatus | None
) -> tuple[TopologyInventory, Mapping[str, float], float | None]:
    """Return the zones, which pods they do not show and since when, and when to look again."""
    if facts.topology is None:
        return TopologyInventory(), {}, None
    pods = [
        PodOnNode(
            uid=it.uid,
            namespace=it.namespace,
            name=it.name,
            created_s=it.created_s,
            started_s=it.started_s,
            is_exclusive=it.is_guaranteed,
            devices=it.devices,
            held=it.held,
            is_first=it.is_first,
        )
        for it in facts.pods.values()
        if not it.is_finished
    ]
    refused, distrusted_s = _refuting(facts, facts.topology)
    built = build_topology(facts.topology, pods, previous=previous, refused=refused)
    since = {uid: facts.unreflected.get(uid, facts.now_s) for uid in sorted(built.unreflected)}
    if not since:
        return built, since, distrusted_s
    left_s = min(since.values()) + facts.topology_stale_after_s - facts.now_s
    if left_s > 0:
        return built, since, left_s if distrusted_s is None else min(left_s, distrusted_s)
    stale = build_topology(facts.topology, pods, previous=previous, refused=refused, is_stale=True)
    return stale, since, distrusted_s


def _refuting(facts: NodeFacts, topology: NodeResourceTopology) -> tuple[str, float | None]:
    """Return the pod that the kubelet turned away last since the topology was written.

    And for how many seconds that counts; empty and None where there is none, or none any more.
    """
    left = [
        (it.unaligned_s + DISTRUST_S - facts.wall_s, it.pod)
        for it in facts.failures.values()
        if it.unaligned_s is not None
        and (topology.written_s is None or topology.written_s <= it.unaligned_s)
    ]
    left_s, pod = max(left, default=(0.0, ""))
    return (pod, left_s) if left_s > 0 else ("", None)


def merge_conditions(
    published: NodeInventoryStatus | None,
    wanted: Mapping[str, StatusCondition | None],
    *,
    now: str,
) -> tuple[StatusCondition, ...] | None:
    """Return the published conditions with ours replaced, others untouched."""
    before = (published.conditions if published is not None else None) or ()
    others = [it for it in before if it.type not in wanted]
    ours = (it for it in wanted.values() if it is not None)
    return (*others, *keep_times(ours, before, now=now)) or None


def is_news(wanted: NodeInventoryStatus, published: NodeInventoryStatus | None) -> bool:
    """Tell whether the status says something else than the published one."""
    if published is None:
        parts = (wanted.disks, wanted.topology, wanted.xpu, wanted.datasets, wanted.power)
        return any(it is not None for it in parts)
    return _essence(wanted) != _essence(published)


def _essence(status: NodeInventoryStatus) -> NodeInventoryStatus:
    sources = status.sources
    if sources is not None:
        diskio, topology = sources.diskio, sources.topology
        bare = Sources(
            xpu=sources.xpu,
            diskio=diskio and diskio.model_copy(update={"stats_generation": None}),
            # An updater that writes the same again is no news.
            topology=topology and topology.model_copy(update={"written_s": None}),
        )
        status = status.model_copy(update={"sources": bare})
    conditions = tuple(
        it.model_copy(update={"last_transition_time": None}) for it in status.conditions or ()
    )
    return status.model_copy(update={"conditions": conditions})


def plan_node_conditions(
    seen: Mapping[str, Condition], wanted: Mapping[str, StatusCondition | None]
) -> tuple[StatusCondition, ...]:
    """Return the conditions to set on the Node: those whose status or reason does not stand there."""
    found = []
    for type_, condition in wanted.items():
        old = seen.get(ON_NODE[type_])
        if condition is None or (
            old is not None and (old.status, old.reason) == (condition.status, condition.reason)
        ):
            continue
        update = {"type": ON_NODE[type_], "observed_generation": None}
        found.append(condition.model_copy(update=update))
    return tuple(found)


def find_problems(facts: NodeFacts, condition: StatusCondition | None) -> tuple[str, ...]:
    """Return what the driver's owner should hear of, as sentences for Events."""
    problems = facts.device.problems if facts.device is not None else ()
    if condition is not None and condition.reason in ("ModelNotFound", "NoDefaultDisk"):
        problems = (condition.message, *problems)
    return problems


def stats_manifest(facts_name: str, namespace: str, uid: str, reserved: tuple[str, ...]) -> Any:
    """Return the NodeDiskIOStats to create, owned by the Node so that it goes with it."""
    return {
        "apiVersion": names.DISKIO_API_VERSION,
        "kind": "NodeDiskIOStats",
        "metadata": {
            "name": f"{facts_name}{names.NODE_DISK_IO_STATS_SUFFIX}",
            "namespace": namespace,
            "ownerReferences": [node_reference(facts_name, uid)],
        },
        "spec": {"nodeName": facts_name, "reservedPods": list(reserved)},
    }


def inventory_manifest(name: str, uid: str) -> Any:
    """Return the NodeInventory to create, without a status."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "NodeInventory",
        "metadata": {"name": name, "ownerReferences": [node_reference(name, uid)]},
    }


def node_reference(name: str, uid: str) -> dict[str, str]:
    """Return the owner reference to a Node."""
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}


def status_patch(status: NodeInventoryStatus, *, uid: str) -> dict[str, Any]:
    """Return the merge patch for `/status`: our fields replaced or removed, others left alone.

    The uid makes the API server refuse it for another object of the same name.
    """
    wire = status.to_wire()
    return {
        "metadata": {"uid": uid},
        "status": {
            "sources": {
                "diskio": _whole(status.sources and status.sources.diskio),
                "topology": _whole(status.sources and status.sources.topology),
                "xpu": _whole(status.sources and status.sources.xpu),
            },
            "disks": wire.get("disks"),
            "topology": _whole(status.topology),
            "zones": wire.get("zones"),
            "datasets": wire.get("datasets"),
            "gatewayBusy": wire.get("gatewayBusy"),
            "xpu": _whole(status.xpu),
            "xpus": wire.get("xpus"),
            "xpuSummary": wire.get("xpuSummary"),
            "power": _whole(status.power),
            "powerNow": wire.get("powerNow"),
            "conditions": wire.get("conditions"),
            "freeZones": wire.get("freeZones"),
            "freeDisk": wire.get("freeDisk"),
        },
    }


def _whole(part: Model | None) -> dict[str, Any] | None:
    # With its nulls: a merge patch keeps what it does not name.
    return part.model_dump(mode="json", by_alias=True) if part is not None else None


def node_conditions_patch(
    wanted: Iterable[StatusCondition],
    dropped: Iterable[str],
    seen: Mapping[str, Condition],
    *,
    uid: str,
    now: str,
) -> dict[str, Any]:
    """Return the strategic merge patch for the Node's `/status` that sets and drops conditions."""
    entries: list[dict[str, Any]] = [{"type": it, "$patch": "delete"} for it in dropped]
    for condition in wanted:
        entry = {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastHeartbeatTime": now,
        }
        old = seen.get(condition.type)
        if old is None or old.status != condition.status:
            entry["lastTransitionTime"] = now
        entries.append(entry)
    return {"metadata": {"uid": uid}, "status": {"conditions": entries}}
