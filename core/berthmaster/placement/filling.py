"""How full nodes are, by concern and resource: the table's books as amounts, for whoever looks at them.

Nothing is measured while a decision is made. Who asks gets the rows that changed since the last time
measured anew, so that a cluster at rest costs one comparison of arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.shape import AnyMeasuredConcern, MeasuredConcern
from berthmaster.placement.ledger import Entry
from berthmaster.placement.table import NodeTable

# Sums of floats are not exact.
_TOLERANCE = 1e-9


class Resource(NamedTuple):
    """What is measured: a resource of a concern, and the base unit of its amounts."""

    concern: str
    resource: str
    unit: str


class Level(NamedTuple):
    """How much of a resource a node has, or all nodes together, and how much of it is used."""

    capacity: float
    used: float

    @property
    def is_over(self) -> bool:
        """Return whether more is used than there is."""
        return self.used > self.capacity * (1 + _TOLERANCE)


class Filling:
    """The fill of every row; call `refresh` before reading."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self._concerns: dict[int, AnyMeasuredConcern] = {
            index: concern
            for index, concern in enumerate(table.concerns)
            if isinstance(concern, MeasuredConcern)
        }
        self._tick = -1
        nobody = np.zeros(0, dtype=np.intp)
        self.resources: tuple[Resource, ...] = tuple(
            Resource(concern.name, fill.resource, fill.unit)
            for concern in self._concerns.values()
            for fill in concern.fills(table.columns[concern.name], nobody)
        )
        # Capacity and use, by resource and row.
        self._levels: NDArray[np.float64] = np.zeros((2, len(self.resources), table.size))

    def refresh(self) -> None:
        """Measure the rows that changed."""
        table = self._table
        grown = table.size - self._levels.shape[2]
        if grown:
            room = np.zeros((2, len(self.resources), grown))
            self._levels = np.concatenate([self._levels, room], axis=2)
        rows = table.changed_since(self._tick)
        self._tick = table.tick
        if not len(rows):
            return
        at = 0
        for concern in self._concerns.values():
            for fill in concern.fills(table.columns[concern.name], rows):
                self._levels[:, at, rows] = fill.capacity, fill.used
                at += 1

    def totals(self) -> Iterator[tuple[Resource, Level, int]]:
        """Yield for each resource what all nodes together have and use, and how many are past the line."""
        alive = self._table.alive
        capacity, used = self._levels[:, :, alive]
        over = np.count_nonzero(used > capacity * (1 + _TOLERANCE), axis=1)
        for at, resource in enumerate(self.resources):
            level = Level(float(capacity[at].sum()), float(used[at].sum()))
            yield resource, level, int(over[at])

    def fullest(self, count: int) -> list[str]:
        """Return so many nodes, by how much the resource is used of which they have least left, then name."""
        capacity, used = self._levels
        # Of what it has none of and uses some, a node is past the line, too.
        shares = np.divide(used, capacity, out=np.where(used > 0, np.inf, 0.0), where=capacity > 0)
        most = shares.max(axis=0, initial=0.0)
        rows = sorted(self._table.rows.items(), key=lambda it: (-most[it[1]], it[0]))
        return [name for name, _ in rows[:count]]

    def of_node(self, name: str) -> list[tuple[Resource, Level]]:
        """Return what a node has and what is used of it, resources that it has nothing of left out."""
        row = self._table.row_of(name)
        if row is None:
            return []
        levels = (Level(*map(float, self._levels[:, at, row])) for at in range(len(self.resources)))
        found = zip(self.resources, levels, strict=True)
        return [(it, level) for it, level in found if level.capacity or level.used]

    def taken(self, entry: Entry) -> dict[Resource, float]:
        """Return what a holding takes of its node; what it takes nothing of is left out."""
        row = self._table.row_of(entry.node)
        taken: dict[Resource, float] = {}
        if row is None:
            return taken
        units = {(it.concern, it.resource): it for it in self.resources}
        for index, usage in entry.usages:
            concern = self._concerns.get(index)
            if concern is None:
                continue
            columns = self._table.columns[concern.name]
            for resource, amount in concern.amounts(columns, row, entry.holder, usage).items():
                if amount:
                    taken[units[concern.name, resource]] = amount
        return taken
