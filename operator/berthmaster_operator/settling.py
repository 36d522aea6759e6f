"""What of new numbers to publish: what falls at once, what rises once it has lasted.

A driver that measures says something else every few seconds, and each inventory that is written costs
the API server and every reader. So, for a report that counts the same pods as the published one:

* a number that **falls** is published at once: readers never see more than there is;
* numbers that **rise** are published when they have stayed above the published ones for `HOLD_S`, and
  then the lowest of that time, if it is more than one part in `SLACK_DIVISOR` of the capacity higher.

So a value that flips costs no write as long as it flips faster than `HOLD_S`; what stands is the lower
one. A report that counts other pods, another capacity or model, and the change between reports and
our own books are published at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from berthmaster.api.inventory import Bandwidth, Disk, NodeInventoryStatus
from berthmaster.concerns.diskio.inventory import describe_free, find_default

# Two reports of the reference driver, which flips between two numbers every 5 s.
HOLD_S = 10.0
SLACK_DIVISOR = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """Since when (monotonic seconds) a disk's numbers are above the published, and their lowest."""

    since_s: float
    lowest: Bandwidth


Rises = Mapping[str, Rise]


def settle(
    computed: NodeInventoryStatus,
    published: NodeInventoryStatus | None,
    rises: Rises,
    *,
    now_s: float,
) -> tuple[NodeInventoryStatus, Rises, float | None]:
    """Return what to publish, the rises under way, and in how many seconds one may have lasted."""
    if computed.disks is None or published is None or published.disks is None:
        return computed, {}, None
    old = {disk.id: disk for disk in published.disks}
    disks: list[Disk] = []
    going_on: dict[str, Rise] = {}
    waits_s: list[float] = []
    for disk in computed.disks:
        allocable, rise = _settle_disk(disk, old.get(disk.id), rises.get(disk.id), now_s)
        disks.append(disk.model_copy(update={"allocable": allocable}))
        if rise is not None:
            going_on[disk.id] = rise
            left_s = rise.since_s + HOLD_S - now_s
            # One that has lasted is published now; what may be left of it rises anew.
            waits_s.append(left_s if left_s > 0 else HOLD_S)
    if tuple(disks) == computed.disks:
        return computed, going_on, None
    default = find_default(tuple(disks))
    update = {"disks": tuple(disks), "free_disk": describe_free(default)}
    return computed.model_copy(update=update), going_on, min(waits_s, default=None)


def _settle_disk(
    new: Disk, old: Disk | None, rise: Rise | None, now_s: float
) -> tuple[Bandwidth | None, Rise | None]:
    if old is None or new.allocable is None or old.allocable is None:
        return new.allocable, None
    if new.model_copy(update={"allocable": old.allocable}) != old:
        return new.allocable, None
    published = _lower(new.allocable, old.allocable)
    if not _rises_enough(new.allocable, published, new.capacity):
        # Nothing to wait for, and whatever rose before has come back.
        return published, None
    if rise is None or not _rises_enough(rise.lowest, published, new.capacity):
        rise = Rise(since_s=now_s, lowest=new.allocable)
    lowest = _lower(new.allocable, rise.lowest)
    if not _rises_enough(lowest, published, new.capacity):
        return published, Rise(since_s=now_s, lowest=new.allocable)
    rise = Rise(since_s=rise.since_s, lowest=lowest)
    if now_s - rise.since_s < HOLD_S:
        return published, rise
    # The rise is kept, for the case that this cannot be written just now.
    return _higher(lowest, published), rise


def _lower(one: Bandwidth, other: Bandwidth) -> Bandwidth:
    return Bandwidth.model_construct(
        read=min(one.read, other.read),
        write=min(one.write, other.write),
        total=min(one.total, other.total),
    )


def _higher(one: Bandwidth, other: Bandwidth) -> Bandwidth:
    return Bandwidth.model_construct(
        read=max(one.read, other.read),
        write=max(one.write, other.write),
        total=max(one.total, other.total),
    )


def _rises_enough(new: Bandwidth, old: Bandwidth, capacity: Bandwidth) -> bool:
    return (
        new.read - old.read > capacity.read // SLACK_DIVISOR
        or new.write - old.write > capacity.write // SLACK_DIVISOR
        or new.total - old.total > capacity.total // SLACK_DIVISOR
    )
