"""What one node's zones have, as plain numbers, and where its kubelet would put a pod's containers.

The small half of the arithmetic: one node at a time, for the books and for words to people. What is
asked of all nodes at once is in `placement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from berthmaster.api.inventory import Freshness, NodeInventory, Topology
from berthmaster.api.objects import Node
from berthmaster.concerns.numa.amounts import CPU, is_affine, read_offer
from berthmaster.concerns.numa.request import Amounts, NumaUsage

Zones = list[dict[str, int]]


@dataclass(slots=True)
class NodeZones:
    """A node's zones, ascending by id. `order` are their positions in the vendor's list.

    `offered` is what the report says is available, `totals` what a zone could ever give to one pod:
    all CPUs, reserved ones included, and what is allocatable of the rest.
    """

    ids: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    offered: Zones = field(default_factory=list)
    totals: Zones = field(default_factory=list)
    # What the report says is held: allocatable, but not available.
    held: Zones = field(default_factory=list)
    # Distances by position in the vendor's list; -1 where none is given.
    costs: tuple[tuple[int, ...], ...] = ()
    policy: str = "none"
    scope: str = "container"
    max_numa_nodes: int = 8
    cpu_manager: str | None = None
    memory_manager: str | None = None
    freshness: Freshness = Freshness.FRESH
    reported: frozenset[str] = frozenset()
    # By uid, of those of them whose zones the updater tells: the zone of each container, -1 for none.
    observed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    allocatable: frozenset[str] = frozenset()
    # Whether the kubelet has CPUs to give away one by one.
    has_exclusive_cpus: bool = True

    @property
    def is_single(self) -> bool:
        """Return whether the kubelet gives each container, or pod, one zone or nothing."""
        return self.policy == "single-numa-node"

    def lists(self, resource: str) -> bool:
        """Return whether any zone lists the resource."""
        return any(resource in zone for zone in self.offered)

    def aligns(self, resource: str) -> bool:
        """Return whether this node's kubelet aligns cpu, memory or a size of hugepages.

        Without a word from the updater: cpu where some zone has any that is allocatable, which
        kubelets report with the CPU manager static only; the others where some zone lists them, which
        updaters do with the memory manager Static only. A node without zones is not understood, and
        nothing is presumed of it.
        """
        if not self.ids:
            return True
        if resource == CPU:
            return self.cpu_manager == "static" or (
                self.cpu_manager is None and self.has_exclusive_cpus
            )
        return self.memory_manager != "none" and self.lists(resource)


def read_zones(node: Node, inventory: NodeInventory | None) -> NodeZones | None:
    """Return a node's zones as the inventory has them, None where it has no topology."""
    status = inventory.status if inventory is not None else None
    if status is None or status.topology is None or status.zones is None:
        return None
    topology, listed = status.topology, status.zones
    zones = sorted(enumerate(listed), key=lambda it: it[1].id)
    ids = [zone.id for zone in listed]
    return NodeZones(
        ids=tuple(zone.id for _, zone in zones),
        order=tuple(position for position, _ in zones),
        offered=[
            {name: read_offer(name, text) for name, text in zone.available.items()}
            for _, zone in zones
        ],
        totals=[
            {
                name: read_offer(name, (zone.capacity if name == CPU else zone.allocatable)[name])
                for name in zone.available
                if name in (zone.capacity if name == CPU else zone.allocatable)
            }
            for _, zone in zones
        ],
        held=[
            {
                name: max(
                    0, read_offer(name, zone.allocatable.get(name, "0")) - read_offer(name, it)
                )
                for name, it in zone.available.items()
            }
            for _, zone in zones
        ],
        costs=tuple(tuple(zone.costs.get(str(id_), -1) for id_ in ids) for zone in listed),
        policy=topology.policy,
        scope=topology.scope,
        max_numa_nodes=topology.max_numa_nodes,
        cpu_manager=topology.cpu_manager_policy,
        memory_manager=topology.memory_manager_policy,
        freshness=topology.freshness,
        reported=frozenset(topology.reported_pods),
        observed=read_observed(topology),
        allocatable=frozenset(node.status.allocatable or ()),
        has_exclusive_cpus=any(read_offer(CPU, it.allocatable.get(CPU, "0")) for it in listed),
    )


def read_observed(topology: Topology) -> dict[str, tuple[int, ...]]:
    """Return by uid in which zone the updater saw each container that holds anything alone, or -1.

    In the order of `NumaUsage.containers`. Text of another form, as of another version, says nothing.
    """
    if len(topology.reported_zones) != len(topology.reported_pods):
        return {}
    found = {}
    for uid, text in zip(topology.reported_pods, topology.reported_zones, strict=True):
        parts = text.split(",")
        if text and all(it == "-" or it.isdecimal() for it in parts):
            found[uid] = tuple(-1 if it == "-" else int(it) for it in parts)
    return found


def give(free: Zones, slot: int, amounts: Amounts, most: Mapping[str, int]) -> None:
    """Give amounts back to one zone, up to the most that it could ever have."""
    zone = free[slot]
    for resource, amount in amounts:
        if resource in zone:
            zone[resource] = max(zone[resource], min(zone[resource] + amount, most[resource]))


def take(free: Zones, slot: int, amounts: Amounts) -> None:
    """Take amounts from one zone; what it does not list is not taken, and 0 is the end."""
    zone = free[slot]
    for resource, amount in amounts:
        if resource in zone:
            zone[resource] = max(0, zone[resource] - amount)


def take_spread(free: Zones, slots: Iterable[int], amounts: Amounts) -> list[tuple[int, Amounts]]:
    """Take amounts from several zones, each giving what it has; return what each gave."""
    rest = dict(amounts)
    given: list[tuple[int, Amounts]] = []
    for slot in slots:
        zone = free[slot]
        part = {name: min(left, zone[name]) for name, left in rest.items() if name in zone}
        for name, amount in part.items():
            zone[name] -= amount
            rest[name] -= amount
        pairs = tuple((name, amount) for name, amount in part.items() if amount)
        if pairs:
            given.append((slot, pairs))
    return given


def candidates(free: Zones, amounts: Amounts) -> list[int]:
    """Return the zones that hold all the amounts which some zone lists."""
    listed = [(name, amount) for name, amount in amounts if any(name in zone for zone in free)]
    return [
        slot
        for slot, zone in enumerate(free)
        if all(zone.get(name, -1) >= amount for name, amount in listed)
    ]


def take_given(zones: NodeZones, free: Zones, usage: NumaUsage) -> None:
    """Take a pod off the zones that it was given, or where its kubelet will have put it."""
    if usage.zones is None:
        predict(zones, free, usage.containers)
        return
    slots = {id_: slot for slot, id_ in enumerate(zones.ids)}
    for id_, amounts in usage.zones:
        if id_ in slots:
            take(free, slots[id_], amounts)


def predict(
    zones: NodeZones, free: Zones, containers: Sequence[Amounts]
) -> list[tuple[int, Amounts]]:
    """Take a pod off the zones where its kubelet will put it; return which slot gives what.

    That is the lowest zone that holds a container, or under scope pod the whole pod. What no zone
    holds alone lies across zones, which a single-numa-node kubelet would have refused.
    """
    given: list[tuple[int, Amounts]] = []
    for amounts in _units(zones, containers):
        fitting = candidates(free, amounts)
        if fitting:
            take(free, fitting[0], amounts)
            given.append((fitting[0], amounts))
        else:
            given += take_spread(free, range(len(free)), amounts)
    return given


def doubt(zones: NodeZones, free: Zones, usage: NumaUsage) -> None:
    """Take a pod off every zone that could ever hold it, whatever is free now.

    Of a pod on its way the other zones are closed, and those that have too little for it: who comes after
    it must leave it a zone, and that can be none of these.
    """
    is_coming = bool(usage.coming)
    for amounts in (*_units(zones, usage.containers), usage.left):
        able, roomy = candidates(zones.totals, amounts), candidates(free, amounts)
        for slot in range(len(free)):
            if is_coming and (slot not in able or slot not in roomy):
                free[slot] = dict.fromkeys(free[slot], 0)
            elif slot in able or not able:
                take(free, slot, amounts)


def take_left(zones: NodeZones, free: Zones, usage: NumaUsage, observed: Sequence[int]) -> None:
    """Take what a pod's init containers still hold off the zone where the pod was `observed`.

    Where that is not told, or several, off the zones that it was given; where somebody else placed it,
    off every zone that may be it: reports do not show it.
    """
    seen = {it for it in observed if it >= 0}
    if usage.anchor and len(seen) == 1 and seen <= set(zones.ids):
        take(free, zones.ids.index(*seen), usage.left)
        return
    given = {id_: dict(amounts) for id_, amounts in usage.zones or ()}
    for it in usage.left:
        slots = [slot for slot, id_ in enumerate(zones.ids) if it[0] in given.get(id_, {})]
        if not slots:
            slots = list(range(len(zones.ids)))
            together = dict(usage.anchor)
            whole = (it[0], it[1] + together.get(it[0], 0))
            if zones.is_single or candidates(zones.totals, (whole,)):
                anchored = candidates(zones.held, usage.anchor)
                slots = [slot for slot in candidates(zones.totals, (it,)) if slot in anchored]
        for slot in slots:
            take(free, slot, (it,))


def is_held(zones: NodeZones, usage: NumaUsage) -> bool:
    """Return whether a pod holds anything that has a zone on this node."""
    return any(
        zones.aligns(name) if is_affine(name) else zones.lists(name)
        for amounts in usage.containers
        for name, amount in amounts
        if amount
    )


def is_across(zones: NodeZones, usage: NumaUsage) -> bool:
    """Return whether the memory of a pod must lie across zones, since no single one could ever hold it.

    Kubelets with policy single-numa-node take no such pods.
    """
    together = usage.together[zones.scope == "pod"]
    return not zones.is_single and any(
        zones.lists(name) and all(zone.get(name, 0) < amount for zone in zones.totals)
        for name, amount in together
    )


def _units(zones: NodeZones, containers: Sequence[Amounts]) -> Sequence[Amounts]:
    if zones.scope != "pod" or len(containers) < 2:
        return containers
    total: dict[str, int] = {}
    for amounts in containers:
        for name, amount in amounts:
            total[name] = total.get(name, 0) + amount
    return (tuple(total.items()),)
