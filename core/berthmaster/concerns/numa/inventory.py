"""A NodeResourceTopology to the topology and zones of a NodeInventory: which pods are in its numbers?

Between a pod's start and the updater's next look the numbers do not know the pod, afterwards they do,
and nothing in them says which. So it is worked out here, and written beside them:

* **Fingerprint.** The updater names the pods it saw by one hash. If that is the hash of the pods which we
  see on the node (all, or those with exclusive resources, as the updater says), all of them are in
  the numbers. If it is that of the same pods without the last few to start, those are not.
* **Time.** Where no fingerprint matches: a pod is in numbers that were written at least `MARGIN_S` after
  the API server learned that the kubelet had taken it, both by the API server's clock.
* **Before.** What was in the numbers stays in them until the pod is gone.

Where a fingerprint matches and the updater says in which zone each container lies (`observing`), that is
written beside them, too.

Never because the numbers moved by as much as the pod asks: something else may have.
Pods without exclusive resources are never in the numbers, and not listed.

A pod that the kubelet turned away after the numbers were written refutes them: they are Unreliable until
they are written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from berthmaster.api import names
from berthmaster.api.inventory import (
    LONGEST_ZONES,
    Freshness,
    NodeInventoryStatus,
    Topology,
    TopologySource,
    Zone,
)
from berthmaster.api.schema import StatusCondition
from berthmaster.api.topology import NodeResourceTopology
from berthmaster.concerns.numa.amounts import CPU, describe, read_offer
from berthmaster.concerns.numa.fingerprint import (
    fingerprint_of_hashes,
    is_fingerprint,
    pod_hash,
)
from berthmaster.concerns.numa.observing import decode_placement

# The API server tells whole seconds: of two times that are two apart, more than one second lies between.
MARGIN_S = 2.0
# So many pods may have started since the updater looked, and still its fingerprint is recognised.
MOST_LATECOMERS = 16
_LONGEST_MESSAGE = 4096
_SHOWN_PROBLEMS = 5


# A container's name, and the resources that it holds alone.
HeldByContainer = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOnNode:
    """A pod that is bound to a node and not finished.

    `started_s` is when the API server learned that the kubelet had taken the pod, None while it has
    not: seconds since the epoch by the API server's clock, as is `created_s`. `is_exclusive` tells of
    cpu, memory and hugepages; `devices` are the devices it names, which count if some zone lists them.
    `held` are the containers that hold anything alone, in the order in which `NumaUsage` has them.
    `is_first`: its name stood for no other pod there lately.
    """

    uid: str
    namespace: str
    name: str
    created_s: float | None = None
    started_s: float | None = None
    is_exclusive: bool = False
    devices: tuple[str, ...] = ()
    held: tuple[HeldByContainer, ...] = ()
    is_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyInventory:
    """The NUMA part of an inventory; `topology` is None where the node has no topology.

    `unreflected` are the uids of pods that run there and are not in the numbers, and of pods that
    are in the numbers and gone.
    """

    topology: Topology | None = None
    zones: tuple[Zone, ...] | None = None
    source: TopologySource | None = None
    condition: StatusCondition | None = None
    free_zones: str | None = None
    unreflected: frozenset[str] = frozenset()


def build_topology(
    nrt: NodeResourceTopology | None,
    pods: Iterable[PodOnNode] = (),
    *,
    previous: NodeInventoryStatus | None = None,
    is_stale: bool = False,
    refused: str = "",
    freshness: Freshness | None = None,
) -> TopologyInventory:
    """Return a node's zones as of now. Pure: the clock has spoken in `is_stale` and `refused`.

    `refused` is a pod that the kubelet has turned away since the numbers were written.
    """
    if nrt is None:
        return TopologyInventory()
    listed = {name for zone in nrt.zones for name in zone.resources}
    on_node = tuple(pods)
    holding = [it for it in on_node if it.is_exclusive or not listed.isdisjoint(it.devices)]
    before = _previously(previous, nrt)
    matched = _matching(nrt, on_node, holding)
    counted = _counted(nrt, holding, before, matched)
    observed = _observed(nrt, matched or ())
    unreflected = {it.uid for it in holding if it.started_s is not None and it.uid not in counted}
    is_unchanged = previous is not None and _is_same_report(previous, nrt)
    if is_unchanged:
        # Who is gone stays listed: the numbers are those that count it.
        gone = before - {it.uid for it in on_node}
        counted |= gone
        unreflected |= gone
        observed = observed or _previously_observed(previous, nrt)
    state = freshness or _freshness(is_stale=is_stale, is_refuted=bool(refused))
    zones = tuple(_zone(nrt, index) for index in range(len(nrt.zones)))
    return TopologyInventory(
        topology=Topology.model_validate(
            {
                "policy": nrt.policy,
                "scope": nrt.scope,
                "maxNUMANodes": nrt.max_numa_nodes,
                "cpuManagerPolicy": nrt.cpu_manager_policy,
                "memoryManagerPolicy": nrt.memory_manager_policy,
                "freshness": state,
                "reportedPods": (reported := tuple(sorted(counted))),
                "reportedZones": tuple(observed.get(it, "") for it in reported) if observed else (),
                "fingerprint": _brief(nrt.fingerprint),
            }
        ),
        zones=zones,
        source=TopologySource.model_validate({"uid": nrt.uid, "writtenS": nrt.written_s}),
        condition=_condition(nrt, state, len(unreflected), refused),
        free_zones=_free(nrt),
        unreflected=frozenset(unreflected),
    )


def _counted(
    nrt: NodeResourceTopology,
    holding: Sequence[PodOnNode],
    before: frozenset[str],
    matched: Sequence[PodOnNode] | None,
) -> set[str]:
    """Return the uids of those of the holding pods that the numbers count."""
    if matched is not None:
        # The updater's own word; its clock says when it wrote, and it may have looked long before.
        named = {it.uid for it in matched}
        return {it.uid for it in holding if it.uid in before or it.uid in named}
    return {it.uid for it in holding if it.uid in before or _is_later(nrt, it)}


def _observed(nrt: NodeResourceTopology, matched: Sequence[PodOnNode]) -> Mapping[str, str]:
    """Return by uid where the updater says that the pods lie which its numbers count."""
    # With other policies a container may lie in several zones, and no position says so.
    if not nrt.placement or not matched or nrt.policy != "single-numa-node":
        return {}
    # Of what no zone has any, the kubelet has given nobody anything: without a CPU manager zones may
    # list cpu all the same, with 0 to have.
    given = {
        name
        for zone in nrt.zones
        for name, it in zone.resources.items()
        if read_offer(name, it.allocatable)
    }
    keys = {
        it.uid: [
            None if given.isdisjoint(held) else (it.namespace, it.name, container)
            for container, held in it.held
        ]
        for it in matched
    }
    vectors = {zone.id: zone.placement for zone in nrt.zones}
    pinned = [key for each in keys.values() for key in each if key is not None]
    zone_of = decode_placement(nrt.placement, vectors, pinned)
    if zone_of is None or not set(zone_of.values()) <= set(vectors):
        return {}
    told = {
        uid: ",".join("-" if key is None else str(zone_of[key]) for key in each)
        for uid, each in keys.items()
        if any(each)
    }
    return {uid: text for uid, text in told.items() if len(text) <= LONGEST_ZONES}


def _previously_observed(
    previous: NodeInventoryStatus | None, nrt: NodeResourceTopology
) -> Mapping[str, str]:
    """Return where the pods of the same report lay: who is gone since then was in it."""
    before = previous.topology if previous is not None else None
    if before is None or before.fingerprint != _brief(nrt.fingerprint):
        return {}
    if len(before.reported_zones) != len(before.reported_pods):
        return {}
    return dict(zip(before.reported_pods, before.reported_zones, strict=True))


def _brief(fingerprint: str) -> str:
    return fingerprint[:64]


def _is_later(nrt: NodeResourceTopology, pod: PodOnNode) -> bool:
    if nrt.written_s is None or pod.started_s is None:
        return False
    return nrt.written_s >= pod.started_s + MARGIN_S


def _matching(
    nrt: NodeResourceTopology, pods: Sequence[PodOnNode], holding: Sequence[PodOnNode]
) -> Sequence[PodOnNode] | None:
    """Return the pods that the updater's fingerprint stands for, None if none of our sets is it."""
    if not is_fingerprint(nrt.fingerprint):
        return None
    # A name may stand for a pod that came after the report: the fingerprint tells names alone.
    older = [it for it in pods if _is_older(nrt, it)]
    exclusive = [it for it in older if it in holding]
    bases = [exclusive, older] if nrt.fingerprint_method == names.FINGERPRINT_EXCLUSIVE else [older]
    if not nrt.fingerprint_method and not nrt.is_fingerprint_annotated:
        bases = [older, exclusive]
    for base in bases:
        ordered = sorted(base, key=_by_start)
        hashes = [pod_hash(it.namespace, it.name) for it in ordered]
        for late in range(min(MOST_LATECOMERS, len(ordered)) + 1):
            count = len(ordered) - late
            if fingerprint_of_hashes(hashes[:count]) == nrt.fingerprint:
                return ordered[:count]
    return None


def _is_older(nrt: NodeResourceTopology, pod: PodOnNode) -> bool:
    if nrt.written_s is None or pod.created_s is None:
        return True
    # Both times are whole seconds: of two in the same second nobody knows which was first. Where the name
    # can only mean this pod it was the pod, for the updater knew the name.
    return pod.created_s < nrt.written_s or (pod.is_first and pod.created_s == nrt.written_s)


def _by_start(pod: PodOnNode) -> tuple[bool, float, float, str]:
    """Order by start, those that have not started last."""
    return pod.started_s is None, pod.started_s or 0.0, pod.created_s or 0.0, pod.uid


def _previously(previous: NodeInventoryStatus | None, nrt: NodeResourceTopology) -> frozenset[str]:
    """Return who was in the numbers before; an object made anew starts anew."""
    if previous is None or previous.topology is None:
        return frozenset()
    source = previous.sources.topology if previous.sources is not None else None
    if source is None or source.uid != nrt.uid:
        return frozenset()
    return frozenset(previous.topology.reported_pods)


def _is_same_report(previous: NodeInventoryStatus, nrt: NodeResourceTopology) -> bool:
    source = previous.sources.topology if previous.sources is not None else None
    if source is None or source.uid != nrt.uid or source.written_s != nrt.written_s:
        return False
    return previous.zones == tuple(_zone(nrt, index) for index in range(len(nrt.zones)))


def _zone(nrt: NodeResourceTopology, index: int) -> Zone:
    zone = nrt.zones[index]
    return Zone(
        id=zone.id,
        capacity={name: it.capacity for name, it in zone.resources.items()},
        allocatable={name: it.allocatable for name, it in zone.resources.items()},
        available={name: it.available for name, it in zone.resources.items()},
        costs={str(id_): cost for id_, cost in zone.costs.items()},
    )


def _free(nrt: NodeResourceTopology) -> str:
    """Return free and allocatable CPUs of each zone, such as `0: 10/16, 1: 4/16`."""
    shown = []
    for zone in sorted(nrt.zones, key=lambda it: it.id)[:8]:
        cpu = zone.resources.get(CPU)
        if cpu is not None:
            free, most = (read_offer(CPU, it) for it in (cpu.available, cpu.allocatable))
            shown.append(f"{zone.id}: {describe(CPU, free)}/{describe(CPU, most)}")
    return ", ".join(shown) + (", ..." if len(nrt.zones) > 8 else "")


def _freshness(*, is_stale: bool, is_refuted: bool) -> Freshness:
    if is_refuted:
        return Freshness.UNRELIABLE
    return Freshness.STALE if is_stale else Freshness.FRESH


def _condition(
    nrt: NodeResourceTopology, state: Freshness, unreflected: int, refused: str
) -> StatusCondition:
    status, reason = "True", "Reported"
    message = f"policy {nrt.policy}, scope {nrt.scope}, {len(nrt.zones)} zones"
    if not nrt.zones:
        status, reason = "False", "NoZones"
        message = (
            f"NodeResourceTopology {nrt.name} has no zone of type {names.ZONE_TYPE} named "
            f"{names.ZONE_PREFIX}<number>; no pod that a kubelet with policy single-numa-node has "
            "to align fits until it has"
        )
    elif refused:
        status, reason = "False", "Refuted"
        message = (
            f"the kubelet turned {refused} away ({names.TOPOLOGY_AFFINITY_ERROR}) after these numbers were "
            "written; no pod that it has to align is sent here before the topology changes, for ten "
            "minutes at most"
        )
    elif state is Freshness.STALE:
        status, reason = "False", "Stale"
        message = (
            f"{unreflected} pod(s) that started or ended here are not in the topology; look "
            "whether the topology updater of this node runs"
        )
    elif state is Freshness.UNRELIABLE:
        status, reason = "False", "Unreliable"
        message = "pods that nobody of us placed are not in the topology"
    if nrt.problems:
        message += "; " + "; ".join(nrt.problems[:_SHOWN_PROBLEMS])
    return StatusCondition(
        type=names.TOPOLOGY_READY,
        status="True" if status == "True" else "False",
        reason=reason,
        # Names and values in it are the updater's, of any length; a longer one would not be stored.
        message=message[:_LONGEST_MESSAGE],
    )
