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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from berthmaster.api import names
from berthmaster.api.diskio import NodeDiskDevice, NodeDiskIOStats
from berthmaster.api.inventory import NodeInventoryStatus, Sources
from berthmaster.api.objects import Condition
from berthmaster.api.schema import StatusCondition
from berthmaster.concerns.diskio.inventory import build_disks
from berthmaster.concerns.diskio.models import DiskModels
from berthmaster_operator.settling import Rises, settle
from berthmaster_operator.sightings import PodSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """All that the plan for one node depends on."""

    name: str
    node_condition: Condition | None
    device: NodeDiskDevice | None
    stats: NodeDiskIOStats | None
    silence_s: float
    pods: Mapping[str, PodSeen]
    white_list: frozenset[str]
    models: DiskModels
    stale_after_s: float
    stale_safety_percent: int
    rises: Rises
    now_s: float
    computed: NodeInventoryStatus | None
    published: NodeInventoryStatus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What to do. `None` in a field that says what to write: leave it as it is."""

    reserved: tuple[str, ...] | None
    computed: NodeInventoryStatus
    rises: Rises
    status: NodeInventoryStatus | None
    node_condition: StatusCondition | None
    drops_node_condition: bool
    problems: tuple[str, ...]
    look_again_s: float | None
    is_stale: bool
    is_report_ignored: bool
    unknown_devices: int


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
    computed = NodeInventoryStatus(
        sources=Sources(diskio=found.source) if found.source is not None else None,
        disks=found.disks,
        conditions=merge_condition(facts.published, found.condition, now=now),
        free_disk=found.free_disk,
    )
    settled, rises, lasts_s = settle(computed, facts.published, facts.rises, now_s=facts.now_s)
    waits_s = [it for it in (lasts_s, left_s if has_report and not is_stale else None) if it]
    known = {device.id for device in facts.device.devices} if facts.device is not None else set()
    return NodePlan(
        reserved=plan_reserved(facts),
        computed=computed,
        rises=rises,
        status=settled if is_news(settled, facts.published) else None,
        node_condition=plan_node_condition(facts.node_condition, found.condition),
        drops_node_condition=found.condition is None and facts.node_condition is not None,
        problems=find_problems(facts, found.condition),
        look_again_s=min(waits_s, default=None),
        is_stale=is_stale,
        is_report_ignored=found.is_report_ignored and not is_stale,
        unknown_devices=len(set(facts.stats.allocable) - known) if facts.stats is not None else 0,
    )


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


def merge_condition(
    published: NodeInventoryStatus | None, wanted: StatusCondition | None, *, now: str
) -> tuple[StatusCondition, ...] | None:
    """Return the published conditions with ours replaced, other concerns' untouched."""
    before = (published.conditions if published is not None else None) or ()
    others = tuple(it for it in before if it.type != names.DISK_IO_READY)
    if wanted is None:
        return others or None
    old = next((it for it in before if it.type == names.DISK_IO_READY), None)
    is_same = old is not None and old.status == wanted.status and old.last_transition_time
    since = old.last_transition_time if old is not None and is_same else now
    return (*others, wanted.model_copy(update={"last_transition_time": since}))


def is_news(wanted: NodeInventoryStatus, published: NodeInventoryStatus | None) -> bool:
    """Tell whether the status says something else than the published one."""
    if published is None:
        return wanted.disks is not None
    return _essence(wanted) != _essence(published)


def _essence(status: NodeInventoryStatus) -> NodeInventoryStatus:
    source = status.sources.diskio if status.sources is not None else None
    if source is not None:
        bare = source.model_copy(update={"stats_generation": None})
        status = status.model_copy(update={"sources": Sources(diskio=bare)})
    conditions = tuple(
        it.model_copy(update={"last_transition_time": None}) for it in status.conditions or ()
    )
    return status.model_copy(update={"conditions": conditions})


def plan_node_condition(
    seen: Condition | None, wanted: StatusCondition | None
) -> StatusCondition | None:
    """Return the condition to set on the Node, None if status and reason stand there already."""
    if wanted is None:
        return None
    if seen is not None and (seen.status, seen.reason) == (wanted.status, wanted.reason):
        return None
    return wanted.model_copy(
        update={"type": names.DISK_IO_READY_ON_NODE, "observed_generation": None}
    )


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
            "sources": {"diskio": _whole_source(status)},
            "disks": wire.get("disks"),
            "conditions": wire.get("conditions"),
            "freeDisk": wire.get("freeDisk"),
        },
    }


def _whole_source(status: NodeInventoryStatus) -> dict[str, Any] | None:
    source = status.sources.diskio if status.sources is not None else None
    # With its nulls: a merge patch keeps what it does not name.
    return source.model_dump(mode="json", by_alias=True) if source is not None else None


def node_condition_patch(
    condition: StatusCondition | None, *, uid: str, now: str, flips: bool
) -> dict[str, Any]:
    """Return the strategic merge patch for the Node's `/status`; None takes the condition away."""
    if condition is None:
        entry: dict[str, Any] = {"type": names.DISK_IO_READY_ON_NODE, "$patch": "delete"}
    else:
        entry = {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastHeartbeatTime": now,
        }
        if flips:
            entry["lastTransitionTime"] = now
    return {"metadata": {"uid": uid}, "status": {"conditions": [entry]}}
