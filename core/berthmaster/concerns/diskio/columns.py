"""Disk IO columns: what is free on each node's default disk, in normalised bytes per second.

    free = min(max(capacity, reported), reported + released pods that the report still counts)
           - pods held here that the report does not count

Without a report `reported` is the capacity and counts nobody. Subtracting stops at 0, as upstream's
does; a report below 0 stays below 0 and refuses even a request of nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import Bandwidth, Disk, DiskModel, NodeInventory
from berthmaster.api.objects import Node
from berthmaster.concerns.diskio.inventory import find_default
from berthmaster.concerns.diskio.models import compile_ratios, normalise
from berthmaster.concerns.diskio.shapes import BEST_EFFORT, Usage
from berthmaster.concerns.shape import Holder

UNREGISTERED, NO_DISK, NO_MODEL, READY = 0, 1, 2, 3

# What is asked comes from pods, so anybody may ask something new.
_NEEDS_REMEMBERED = 1024

Ratios = tuple[dict[str, Fraction], dict[str, Fraction]]
Triple = tuple[int, int, int]


@dataclass(slots=True)
class _Row:
    """What stands behind a row's numbers."""

    disk: Disk | None = None
    reported: frozenset[str] = frozenset()
    held: dict[str, tuple[Holder, Usage]] = field(default_factory=dict)
    # Released pods that the last report still counts.
    leaving: dict[str, Usage] = field(default_factory=dict)
    # Sums in normalised bytes per second: held and not reported; leaving.
    pending: tuple[int, int] = (0, 0)
    credit: tuple[int, int] = (0, 0)


class DiskIOColumns:
    """State, model index and bandwidth per node; `free` and `capacity`: read, write, total."""

    def __init__(self) -> None:
        self.state: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        self.model: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self.free: NDArray[np.int64] = np.zeros((3, 0), dtype=np.int64)
        self.capacity: NDArray[np.int64] = np.zeros((3, 0), dtype=np.int64)
        # What is held beyond what there is, which `free` does not show.
        self.excess: NDArray[np.int64] = np.zeros((3, 0), dtype=np.int64)
        # Index 0: no function is known, requests count un-scaled.
        self.models: list[Ratios | None] = [None]
        self.white_list: frozenset[str] = frozenset()
        self.takes_nearest = False
        self._model_index: dict[tuple[object, ...], int] = {}
        self._needs: dict[Usage, NDArray[np.int64]] = {}
        self._rows: list[_Row] = []

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        grown = rows - len(self._rows)
        self.state = np.concatenate([self.state, np.zeros(grown, dtype=np.uint8)])
        self.model = np.concatenate([self.model, np.zeros(grown, dtype=np.int32)])
        self.free = np.concatenate([self.free, np.zeros((3, grown), dtype=np.int64)], axis=1)
        self.capacity = np.concatenate(
            [self.capacity, np.zeros((3, grown), dtype=np.int64)], axis=1
        )
        self.excess = np.concatenate([self.excess, np.zeros((3, grown), dtype=np.int64)], axis=1)
        self._rows.extend(_Row() for _ in range(grown))

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over the disks of a node; holdings stay, and those a new report counts are in it."""
        del node
        disks = inventory.status.disks if inventory is not None else None
        it = self._rows[row]
        it.disk = find_default(disks) if disks is not None else None
        reported = it.disk.reported_pods if it.disk is not None else None
        it.reported = frozenset(reported or ())
        it.leaving = {key: usage for key, usage in it.leaving.items() if key in it.reported}
        if disks is None:
            self.state[row] = UNREGISTERED
        elif it.disk is None:
            self.state[row] = NO_DISK
        else:
            self.state[row] = NO_MODEL if it.disk.function is None else READY
        self.model[row] = self._intern(it.disk.function if it.disk is not None else None)
        self.capacity[:, row] = _triple(it.disk.capacity) if it.disk is not None else 0
        self._recount(row)

    def clear(self, row: int) -> None:
        """Forget the node and its holdings."""
        self._rows[row] = _Row()
        self.state[row] = UNREGISTERED
        self.model[row] = 0
        self.free[:, row] = self.capacity[:, row] = self.excess[:, row] = 0

    def charge(self, row: int, holder: Holder, usage: Usage) -> None:
        """Let a pod or an answer use the disk."""
        it = self._rows[row]
        it.held[holder.key] = (holder, usage)
        leaving = it.leaving.pop(holder.key, None)
        if leaving is not None:
            it.credit = self._shift(row, it.credit, leaving, -1)
        if self._counts(it, holder):
            it.pending = self._shift(row, it.pending, usage, 1)
        self._write_free(row)

    def release(self, row: int, holder: Holder, usage: Usage) -> None:
        """Give back what a holder used; unknown holders are ignored."""
        it = self._rows[row]
        if it.held.pop(holder.key, None) is None:
            return
        if holder.key in it.reported:
            if holder.namespace not in self.white_list:
                it.leaving[holder.key] = usage
                it.credit = self._shift(row, it.credit, usage, 1)
        elif self._counts(it, holder):
            it.pending = self._shift(row, it.pending, usage, -1)
        self._write_free(row)

    def rename(self, row: int, before: Holder, after: Holder, usage: Usage) -> bool:
        """Let another holder have what one has; return whether the row is another by it."""
        it = self._rows[row]
        is_same = before.key in it.held and after.key not in it.leaving
        if is_same and self._counts(it, before) == self._counts(it, after):
            del it.held[before.key]
            it.held[after.key] = (after, usage)
            return False
        self.release(row, before, usage)
        self.charge(row, after, usage)
        return True

    def configure(self, white_list: frozenset[str], *, takes_nearest: bool) -> None:
        """Leave the pods of these namespaces out of the books, and recount every row.

        `takes_nearest`: pods in which only the policy `Nearest` sees no fault count as it says, too;
        otherwise they count as the default.
        """
        if (white_list, takes_nearest) == (self.white_list, self.takes_nearest):
            return
        self.white_list, self.takes_nearest = white_list, takes_nearest
        for row in range(len(self._rows)):
            self._recount(row)

    def disk(self, row: int) -> Disk | None:
        """Return the node's default disk."""
        return self._rows[row].disk

    def needed(self, row: int, usage: Usage) -> tuple[int, int]:
        """Return a usage as read and write in the units of the row's disk."""
        if usage.needs_nearest and not self.takes_nearest:
            usage = BEST_EFFORT
        return normalise(usage, self.models[self.model[row]])

    def needs(self, usage: Usage) -> NDArray[np.int64]:
        """Return read, write and total that a usage is in the units of each model's disks."""
        needs = self._needs.get(usage)
        if needs is None:
            if len(self._needs) >= _NEEDS_REMEMBERED:
                self._needs.clear()
            pairs = [normalise(usage, it) for it in self.models]
            needs = np.array([(*pair, sum(pair)) for pair in pairs], dtype=np.int64).T.copy()
            self._needs[usage] = needs
        return needs

    def _counts(self, it: _Row, holder: Holder) -> bool:
        return holder.key not in it.reported and holder.namespace not in self.white_list

    def _shift(self, row: int, sums: tuple[int, int], usage: Usage, sign: int) -> tuple[int, int]:
        read, write = self.needed(row, usage)
        return sums[0] + sign * read, sums[1] + sign * write

    def _recount(self, row: int) -> None:
        it = self._rows[row]
        it.pending = it.credit = (0, 0)
        for holder, usage in it.held.values():
            if self._counts(it, holder):
                it.pending = self._shift(row, it.pending, usage, 1)
        for usage in it.leaving.values():
            it.credit = self._shift(row, it.credit, usage, 1)
        self._write_free(row)

    def _write_free(self, row: int) -> None:
        it = self._rows[row]
        if it.disk is None:
            self.free[:, row] = self.excess[:, row] = 0
            return
        capacity = _triple(it.disk.capacity)
        base = capacity if it.disk.allocable is None else _triple(it.disk.allocable)
        credit = (*it.credit, sum(it.credit))
        pending = (*it.pending, sum(it.pending))
        for dimension in range(3):
            # A report above the capacity stands, as upstream has it; a release never lifts past it.
            limit = max(capacity[dimension], base[dimension])
            most = min(limit, base[dimension] + credit[dimension])
            left = most - pending[dimension]
            self.free[dimension, row] = free = max(left, min(0, most))
            self.excess[dimension, row] = free - left

    def _intern(self, function: DiskModel | None) -> int:
        if function is None:
            return 0
        key = (
            tuple(sorted(function.read_ratio.items())),
            tuple(sorted(function.write_ratio.items())),
        )
        index = self._model_index.get(key)
        if index is None:
            # Compiled first: a function that cannot be must not leave an index behind.
            self.models.append(compile_ratios(function))
            self._needs.clear()
            index = self._model_index[key] = len(self.models) - 1
        return index


def _triple(bandwidth: Bandwidth) -> Triple:
    return bandwidth.read, bandwidth.write, bandwidth.total
