"""Which devices a share gets: of those that have the room, the fullest ones, each once.

A share of `total` MiB over `count` devices is `total // count` of each, and one more of the first
`total % count`. What one node does is spelled out in `choose`; `choose_rows` is the same for many nodes
at once, where the devices' places do not matter.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from berthmaster.api.settings.xpu import DeviceStrategy
from berthmaster.concerns.xpu.columns import Flags, Ints

_MOST = np.iinfo(np.int64).max


class Need(NamedTuple):
    """What a share needs of so many devices: `each` MiB, and one more of the first `more`."""

    devices: int
    each: int
    more: int

    def of(self, nth: int) -> int:
        """Return what the nth device gives."""
        return self.each + (nth < self.more)


def need_of(total_mib: int, devices: int) -> Need:
    """Return what a share needs."""
    return Need(devices, *divmod(total_mib, devices))


def by_device(numbers: Ints) -> Ints:
    """Return numbers by row and device turned: there are few devices, and along many rows NumPy is quick."""
    return np.ascontiguousarray(numbers.T)


def fits(open_: Ints, need: Need) -> Flags:
    """Return which rows have enough devices with enough memory; `open_` is -1 for no device."""
    free = by_device(open_)
    fitting: Flags
    if need.devices == 1:
        fitting = free.max(axis=0) >= need.each
        return fitting
    fitting = (free >= need.each).sum(axis=0) >= need.devices
    if need.more:
        fitting &= (free >= need.each + 1).sum(axis=0) >= need.more
    return fitting


def choose(
    open_: Sequence[int],
    need: Need,
    strategy: DeviceStrategy,
    groups: Mapping[int, Hashable],
    *,
    must_be_together: bool = False,
) -> tuple[tuple[int, int], ...]:
    """Return (device, MiB) in the order written, () where it does not fit.

    `groups` tell which devices lie together, for strategies that want that; others are in no group.
    """
    if need.devices > 1 and strategy in (DeviceStrategy.NUMA_NODE, DeviceStrategy.BOARD):
        together = [_within(open_, need, members) for members in _members(groups)]
        chosen = [it for it in together if it]
        if chosen:
            return min(chosen, key=lambda it: (sum(open_[index] for index, _ in it), it))
        if must_be_together:
            return ()
    is_spread = strategy is DeviceStrategy.SPREAD
    left = [index for index, free in enumerate(open_) if free >= 0]
    found: list[tuple[int, int]] = []
    for nth in range(need.devices):
        fitting = [index for index in left if open_[index] >= need.of(nth)]
        if not fitting:
            return ()
        best = min(fitting, key=lambda it: (-open_[it] if is_spread else open_[it], it))
        left.remove(best)
        found.append((best, need.of(nth)))
    return (*sorted(found[: need.more]), *sorted(found[need.more :]))


def choose_rows(open_: Ints, need: Need, *, is_spread: bool) -> Ints:
    """Return what each device of each row gives, as `choose` does; rows must fit."""
    free = by_device(open_)
    width = len(free)
    given = np.zeros_like(free)
    every = np.arange(len(open_))
    # Free memory and place in one number, so that the lowest place wins among equals.
    places = np.arange(width)[:, None]
    ranks = free * width + (width - 1 - places if is_spread else places)
    for nth in range(need.devices):
        mib = need.of(nth)
        if is_spread:
            best = width - 1 - ranks.max(axis=0) % width
        else:
            best = np.where(ranks >= mib * width, ranks, _MOST).min(axis=0) % width
        given[best, every] = mib
        ranks[best, every] = -width
    return given.T


def _within(
    open_: Sequence[int], need: Need, members: frozenset[int]
) -> tuple[tuple[int, int], ...]:
    only = [free if index in members else -1 for index, free in enumerate(open_)]
    return choose(only, need, DeviceStrategy.BINPACK, {})


def _members(groups: Mapping[int, Hashable]) -> list[frozenset[int]]:
    found: dict[Hashable, set[int]] = {}
    for index, group in groups.items():
        found.setdefault(group, set()).add(index)
    return [frozenset(it) for it in found.values()]
