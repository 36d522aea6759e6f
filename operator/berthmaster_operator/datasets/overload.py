"""When a gateway's node is busy: a reading that stays above a line, until it is below a lower one.

    busy       from when the reading has been above `above_percent` for `after_s`
    not busy   from when it is below `below_percent`, or there is no reading

Pure: the time comes in, and what is remembered between two looks is a value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from berthmaster.api.inventory import Bandwidth, Disk
from berthmaster.api.settings.dataset import GatewayOverload


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A node's load as last looked at; `above_since_s` is None while the reading is not above the line."""

    is_busy: bool = False
    above_since_s: float | None = None


def look(
    percent: float | None, before: Load, settings: GatewayOverload, *, now_s: float
) -> tuple[Load, float | None]:
    """Return the load now, and in how many seconds it changes if the reading stays as it is."""
    if percent is None or percent < settings.below_percent:
        return Load(), None
    if percent <= settings.above_percent:
        return replace(before, above_since_s=None), None
    since_s = now_s if before.above_since_s is None else before.above_since_s
    left_s = since_s + float(settings.after) - now_s
    is_busy = before.is_busy or left_s <= 0
    return Load(is_busy=is_busy, above_since_s=since_s), None if is_busy else left_s


def disk_percent(disks: Iterable[Disk] | None) -> float | None:
    """Return what is used of the busiest direction of the busiest disk; None without a report."""
    shares = [
        100 * (1 - free / capacity)
        for disk in disks or ()
        if disk.allocable is not None
        for capacity, free in _directions(disk.capacity, disk.allocable)
        if capacity > 0
    ]
    return max(shares, default=None)


def _directions(capacity: Bandwidth, free: Bandwidth) -> tuple[tuple[int, int], ...]:
    return (
        (capacity.read, free.read),
        (capacity.write, free.write),
        (capacity.total, free.total),
    )
