"""XPU columns: what is free on each device of each node, in arrays of nodes by device index.

    free = max(0, memory - what pods have of it)

Reports play no part: what pods have is told by the pods alone. Behind the arrays are plain numbers per
node, which change by what comes and goes; when a node's devices change, what its pods have is read anew,
since it is by ids that some of them tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import XPU, NodeInventory, XPUNode
from berthmaster.api.names import SLICE_DIALECT
from berthmaster.api.objects import Node
from berthmaster.api.policy import PlacementPolicySpec, find_xpu_names
from berthmaster.api.xpu_names import DEFAULT_NAMES
from berthmaster.concerns.shape import Holder, Rows
from berthmaster.concerns.xpu.cards import CARDS
from berthmaster.concerns.xpu.holdings import (
    NOTHING,
    Devices,
    Held,
    XPUHolding,
    list_devices,
    resolve,
)

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_Number = TypeVar("_Number", bound=np.generic)

_NO_DEVICES = Devices("", {}, {})
_FIRST_WIDTH = 8


@dataclass(slots=True)
class _Row:
    """What stands behind a row's numbers."""

    node: XPUNode | None = None
    xpus: tuple[XPU, ...] = ()
    devices: Devices = _NO_DEVICES
    held: dict[str, tuple[Holder, XPUHolding, Held]] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    slices: int = 0
    pending: int = 0
    # Free memory by device in words, None while nobody has asked.
    words: tuple[str, ...] | None = None


class XPUColumns:
    """Arrays by row, or by row and device index; absent devices have size 0."""

    def __init__(self) -> None:
        self.names = DEFAULT_NAMES
        self.is_shared: Flags = np.zeros(0, dtype=np.bool_)
        self.cards: Ints = np.zeros(0, dtype=np.int64)
        self.registered: Ints = np.zeros(0, dtype=np.int64)
        # Cards go together by the table; else any will do.
        self.has_wings: Flags = np.zeros(0, dtype=np.bool_)
        self.pending: Ints = np.zeros(0, dtype=np.int64)
        # Free on healthy devices, less what pending pods may take of it.
        self.spare: Ints = np.zeros(0, dtype=np.int64)
        # Cards and slices, each a handle of the driver.
        self.handles: Ints = np.zeros(0, dtype=np.int64)
        self.sizes: Ints = np.zeros((0, _FIRST_WIDTH), dtype=np.int64)
        self.used: Ints = np.zeros((0, _FIRST_WIDTH), dtype=np.int64)
        self.entries: Ints = np.zeros((0, _FIRST_WIDTH), dtype=np.int64)
        # Free where new pods may go, else -1.
        self.open: Ints = np.zeros((0, _FIRST_WIDTH), dtype=np.int64)
        self.is_registered: Flags = np.zeros((0, _FIRST_WIDTH), dtype=np.bool_)
        # Which NUMA node, -1 for none that is known; which of the models that were seen so far.
        self.numa: Ints = np.zeros((0, _FIRST_WIDTH), dtype=np.int64)
        self.model: Ints = np.zeros((0, _FIRST_WIDTH), dtype=np.int64)
        self.models: dict[str, int] = {}
        # Rows with pods that their device plugin has not served, by what it may mistake them for.
        self.waiting: dict[tuple[str, int], dict[int, int]] = {}
        self._rows: list[_Row] = []

    @property
    def width(self) -> int:
        """Return one more than the highest device index there is room for."""
        return int(self.sizes.shape[1])

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self.is_shared = _grow(self.is_shared, rows)
        self.cards = _grow(self.cards, rows)
        self.registered = _grow(self.registered, rows)
        self.has_wings = _grow(self.has_wings, rows)
        self.pending = _grow(self.pending, rows)
        self.spare = _grow(self.spare, rows)
        self.handles = _grow(self.handles, rows)
        self.sizes = _grow(self.sizes, rows)
        self.used = _grow(self.used, rows)
        self.entries = _grow(self.entries, rows)
        self.open = _grow(self.open, rows, -1)
        self.is_registered = _grow(self.is_registered, rows)
        self.numa = _grow(self.numa, rows, -1)
        self.model = _grow(self.model, rows, -1)
        self._rows.extend(_Row() for _ in range(rows - len(self._rows)))

    def configure(self, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take the cluster's names; read every pod anew if they differ."""
        names = find_xpu_names(policies)
        if names == self.names:
            return
        self.names = names
        for row in range(len(self._rows)):
            self._recount(row)

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over a node's devices; what pods have stays, read anew."""
        it = self._rows[row]
        status = inventory.status if inventory is not None else None
        before = it.node, it.xpus, it.devices.node
        it.node = status.xpu if status is not None else None
        it.xpus = (status.xpus if status is not None else None) or ()
        name = node.metadata.name
        if (it.node, it.xpus, name) == before:
            return
        it.devices = list_devices(name, it.xpus)
        self._widen(max((xpu.index for xpu in it.xpus), default=0) + 1)
        self._write_facts(row, it)
        self._recount(row)

    def clear(self, row: int) -> None:
        """Forget the node and its holdings."""
        for _, _, held in self._rows[row].held.values():
            self._stop_waiting(row, held)
        it = self._rows[row] = _Row()
        self._write_facts(row, it)
        self._publish(row, it)

    def charge(self, row: int, holder: Holder, holding: XPUHolding) -> None:
        """Let a pod or an answer have what it says; one that is there is not charged twice."""
        self.release(row, holder)
        it = self._rows[row]
        held = resolve(holding, self.names, it.devices)
        it.held[holder.key] = (holder, holding, held)
        if held != NOTHING:
            self._take(row, it, held, 1)
            self._publish(row, it)

    def release(self, row: int, holder: Holder) -> None:
        """Give back what a holder had; unknown holders are ignored."""
        it = self._rows[row]
        found = it.held.pop(holder.key, None)
        if found is not None and found[2] != NOTHING:
            self._take(row, it, found[2], -1)
            self._publish(row, it)

    def rename(self, row: int, before: Holder, after: Holder) -> None:
        """Let another holder have what one has."""
        held = self._rows[row].held
        if before.key in held:
            held[after.key] = (after, *held.pop(before.key)[1:])

    def node(self, row: int) -> XPUNode | None:
        """Return how the row's devices are known."""
        return self._rows[row].node

    def xpus(self, row: int) -> tuple[XPU, ...]:
        """Return the row's devices."""
        return self._rows[row].xpus

    def name(self, row: int) -> str:
        """Return the node's name."""
        return self._rows[row].devices.node

    def find(self, rows: Rows, id_: str) -> list[tuple[int, int]]:
        """Return whose device has an id, by whatever source: place in `rows`, index of the device."""
        known = self._rows
        return [
            (at, index)
            for at, row in enumerate(rows.tolist())
            if (index := known[row].devices.indices.get(id_)) is not None
        ]

    def held(self, row: int) -> tuple[tuple[Holder, Held], ...]:
        """Return who has what of the row's devices."""
        return tuple((holder, held) for holder, _, held in self._rows[row].held.values())

    def held_by(self, row: int, holder: Holder) -> Held | None:
        """Return what a holder has of the row's devices, None if nothing."""
        found = self._rows[row].held.get(holder.key)
        return found[2] if found is not None else None

    def describe_free(self, row: int) -> tuple[str, ...]:
        """Return the free MiB of each of the row's devices, and why one takes no pods."""
        it = self._rows[row]
        if it.words is None:
            it.words = tuple(_describe_free(xpu, it.used.get(xpu.index, 0)) for xpu in it.xpus)
        return it.words

    def _write_facts(self, row: int, it: _Row) -> None:
        node = it.node
        self.is_shared[row] = node is not None and node.shared
        self.cards[row] = node.cards if node is not None else 0
        self.registered[row] = sum(bool(xpu.registered_id) for xpu in it.xpus)
        self.has_wings[row] = (node is None or node.topology != "None") and all(
            xpu.index < CARDS for xpu in it.xpus
        )
        self.sizes[row] = 0
        self.is_registered[row] = False
        self.numa[row] = self.model[row] = -1
        for xpu in it.xpus:
            self.numa[row, xpu.index] = xpu.numa_node
            self.model[row, xpu.index] = self.models.setdefault(xpu.model, len(self.models))
            self.sizes[row, xpu.index] = xpu.memory_mib
            self.is_registered[row, xpu.index] = bool(xpu.registered_id)

    def _recount(self, row: int) -> None:
        it = self._rows[row]
        for _, _, held in it.held.values():
            self._stop_waiting(row, held)
        it.used, it.entries, it.slices, it.pending = {}, {}, 0, 0
        for key, (holder, holding, _) in it.held.items():
            held = resolve(holding, self.names, it.devices)
            it.held[key] = (holder, holding, held)
            self._take(row, it, held, 1)
        self._publish(row, it)

    def _take(self, row: int, it: _Row, held: Held, sign: int) -> None:
        for index, mib in held.mib:
            it.used[index] = it.used.get(index, 0) + sign * mib
        for index, count in held.entries:
            it.entries[index] = it.entries.get(index, 0) + sign * count
            if held.dialect == SLICE_DIALECT:
                it.slices += sign * count
        it.pending += sign * held.pending_mib
        if held.waits_for is None:
            return
        if sign < 0:
            self._stop_waiting(row, held)
        else:
            rows = self.waiting.setdefault(held.waits_for, {})
            rows[row] = rows.get(row, 0) + 1

    def _stop_waiting(self, row: int, held: Held) -> None:
        if held.waits_for is None:
            return
        rows = self.waiting[held.waits_for]
        rows[row] -= 1
        if not rows[row]:
            del rows[row]
        if not rows:
            del self.waiting[held.waits_for]

    def _publish(self, row: int, it: _Row) -> None:
        it.words = None
        width = self.width
        used, entries, open_ = [0] * width, [0] * width, [-1] * width
        spare = -it.pending
        for xpu in it.xpus:
            index = xpu.index
            used[index] = it.used.get(index, 0)
            entries[index] = it.entries.get(index, 0)
            free = max(0, xpu.memory_mib - used[index])
            if xpu.healthy:
                spare += free
                if not xpu.cordoned:
                    open_[index] = free
        self.used[row], self.entries[row], self.open[row] = used, entries, open_
        self.pending[row], self.spare[row] = it.pending, spare
        self.handles[row] = len(it.xpus) + it.slices

    def _widen(self, width: int) -> None:
        if width <= self.width:
            return
        self.sizes = _widen(self.sizes, width)
        self.used = _widen(self.used, width)
        self.entries = _widen(self.entries, width)
        self.open = _widen(self.open, width, -1)
        self.is_registered = _widen(self.is_registered, width)
        self.numa = _widen(self.numa, width, -1)
        self.model = _widen(self.model, width, -1)


def _describe_free(xpu: XPU, used_mib: int) -> str:
    free = max(0, xpu.memory_mib - used_mib)
    if not xpu.healthy:
        return f"{free}(unhealthy)"
    return f"{free}(cordoned)" if xpu.cordoned else str(free)


def _grow(array: NDArray[_Number], rows: int, value: int = 0) -> NDArray[_Number]:
    shape = (rows - len(array), *array.shape[1:])
    return np.concatenate([array, np.full(shape, value, dtype=array.dtype)])


def _widen(array: NDArray[_Number], width: int, value: int = 0) -> NDArray[_Number]:
    shape = (len(array), width - array.shape[1])
    return np.concatenate([array, np.full(shape, value, dtype=array.dtype)], axis=1)
