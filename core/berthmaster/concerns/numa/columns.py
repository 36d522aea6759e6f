"""NUMA columns: what is free in each zone of each node, in arrays of nodes by zones.

    free = available as reported - what pods hold that the report does not count

Nodes with the same number of zones, policy and scope share a block, so that one way of reckoning is right
for all of it. A block has an array per
resource that some pod has asked for; the least recently used one makes room. The books are plain
numbers per node, and an array is written where they change.

A pod that the report does not count is taken off the zones where its kubelet has put it, or will (see
`arriving`); only what it holds exclusively is. What its init containers hold
beyond that no report counts: it is taken off as long as the pod is there. Released, a pod that the
report still counts gives back what it held to the zones in which the updater saw it. Where it tells of
none, nothing comes back before the next report: which zone the pod leaves is known to the kubelet alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import Freshness, NodeInventory
from berthmaster.api.objects import Node
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.numa import NumaBooks
from berthmaster.concerns.numa import zones as arithmetic
from berthmaster.concerns.numa.amounts import is_known, scale_of
from berthmaster.concerns.numa.arriving import NONE as NONE_COMES
from berthmaster.concerns.numa.arriving import Arrivals
from berthmaster.concerns.numa.request import Amounts, NumaUsage
from berthmaster.concerns.numa.zones import NodeZones, Zones, read_zones
from berthmaster.concerns.shape import Holder

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Small = NDArray[np.uint8]
_Number = TypeVar("_Number", bound=np.generic)

MISSING, FRESH, STALE, UNRELIABLE = 0, 1, 2, 3
_STATES = {
    Freshness.FRESH: FRESH,
    Freshness.STALE: STALE,
    Freshness.UNRELIABLE: UNRELIABLE,
}
NONE, BEST_EFFORT, RESTRICTED, SINGLE = 0, 1, 2, 3
_POLICIES = {
    "none": NONE,
    "best-effort": BEST_EFFORT,
    "restricted": RESTRICTED,
    "single-numa-node": SINGLE,
}
# Resource names come from pods, so anybody may name new ones.
_CELLS_REMEMBERED = 96
_COSTS_REMEMBERED = 512


class View(Enum):
    """Which numbers of a zone."""

    FREE = "free"
    # What is left if every pod whose zone is not certain were in all zones that may hold it; nothing in a
    # zone that some pod on its way cannot go to.
    DOUBTFUL = "doubtful"
    # What is left if no init container held anything any more.
    MOST = "most"
    TOTAL = "total"


class Charging(Enum):
    """How pods that no report counts are taken off."""

    PREDICTED = "predicted"
    EVERY_ZONE = "every zone"
    NOT_AT_ALL = "not at all"
    NODE_IS_CLOSED = "node is closed"


@dataclass(slots=True)
class _Row:
    """What stands behind a row's numbers."""

    zones: NodeZones | None = None
    held: dict[str, NumaUsage] = field(default_factory=dict)
    free: Zones = field(default_factory=list)
    doubtful: Zones = field(default_factory=list)
    most: Zones = field(default_factory=list)
    # Released, and still in the report, which says where they lay.
    leaving: dict[str, NumaUsage] = field(default_factory=dict)
    # Held, and their predicted zones compared with the observed ones.
    compared: set[str] = field(default_factory=set)
    arrivals: Arrivals = field(default_factory=Arrivals)

    def seen(self, view: View) -> Zones:
        """Return the numbers of one of the views on what is free."""
        if view is View.DOUBTFUL:
            return self.doubtful
        return self.most if view is View.MOST else self.free


@dataclass(slots=True)
class Cells:
    """One resource in a block: `amounts` by row and zone, -1 where a zone does not list it.

    `units` are the same in whole units, rounded up, at least 1. `known` tells per row whether the Node has
    the resource, `aligned` whether the kubelet aligns it. See `rows_of` for how they lie in memory.
    """

    amounts: Ints
    units: Floats
    known: Flags
    aligned: Flags


class Block:
    """The rows whose nodes have `size` zones and kubelets set up alike; indices are private to the block."""

    def __init__(self, size: int, policy: int, *, is_pod_scope: bool) -> None:
        self.size = size
        self.policy = policy
        self.is_pod_scope = is_pod_scope
        # No index that is taken is as high.
        self.end = 0
        self.rows: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
        self.orders: NDArray[np.intp] = np.zeros((0, size), dtype=np.intp)
        self.costs: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        # Whether every node that ever was here lists its zones ascending by id.
        self.is_ordered = True
        self.cells: OrderedDict[tuple[View, str], Cells] = OrderedDict()
        self._free: list[int] = []

    def take(self) -> int:
        """Return an index that nobody has."""
        if not self._free:
            old, new = len(self.rows), max(16, 2 * len(self.rows))
            self.rows = _grow(self.rows, new)
            self.costs = _grow(self.costs, new)
            self.orders = _grow(self.orders, new)
            for cells in self.cells.values():
                cells.amounts = _grow(cells.amounts, new)
                cells.units = _grow(cells.units, new)
                cells.known = _grow(cells.known, new)
                cells.aligned = _grow(cells.aligned, new)
            self._free = list(range(new - 1, old - 1, -1))
        index = self._free.pop()
        self.end = max(self.end, index + 1)
        return index

    def give_back(self, index: int) -> None:
        """Let an index be taken anew."""
        self._free.append(index)


class NumaColumns:
    """State and settings by row, and the blocks that hold the zones."""

    def __init__(self) -> None:
        self.state: Small = np.zeros(0, dtype=np.uint8)
        self.policy: Small = np.zeros(0, dtype=np.uint8)
        self.is_pod_scope: Flags = np.zeros(0, dtype=np.bool_)
        self.max_numa_nodes: Ints = np.zeros(0, dtype=np.int64)
        # Whether the memory of some pod lies across zones.
        self.is_grouped: Flags = np.zeros(0, dtype=np.bool_)
        # Whether the views FREE and MOST differ.
        self.has_leftovers: Flags = np.zeros(0, dtype=np.bool_)
        # The row's block, and its index there.
        self.kinds: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
        self.indices: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
        self.blocks: list[Block] = []
        self._kind_of: dict[tuple[int, int, bool], int] = {}
        self.costs: list[tuple[tuple[int, ...], ...]] = []
        self.charging = Charging.PREDICTED
        # Whether pods are taken to lie where they were predicted if no updater tells: for who asks what
        # would help, never for who gives room away.
        self.presumes = False
        self._cost_ids: dict[tuple[tuple[int, ...], ...], int] = {}
        self._is_strict = False
        # Pods and answers per node that the updater's numbers do not count.
        self.unreported: Ints = np.zeros(0, dtype=np.int64)
        # The shape of pods whose zones are not certain; see `Arrivals.shape`.
        self.coming: Ints = np.zeros(0, dtype=np.int64)
        # Pods that lie where it was predicted, and others, as far as updaters tell; counted up.
        self.hits = 0
        self.misses = 0
        self._rows: list[_Row] = []

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self.state = _grow(self.state, rows)
        self.policy = _grow(self.policy, rows)
        self.is_pod_scope = _grow(self.is_pod_scope, rows)
        self.max_numa_nodes = _grow(self.max_numa_nodes, rows)
        self.has_leftovers = _grow(self.has_leftovers, rows)
        self.is_grouped = _grow(self.is_grouped, rows)
        self.unreported = _grow(self.unreported, rows)
        self.coming = _grow(self.coming, rows)
        self.kinds = _grow(self.kinds, rows)
        self.indices = _grow(self.indices, rows)
        self._rows.extend(_Row() for _ in range(rows - len(self._rows)))

    def configure(self, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take the most important policy that names its books; count every row anew if they differ."""
        named = (it.concerns.numa for it in policies if it.concerns.numa.books is not None)
        settings = next(named, None)
        charging, is_strict = Charging.PREDICTED, False
        if settings is not None and settings.books is NumaBooks.UPSTREAM:
            is_strict = settings.strict_upstream
            if settings.discard_reserved_nodes:
                charging = Charging.NODE_IS_CLOSED
            elif settings.cache_resync_period_seconds:
                charging = Charging.EVERY_ZONE
            else:
                charging = Charging.NOT_AT_ALL
        if (charging, is_strict) != (self.charging, self._is_strict):
            self.charging, self._is_strict = charging, is_strict
            for row in range(len(self._rows)):
                self._recount(row)

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over a node's zones; holdings stay, and those that a new report counts are in it."""
        it = self._rows[row]
        zones = read_zones(node, inventory)
        if it.zones is None and zones is None:
            return
        self._leave_block(row, it)
        it.zones = zones
        if zones is not None:
            self._enter_block(row, zones)
            for key in zones.observed.keys() & it.held.keys():
                self._compare(it, key, it.held[key])
        self._recount(row)

    def clear(self, row: int) -> None:
        """Forget the node and its holdings."""
        self._leave_block(row, self._rows[row])
        self._rows[row] = _Row()
        self.state[row] = MISSING
        self.unreported[row] = 0
        self.coming[row] = NONE_COMES

    def charge(self, row: int, holder: Holder, usage: NumaUsage) -> None:
        """Let a pod or an answer use the node's zones; one that is there is not charged twice."""
        it = self._rows[row]
        # One that was taken for gone has its zones given back, which is to be undone.
        is_new = holder.key not in it.held and holder.key not in it.leaving
        if it.zones is not None:
            # Of those who are gone and whose zones are known the room is there again.
            is_behind = not usage.coming and any(
                key not in it.held and key not in it.leaving for key in it.zones.reported
            )
            usage = it.arrivals.charge(holder.key, usage, it.zones, is_behind=is_behind)
        it.held[holder.key] = usage
        self._compare(it, holder.key, usage)
        if it.zones is not None:
            self.is_grouped[row] |= arithmetic.is_across(it.zones, usage)
        if is_new and it.zones is not None and self.charging is Charging.PREDICTED:
            # The last to come is the last to be counted: what was counted before it stands.
            is_counted = holder.key in it.zones.reported
            if usage.coming or is_counted:
                if usage.left or not is_counted:
                    self._take(it, it.zones, holder.key, usage)
                    self.unreported[row] += not is_counted and bool(usage.containers)
                self._publish_coming(row, it)
                self._publish_amounts(row, it)
                return
        self._recount(row)

    def release(self, row: int, holder: Holder) -> None:
        """Give back what a holder used; unknown holders are ignored."""
        it = self._rows[row]
        usage = it.held.pop(holder.key, None)
        it.compared.discard(holder.key)
        if usage is None or it.zones is None:
            return
        it.arrivals.release(holder.key, usage, it.zones)
        is_known = self._lies(it.zones, holder.key, usage) is not None
        if is_known:
            it.leaving[holder.key] = usage
        is_across = arithmetic.is_across(it.zones, usage)
        if is_known or is_across or usage.left or holder.key not in it.zones.reported:
            self._recount(row)
        elif self.charging is Charging.PREDICTED:
            self._publish_coming(row, it)

    def rename(self, row: int, before: Holder, after: Holder, usage: NumaUsage) -> bool:
        """Let another holder use what one does; return whether the row is another by it."""
        it = self._rows[row]
        is_counted = it.zones is not None and after.key in it.zones.reported
        if before.key in it.held and not is_counted and after.key not in it.leaving:
            # In its place, for zones are foreseen in the order in which pods came.
            it.held = {after.key if key == before.key else key: it.held[key] for key in it.held}
            it.arrivals.rename(before.key, after.key)
            return False
        self.release(row, before)
        self.charge(row, after, usage)
        return True

    @property
    def has_topologies(self) -> bool:
        """Return whether the zones of any node are known."""
        return bool((self.state != MISSING).any())

    def zones(self, row: int) -> NodeZones | None:
        """Return a node's zones as reported."""
        return self._rows[row].zones

    def free(self, row: int, view: View = View.FREE) -> Zones:
        """Return what is free in each zone of a node, ascending by id."""
        it = self._rows[row]
        if view is View.TOTAL:
            return it.zones.totals if it.zones is not None else []
        return it.seen(view)

    def amounts(self, row: int, resource: str) -> tuple[int, int]:
        """Return what pods may have of a resource in all zones of a row, and what is not free of it."""
        it = self._rows[row]
        if it.zones is None:
            return 0, 0
        offered = sum(zone.get(resource, 0) for zone in it.zones.offered)
        capacity = offered + sum(zone.get(resource, 0) for zone in it.zones.held)
        return capacity, capacity - sum(zone.get(resource, 0) for zone in it.free)

    def block(self, row: int) -> Block:
        """Return the block of a row whose zones are known."""
        return self.blocks[int(self.kinds[row])]

    def cells(self, block: Block, resource: str, view: View = View.FREE) -> Cells:
        """Return a resource's cells in a block."""
        key = (view, resource)
        cells = block.cells.get(key)
        if cells is None:
            count = len(block.rows)
            cells = block.cells[key] = Cells(
                amounts=np.full((count, block.size), -1, dtype=np.int64, order="F"),
                units=np.ones((count, block.size), order="F"),
                known=np.zeros(count, dtype=np.bool_),
                aligned=np.zeros(count, dtype=np.bool_),
            )
            for index, row in enumerate(block.rows.tolist()):
                if self.indices[row] == index and self.block(row) is block:
                    self._write_cells(cells, index, self._rows[row], key)
            if len(block.cells) > _CELLS_REMEMBERED:
                block.cells.popitem(last=False)
        block.cells.move_to_end(key)
        return cells

    def _enter_block(self, row: int, zones: NodeZones) -> None:
        kind = self._kind(
            len(zones.ids), _POLICIES[zones.policy], is_pod_scope=zones.scope == "pod"
        )
        block = self.blocks[kind]
        index = block.take()
        block.rows[index] = row
        block.orders[index] = np.argsort(np.array(zones.order, dtype=np.intp))
        block.is_ordered &= zones.order == tuple(range(block.size))
        block.costs[index] = self._cost_id(zones.costs)
        self.kinds[row], self.indices[row] = kind, index
        self.policy[row], self.is_pod_scope[row] = block.policy, block.is_pod_scope
        self.max_numa_nodes[row] = zones.max_numa_nodes

    def _kind(self, size: int, policy: int, *, is_pod_scope: bool) -> int:
        key = (size, policy, is_pod_scope)
        if key not in self._kind_of:
            self._kind_of[key] = len(self.blocks)
            self.blocks.append(Block(size, policy, is_pod_scope=is_pod_scope))
        return self._kind_of[key]

    def _leave_block(self, row: int, it: _Row) -> None:
        if it.zones is not None:
            self.block(row).give_back(int(self.indices[row]))

    def _cost_id(self, costs: tuple[tuple[int, ...], ...]) -> int:
        if costs not in self._cost_ids and len(self.costs) >= _COSTS_REMEMBERED:
            # Every machine of a kind has the same; so many kinds is somebody's noise.
            costs = tuple((-1,) * len(costs) for _ in costs)
        known = self._cost_ids.get(costs)
        if known is None:
            known = self._cost_ids[costs] = len(self.costs)
            self.costs.append(costs)
        return known

    def _recount(self, row: int) -> None:
        it = self._rows[row]
        zones = it.zones
        if zones is None:
            self.state[row] = MISSING
            self.unreported[row] = 0
            self.coming[row] = NONE_COMES
            return
        self.state[row] = _STATES[zones.freshness]
        it.free = [dict(zone) for zone in zones.offered]
        it.doubtful = it.most = it.free
        self._give_back(it, zones)
        self.is_grouped[row] = any(arithmetic.is_across(zones, usage) for usage in it.held.values())
        it.arrivals.recount(it.held, zones)
        coming = it.arrivals.shapes
        self.coming[row] = NONE_COMES
        if self.charging is Charging.PREDICTED:
            for key, usage in it.held.items():
                if key not in coming:
                    self._take(it, zones, key, usage)
            it.arrivals.settled = [dict(zone) for zone in it.free]
            for key in coming:
                self._take(it, zones, key, it.held[key])
            self._publish_coming(row, it)
        unreported = [usage for key, usage in it.held.items() if key not in zones.reported]
        if self.charging is not Charging.PREDICTED:
            for usage in unreported:
                self._reserve(row, it, usage)
        self.unreported[row] = sum(bool(usage.containers) for usage in unreported)
        self._publish(row, it)

    def _give_back(self, it: _Row, zones: NodeZones) -> None:
        """Add what pods held that are gone and in the report, where they lay by the same report."""
        lain = {key: self._lies(zones, key, usage) for key, usage in it.leaving.items()}
        it.leaving = {
            key: usage
            for key, usage in it.leaving.items()
            if lain[key] is not None and key not in it.held
        }
        if self.charging is not Charging.PREDICTED:
            return
        slots = {id_: slot for slot, id_ in enumerate(zones.ids)}
        for key in it.leaving:
            for id_, amounts in lain[key] or ():
                if id_ in slots:
                    arithmetic.give(it.free, slots[id_], amounts, zones.totals[slots[id_]])

    def _lies(
        self, zones: NodeZones, key: str, usage: NumaUsage
    ) -> Sequence[tuple[int, Amounts]] | None:
        """Return what a pod that the report counts has of which zone, None where nobody knows."""
        observed = zones.observed.get(key)
        if observed is not None and len(observed) == len(usage.containers):
            return tuple(zip(observed, usage.containers, strict=True))
        if self.presumes and key in zones.reported:
            return usage.zones
        return None

    def _compare(self, it: _Row, key: str, usage: NumaUsage) -> None:
        """Count once whether a pod that we placed lies in the zones that were foreseen."""
        if it.zones is None or not usage.zones or key in it.compared:
            return
        observed = it.zones.observed.get(key)
        if observed is None:
            return
        it.compared.add(key)
        if {id_ for id_, amounts in usage.zones if amounts} == {
            id_ for id_ in observed if id_ >= 0
        }:
            self.hits += 1
        else:
            self.misses += 1

    def _take(self, it: _Row, zones: NodeZones, key: str, usage: NumaUsage) -> None:
        """Take a pod off; of one that the report counts, what its init containers hold."""
        is_counted, observed = key in zones.reported, zones.observed.get(key, ())
        if not usage.left and (is_counted or not usage.containers):
            return
        if it.doubtful is it.free:
            it.doubtful = [dict(zone) for zone in it.free]
        if usage.left and it.most is it.free:
            it.most = [dict(zone) for zone in it.free]
        if is_counted:
            arithmetic.take_left(zones, it.doubtful, usage, observed)
        else:
            arithmetic.doubt(zones, it.doubtful, usage)
            is_open = it.arrivals.lies_as_it_comes(key, usage, zones)
            lying = usage._replace(zones=None) if is_open else usage
            for free in (it.free,) if it.most is it.free else (it.free, it.most):
                arithmetic.take_given(zones, free, lying)
        if is_counted or usage.zones is None:
            arithmetic.take_left(zones, it.free, usage, observed)

    def _reserve(self, row: int, it: _Row, usage: NumaUsage) -> None:
        """Take off what upstream's cache takes off."""
        if usage.reserved is None:
            return
        if self.charging is Charging.NODE_IS_CLOSED and not usage.is_bound:
            self.state[row] = UNRELIABLE
        elif self.charging is Charging.EVERY_ZONE:
            for slot in range(len(it.free)):
                arithmetic.take(it.free, slot, usage.reserved[1 if self._is_strict else 0])

    def _publish_coming(self, row: int, it: _Row) -> None:
        self.coming[row] = NONE_COMES if self.presumes else it.arrivals.shape

    def _publish(self, row: int, it: _Row) -> None:
        self.has_leftovers[row] = it.most is not it.free
        for key, cells in self.block(row).cells.items():
            self._write_cells(cells, int(self.indices[row]), it, key)

    def _publish_amounts(self, row: int, it: _Row) -> None:
        """Write what is left, where all else stands as it was."""
        index = int(self.indices[row])
        self.has_leftovers[row] = it.most is not it.free
        for (view, resource), cells in self.block(row).cells.items():
            if view is not View.TOTAL:
                self._write_amounts(cells, index, it.seen(view), resource)

    def _write_cells(self, cells: Cells, index: int, it: _Row, key: tuple[View, str]) -> None:
        view, resource = key
        zones = it.zones
        if zones is None:
            return
        numbers = zones.totals if view is View.TOTAL else it.seen(view)
        self._write_amounts(cells, index, numbers, resource)
        cells.known[index] = is_known(resource, zones.allocatable)
        cells.aligned[index] = zones.aligns(resource)

    def _write_amounts(self, cells: Cells, index: int, numbers: Zones, resource: str) -> None:
        amounts = [zone.get(resource, -1) for zone in numbers]
        scale = scale_of(resource)
        cells.amounts[index] = amounts
        cells.units[index] = [-(-amount // scale) if amount > 0 else 1 for amount in amounts]


def rows_of(array: NDArray[_Number], at: NDArray[np.intp] | slice) -> NDArray[_Number]:
    """Return some rows of an array of rows and zones that lies zone by zone in memory, as it does.

    Not to be written to: of a slice it is no copy.
    """
    if not isinstance(at, slice):
        return array.T.take(at, axis=1).T
    found = array[at]
    found.flags.writeable = False
    return found


def _grow(array: NDArray[_Number], rows: int) -> NDArray[_Number]:
    grown = np.zeros((rows, *array.shape[1:]), dtype=array.dtype, order="F")
    grown[: len(array)] = array
    return grown
