"""Power columns: per node its capacity, CPU usage and curve, and what pods add that metrics do not show.

A pod counts from the answer that places it until the node's usage was sampled, window and all, after it
began to run. What it counts meanwhile depends on the rule, so three sums stand side by side:

    unseen    LeastIncrease: the whole request of each such pod, of which it counts `used_parts`
    pending   WAOv2: the request of each pod that is bound or on its way and not running
    recent    WAOv1: v - p of each pod with an assumed usage v until its own usage p, 0 where it is not known,
              reaches v / 2, whatever the node's usage shows

What share of its request a pod uses is learned from the pods that metrics show, of all nodes together: the
usage of those nodes by what the pods there ask for. System daemons are in the usage too, so it is never too low.

Amounts are billionths of a core, -1 for a usage that is not known. Curves are padded on the right.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import NodeInventory, Power
from berthmaster.api.objects import Node
from berthmaster.api.quantities import NANO, QuantityError, parse_nanocores
from berthmaster.concerns.power.questions import TOLERANCE_CORES
from berthmaster.concerns.power.request import SHARE_PARTS, PowerUsage
from berthmaster.concerns.shape import Holder, Rows

UNKNOWN_USAGE = -1

# No share is learned from pods that ask for less in all, and none below a tenth.
_LEAST_ASKED = 10 * NANO
_LEAST_PARTS = SHARE_PARTS // 10

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Widths are powers of two, and wider than any curve: a row's points are searched by halving.
_FIRST_POINTS = 8
# More cores than there are; where a row has no more points.
_BEYOND = 1e12


@dataclass(slots=True)
class _Row:
    """What stands behind a row's numbers."""

    power: Power | None = None
    name: str = ""
    points: list[tuple[float, float]] = field(default_factory=list)
    held: dict[str, PowerUsage] = field(default_factory=dict)
    # The whole requests of pods that the usage shows, or would if it were known.
    shown: dict[str, int] = field(default_factory=dict)
    # v1's assumed usages that pods have not reached half of.
    assumed: dict[str, int] = field(default_factory=dict)
    # What the row adds to what is learned: its usage, and what `shown` comes to.
    learned: tuple[int, int] = (0, 0)


class PowerColumns:
    """Arrays by row; `cores` and `watts` are the points of the curves, rows by points."""

    def __init__(self) -> None:
        self.is_node: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.is_known: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.capacity: Integers = np.zeros(0, dtype=np.int64)
        self.usage: Integers = np.zeros(0, dtype=np.int64)
        self.unseen: Integers = np.zeros(0, dtype=np.int64)
        self.pending: Integers = np.zeros(0, dtype=np.int64)
        self.recent: Integers = np.zeros(0, dtype=np.int64)
        # Watts before a pod comes, with the share that was learned; NaN where they are not known.
        self.before: Floats = np.zeros(0)
        self.cores: Floats = np.zeros((0, _FIRST_POINTS))
        self.watts: Floats = np.zeros((0, _FIRST_POINTS))
        self.exponential: Floats = np.zeros((3, 0))
        self.known = 0
        self._rows: list[_Row] = []
        self._used = self._asked = 0
        self._parts = SHARE_PARTS

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        grown = rows - len(self._rows)
        for name in ("is_node", "is_known", "capacity", "usage", "unseen", "pending", "recent"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros(grown, dtype=array.dtype)]))
        points = self.cores.shape[1]
        self.before = np.concatenate([self.before, np.full(grown, np.nan)])
        self.cores = np.concatenate([self.cores, np.full((grown, points), _BEYOND)])
        self.watts = np.concatenate([self.watts, np.full((grown, points), np.nan)])
        self.exponential = np.concatenate([self.exponential, np.full((3, grown), np.nan)], axis=1)
        self._rows.extend(_Row() for _ in range(grown))

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over a node's power; pods that its usage shows by now count no more."""
        it = self._rows[row]
        it.name = node.metadata.name
        it.power = inventory.status.power if inventory is not None else None
        self.is_node[row] = True
        self.capacity[row] = _capacity(node)
        self._write_power(row, it.power)
        for key in [key for key, usage in it.held.items() if _is_shown(usage, it.power)]:
            it.shown[key] = it.held.pop(key).whole
        self._add_up(row)

    def clear(self, row: int) -> None:
        """Forget the node and everything that counts there."""
        self._rows[row] = _Row(learned=self._rows[row].learned)
        self.is_node[row] = False
        self.capacity[row] = 0
        self._write_power(row, None)
        self._add_up(row)

    def charge(self, row: int, holder: Holder, usage: PowerUsage) -> None:
        """Let a pod or an answer count, unless metrics show it already."""
        it = self._rows[row]
        if usage.assumed:
            it.assumed[holder.key] = usage.assumed
        if _is_shown(usage, it.power):
            it.shown[holder.key] = usage.whole
        else:
            it.held[holder.key] = usage
        self._add_up(row)

    def release(self, row: int, holder: Holder) -> None:
        """Let a holder count no more; unknown holders are ignored."""
        it = self._rows[row]
        it.assumed.pop(holder.key, None)
        if it.held.pop(holder.key, None) is not None or it.shown.pop(holder.key, None) is not None:
            self._add_up(row)

    def rename(self, row: int, before: str, after: str) -> None:
        """Let another holder count as one does."""
        it = self._rows[row]
        if before in it.assumed:
            it.assumed[after] = it.assumed.pop(before)
        if before in it.held:
            it.held[after] = it.held.pop(before)
        if before in it.shown:
            it.shown[after] = it.shown.pop(before)

    def used_parts(self) -> int:
        """Return how many of `SHARE_PARTS` of their requests pods use, rounded up; all until enough is known.

        Worked: nodes use 12 cores, and the pods that they show ask for 30 -> 8 of 20.
        """
        parts = SHARE_PARTS
        if self._asked >= _LEAST_ASKED:
            parts = min(max(-(-SHARE_PARTS * self._used // self._asked), _LEAST_PARTS), SHARE_PARTS)
        if parts != self._parts:
            self._parts = parts
            every = np.arange(len(self._rows), dtype=np.intp)
            self.before = self.watts_at(every, self.usage_before(every, parts) / NANO)
        return parts

    def usage_before(self, rows: Rows, parts: int) -> Integers:
        """Return each row's CPU usage with what pods add that it does not show."""
        usage: Integers = self.usage[rows] + self.unseen[rows] * parts // SHARE_PARTS
        return usage

    def watts_before(self, rows: Rows, parts: int) -> Floats:
        """Return each row's watts at that usage; NaN where they are not known."""
        if parts == self._parts:
            return self.before[rows]
        return self.watts_at(rows, self.usage_before(rows, parts) / NANO)

    def power(self, row: int) -> Power | None:
        """Return what is known of the row's power."""
        return self._rows[row].power

    def points(self, row: int) -> list[tuple[float, float]]:
        """Return the row's curve as cores and watts, NaN watts in a gap."""
        return self._rows[row].points

    def unmetered(self) -> str:
        """Return the first node by name whose usage is not known, empty if there is none."""
        rows = np.flatnonzero(self.is_node & (self.usage == UNKNOWN_USAGE))
        return min((self._rows[row].name for row in rows), default="")

    def watts_at(self, rows: Rows, cores: Floats) -> Floats:
        """Return each row's watts at a CPU usage of its own; NaN where the curve is not known.

        A point within the tolerance is taken as it is; between two points the curve is straight, and
        beyond its ends and beside a gap it is not known. Worked: points 0: 100, 4: 140 -> 130 at 3.
        """
        if len(rows) == 1:
            return np.array([self._watts_of(int(rows[0]), float(cores[0]))])
        width = self.cores.shape[1]
        every, reached = self.cores.ravel(), cores + TOLERANCE_CORES
        # The last point that is reached, by halving: behind the points of a row there is room.
        before = rows * width - 1
        left = before.copy()
        step = width // 2
        while step:
            left = np.where(every[left + step] < reached, left + step, left)
            step //= 2
        watts = self.watts.ravel()
        start, end, low, high = every[left], every[left + 1], watts[left], watts[left + 1]
        # Where a row has no points, both are beyond; its watts are no numbers anyway.
        span = np.where(end > start, end - start, 1.0)
        between = low + (high - low) * ((cores - start) / span)
        found: Floats = np.where(np.abs(cores - start) <= TOLERANCE_CORES, low, between)
        found[left == before] = np.nan
        return found

    def _watts_of(self, row: int, cores: float) -> float:
        """Return the same for one row, which comes up with every answer."""
        points = self._rows[row].points
        left = bisect_left(points, (cores + TOLERANCE_CORES,)) - 1
        if left < 0:
            return math.nan
        start, low = points[left]
        if abs(cores - start) <= TOLERANCE_CORES:
            return low
        if left + 1 == len(points):
            return math.nan
        end, high = points[left + 1]
        return low + (high - low) * ((cores - start) / (end - start))

    def _write_power(self, row: int, power: Power | None) -> None:
        usage = power.usage if power is not None else None
        self.usage[row] = UNKNOWN_USAGE if usage is None else usage
        points = self._rows[row].points = _points(power)
        if len(points) >= self.cores.shape[1]:
            self._widen(len(points))
        self.cores[row] = _BEYOND
        self.watts[row] = np.nan
        if points:
            self.cores[row, : len(points)], self.watts[row, : len(points)] = zip(
                *points, strict=True
            )
        form = power.exponential if power is not None else None
        self.exponential[:, row] = np.nan if form is None else (form.k0, form.k1, form.k2)
        is_known = usage is not None and bool(points)
        self.known += int(is_known) - int(self.is_known[row])
        self.is_known[row] = is_known

    def _widen(self, points: int) -> None:
        width = self.cores.shape[1]
        while width <= points:
            width *= 2
        shape = (len(self._rows), width - self.cores.shape[1])
        self.cores = np.concatenate([self.cores, np.full(shape, _BEYOND)], axis=1)
        self.watts = np.concatenate([self.watts, np.full(shape, np.nan)], axis=1)

    def _add_up(self, row: int) -> None:
        it = self._rows[row]
        used = {own.uid: own.usage for own in it.power.pod_usage} if it.power is not None else {}
        # Half reached once is reached for good.
        it.assumed = {key: own for key, own in it.assumed.items() if 2 * used.get(key, 0) < own}
        recent = sum(own - used.get(key, 0) for key, own in it.assumed.items())
        unseen = pending = 0
        for usage in it.held.values():
            unseen += usage.whole
            if usage.is_pending:
                pending += usage.plain
        self.unseen[row], self.pending[row], self.recent[row] = unseen, pending, recent
        before = int(self.usage[row]) + unseen * self._parts // SHARE_PARTS
        self.before[row] = self._watts_of(row, before / NANO)
        self._learn(row)

    def _learn(self, row: int) -> None:
        it = self._rows[row]
        usage, asked = int(self.usage[row]), sum(it.shown.values())
        learned = (usage, asked) if usage != UNKNOWN_USAGE and asked else (0, 0)
        self._used += learned[0] - it.learned[0]
        self._asked += learned[1] - it.learned[1]
        it.learned = learned


def _is_shown(usage: PowerUsage, power: Power | None) -> bool:
    """Tell whether the node's usage was sampled, window and all, while the pod ran.

    Where nothing is known of a node, pods that run there are not kept: the first sample will show them.
    """
    if usage.is_pending or usage.since_s is None:
        return False
    if power is None:
        return True
    if power.usage_sampled_s is None:
        return False
    return usage.since_s <= power.usage_sampled_s - power.usage_window_s


def _points(power: Power | None) -> list[tuple[float, float]]:
    """Return the curve's points with its gaps between them, as NaN."""
    curve = power.curve if power is not None else None
    if curve is None:
        return []
    points = [*zip(curve.cores, curve.watts, strict=False), *((it, np.nan) for it in curve.gaps)]
    return sorted(points, key=lambda point: point[0])


def _capacity(node: Node) -> int:
    try:
        return parse_nanocores((node.status.capacity or {}).get("cpu", "0"))
    except QuantityError:
        return 0
