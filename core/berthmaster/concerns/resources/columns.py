"""What nodes offer and what is taken of it: one array per resource, one per label key asked for.

Names become small integers here: resources slots, label values codes, sets of taints ids. So a
question about 5,000 nodes is one look into an array however long the names are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Namespace, Node, Taint
from berthmaster.api.storage import (
    CSINode,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
)
from berthmaster.concerns.resources.labels import Ids, LabelColumns, grow
from berthmaster.concerns.resources.peers import Peers
from berthmaster.concerns.resources.request import (
    ANY_IP,
    CPU,
    MEMORY,
    PODS,
    Port,
    ResourcesUsage,
    read_capacity,
)
from berthmaster.concerns.resources.storage import Storage
from berthmaster.concerns.shape import Surrounding

Ints = NDArray[np.int64]
_NO_SCHEDULE, _NO_EXECUTE = "NoSchedule", "NoExecute"
_FILTERING_EFFECTS = (_NO_SCHEDULE, _NO_EXECUTE)
# What the node lifecycle controller makes of a condition: the key of a taint and its effects. It needs a moment for that, so a condition counts as its taint at once.
_TAINTS_OF_CONDITIONS = {
    ("Ready", "False"): ("node.kubernetes.io/not-ready", _FILTERING_EFFECTS),
    ("Ready", "Unknown"): ("node.kubernetes.io/unreachable", _FILTERING_EFFECTS),
    ("MemoryPressure", "True"): ("node.kubernetes.io/memory-pressure", (_NO_SCHEDULE,)),
    ("DiskPressure", "True"): ("node.kubernetes.io/disk-pressure", (_NO_SCHEDULE,)),
    ("PIDPressure", "True"): ("node.kubernetes.io/pid-pressure", (_NO_SCHEDULE,)),
    ("NetworkUnavailable", "True"): ("node.kubernetes.io/network-unavailable", (_NO_SCHEDULE,)),
}


class ResourcesColumns:
    """The arrays of all rows.

    `capacity[slot]` and `used[slot]` are indexed by row, as are `scored_cpu` (millicores) and
    `scored_memory` (bytes), the usage with kube-scheduler's substitutes. Slots exist for resources
    that a node has advertised and are never taken back; what pods hold of other resources is kept
    aside, so that a resource invented by a pod costs no array. Sums stay exact while a node's pods
    hold less than 2**63, which is 1,023 pods of `quantities.LIMIT` each.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.slots: dict[str, int] = {}
        self.resources: list[str] = []
        self.capacity: list[Ints] = []
        self.used: list[Ints] = []
        self.scored_cpu: Ints = np.zeros(0, dtype=np.int64)
        self.scored_memory: Ints = np.zeros(0, dtype=np.int64)
        self.labels = LabelColumns()
        self.taints = TaintColumn()
        self.ports = PortsInUse()
        self.peers = Peers()
        self.storage = Storage(self.labels)
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.namespace_changes = 0
        self.row_by_name: dict[str, int] = {}
        self._names: list[str] = []
        self._holders: list[dict[str, ResourcesUsage]] = []
        self._unadvertised: dict[int, dict[str, int]] = {}
        for resource in (CPU, MEMORY, PODS):
            self._slot(resource)

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1, keeping what is there."""
        grown = rows - self.rows
        self.rows = rows
        self.capacity = [grow(array, rows) for array in self.capacity]
        self.used = [grow(array, rows) for array in self.used]
        self.scored_cpu = grow(self.scored_cpu, rows)
        self.scored_memory = grow(self.scored_memory, rows)
        self.labels.resize(rows)
        self.taints.resize(rows)
        self.ports.resize(rows)
        self.peers.resize(rows)
        self.storage.resize(rows)
        self._names.extend("" for _ in range(grown))
        self._holders.extend({} for _ in range(grown))

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over what the node offers; without `allocatable` its capacity counts."""
        name, status = node.metadata.name, node.status
        self._names[row] = name
        self.row_by_name[name] = row
        self.storage.name_row(row, name)
        offered = status.capacity if status.allocatable is None else status.allocatable
        amounts = read_capacity(offered or {})
        for resource in amounts:
            self._slot(resource)
        for resource, slot in self.slots.items():
            self.capacity[slot][row] = amounts.get(resource, 0)
        self.labels.write(row, node.metadata.labels or {})
        self.taints.write(row, _taint_set(node))

    def clear(self, row: int) -> None:
        """Forget the node and everything charged to it."""
        for key in list(self._holders[row]):
            self.release(row, key)
        for array in self.capacity:
            array[row] = 0
        self.labels.write(row, {})
        self.taints.write(row, NO_TAINTS)
        if self.row_by_name.get(self._names[row]) == row:
            del self.row_by_name[self._names[row]]
            self.storage.name_row(None, self._names[row])
        self._names[row] = ""

    def charge(self, row: int, key: str, usage: ResourcesUsage) -> None:
        """Let a holder use the row; one that is there already is not charged twice."""
        if key not in self._holders[row]:
            self._holders[row][key] = usage
            self._count(row, usage, 1)
            for port in usage.ports:
                self.ports.take(row, port)
            if usage.peer is not None:
                self.peers.put(row, usage.peer)
                self.storage.use(row, usage.peer)

    def release(self, row: int, key: str) -> None:
        """Undo `charge`; an unknown holder is ignored."""
        usage = self._holders[row].pop(key, None)
        if usage is not None:
            self._count(row, usage, -1)
            for port in usage.ports:
                self.ports.give_back(row, port)
            if usage.peer is not None:
                self.peers.take(row, usage.peer)
                self.storage.leave(row, usage.peer)

    def rename(self, row: int, before: str, after: str) -> None:
        """Let another holder have what one has."""
        holders = self._holders[row]
        if before in holders and after not in holders:
            holders[after] = holders.pop(before)
        else:
            self.release(row, before)

    def observe(self, found: Surrounding, *, is_gone: bool) -> None:
        """Take over what is around the nodes."""
        if isinstance(found, Namespace):
            labels = found.metadata.labels or {}
            if is_gone:
                self.namespaces.pop(found.metadata.name, None)
            elif self.namespaces.get(found.metadata.name) != labels:
                self.namespaces[found.metadata.name] = labels
                self.namespace_changes += 1
        elif isinstance(found, PersistentVolumeClaim):
            self.storage.take_claim(found, is_gone=is_gone)
        elif isinstance(found, PersistentVolume):
            self.storage.take_volume(found, is_gone=is_gone)
        elif isinstance(found, StorageClass):
            self.storage.take_class(found, is_gone=is_gone)
        elif isinstance(found, CSINode):
            self.storage.take_csi_node(found, is_gone=is_gone)

    def amounts(self, row: int, resource: str) -> tuple[int, int]:
        """Return (capacity, used) of a resource on a row."""
        slot = self.slots.get(resource)
        if slot is None:
            return 0, self._unadvertised.get(row, {}).get(resource, 0)
        return int(self.capacity[slot][row]), int(self.used[slot][row])

    def free(self, row: int) -> dict[str, int]:
        """Return what a row has left of each resource that any node has advertised."""
        return {
            resource: int(self.capacity[slot][row] - self.used[slot][row])
            for resource, slot in self.slots.items()
        }

    def _count(self, row: int, usage: ResourcesUsage, sign: int) -> None:
        self.scored_cpu[row] += sign * usage.scored_cpu
        self.scored_memory[row] += sign * usage.scored_memory
        for resource, amount in usage.amounts:
            slot = self.slots.get(resource)
            if slot is not None:
                self.used[slot][row] += sign * amount
                continue
            aside = self._unadvertised.setdefault(row, {})
            aside[resource] = aside.get(resource, 0) + sign * amount
            if not aside[resource]:
                del aside[resource]
            if not aside:
                del self._unadvertised[row]

    def _slot(self, resource: str) -> None:
        if resource in self.slots:
            return
        used = np.zeros(self.rows, dtype=np.int64)
        for row in list(self._unadvertised):
            aside = self._unadvertised[row]
            used[row] = aside.pop(resource, 0)
            if not aside:
                del self._unadvertised[row]
        self.slots[resource] = len(self.resources)
        self.resources.append(resource)
        self.used.append(used)
        self.capacity.append(np.zeros(self.rows, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class TaintSet:
    """The taints of a node that keep pods away; `cordoned` is `spec.unschedulable`."""

    cordoned: bool = False
    taints: tuple[Taint, ...] = ()


NO_TAINTS = TaintSet()


class TaintColumn:
    """An id per row for its set of taints; equal sets share an id, unused ids are used again.

    Values of taints may be times, so sets come and go and are counted.
    """

    def __init__(self) -> None:
        self.ids: Ids = np.zeros(0, dtype=np.int32)
        self.sets: list[TaintSet] = [NO_TAINTS]
        self._id_by_set: dict[TaintSet, int] = {NO_TAINTS: 0}
        # The empty set, id 0, is not counted and never given up.
        self._rows: list[int] = [1]
        self._free: list[int] = []

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self.ids = grow(self.ids, rows)

    def write(self, row: int, taints: TaintSet) -> None:
        """Set a row's taints."""
        old = int(self.ids[row])
        if self.sets[old] == taints:
            return
        self.ids[row] = self._take(taints)
        if old:
            self._rows[old] -= 1
            if not self._rows[old]:
                del self._id_by_set[self.sets[old]]
                self.sets[old] = NO_TAINTS
                self._free.append(old)

    def _take(self, taints: TaintSet) -> int:
        known = self._id_by_set.get(taints)
        if known is None:
            if self._free:
                known = self._free.pop()
                self.sets[known] = taints
            else:
                known = len(self.sets)
                self.sets.append(taints)
                self._rows.append(0)
            self._id_by_set[taints] = known
        if known:
            self._rows[known] += 1
        return known


class PortsInUse:
    """Host ports, sparse: few pods take any. A pod on 0.0.0.0 takes the port on every address."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, int], dict[int, dict[str, int]]] = {}
        self._rows = 0

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self._rows = rows

    def take(self, row: int, port: Port) -> None:
        """Count one more user of the port on the row."""
        rows = self._users.setdefault((port.protocol, port.number), {})
        addresses = rows.setdefault(row, {})
        addresses[port.ip] = addresses.get(port.ip, 0) + 1

    def give_back(self, row: int, port: Port) -> None:
        """Count one user less."""
        rows = self._users[port.protocol, port.number]
        addresses = rows[row]
        addresses[port.ip] -= 1
        if not addresses[port.ip]:
            del addresses[port.ip]
        if not addresses:
            del rows[row]
        if not rows:
            del self._users[port.protocol, port.number]

    def taken(self, port: Port, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return for each of the given rows whether the port is taken there."""
        users = self._users.get((port.protocol, port.number), {})
        if len(rows) < len(users):
            busy = [_clash(users.get(row, {}), port.ip) for row in rows.tolist()]
            return np.array(busy, dtype=np.bool_)
        is_busy = np.zeros(self._rows, dtype=np.bool_)
        is_busy[[row for row, addresses in users.items() if _clash(addresses, port.ip)]] = True
        return is_busy[rows]


def _clash(addresses: Mapping[str, int], ip: str) -> bool:
    if ip == ANY_IP:
        return bool(addresses)
    return ip in addresses or ANY_IP in addresses


def _taint_set(node: Node) -> TaintSet:
    """Return the taints that are there, then those that the conditions are about to bring."""
    taints = [it for it in node.spec.taints or () if it.effect in _FILTERING_EFFECTS]
    there = {(it.key, it.effect) for it in taints}
    for condition in node.status.conditions or ():
        key, effects = _TAINTS_OF_CONDITIONS.get((condition.type, condition.status), ("", ()))
        taints += [Taint(key=key, effect=it) for it in effects if (key, it) not in there]
    return TaintSet(node.spec.unschedulable, tuple(taints))
