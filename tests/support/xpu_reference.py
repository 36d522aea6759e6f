"""The three dialects' rules for one node, spelled out slowly: the judge of the arrays.

Written from the rules, shares no code with the concern. A device is its index, its size, whether it takes
pods, and what entries are on it, as MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

LINKS = {frozenset(map(int, it.split("-"))) for it in ["0-4", "1-5", "2-6", "3-7"]}
QUADS = [
    set(map(int, it.split("-")))
    for it in ["0-1-4-5", "2-3-6-7", "0-2-4-6", "1-3-5-7", "0-3-4-7", "1-2-5-6"]
]


@dataclass
class RefDevice:
    index: int
    size: int
    takes_pods: bool
    # Of pods: how many container entries, and MiB.
    entries: int = 0
    used: int = 0

    @property
    def free(self) -> int:
        return max(0, self.size - self.used)


@dataclass(frozen=True)
class RefAsk:
    is_init: bool
    cards: int
    # 0: whole cards.
    slice_mib: int = 0


@dataclass
class RefHost:
    devices: list[RefDevice]
    has_wings: bool = True
    chosen: list[list[int]] = field(default_factory=list)


def share(devices: Sequence[RefDevice], total: int, count: int) -> list[tuple[int, int]] | None:
    """Return (index, MiB) in the order written, None where it does not fit: best of all sets of devices.

    Of all ways to take `count` distinct devices with room, the one whose devices are the fullest: first
    those with the larger share, one by one.
    """
    each, more = total // count, total % count
    usable = [it for it in devices if it.takes_pods]
    large = [it for it in usable if it.free >= each + 1]
    best: tuple[list[tuple[int, int]], list[tuple[int, int]]] | None = None
    for first in combinations(large, more):
        rest = [it for it in usable if it not in first and it.free >= each]
        for second in combinations(rest, count - more):
            ranks = (
                sorted((it.free, it.index) for it in first),
                sorted((it.free, it.index) for it in second),
            )
            if best is None or ranks < best:
                best = ranks
    if best is None:
        return None
    return [
        *((index, each + 1) for index in sorted(it for _, it in best[0])),
        *((index, each) for index in sorted(it for _, it in best[1])),
    ]


def cards(
    host: RefHost, asks: Sequence[RefAsk], *, is_alone: bool = False
) -> list[list[int]] | None:
    """Return the cards of each container, None where one does not fit."""
    state = [
        RefDevice(it.index, it.size, it.takes_pods, it.entries, it.used) for it in host.devices
    ]
    found = []
    for ask in asks:
        usable = [it.index for it in state if _is_usable(it, ask, is_alone=is_alone)]
        got = _pick(usable, ask.cards, has_wings=host.has_wings)
        if not got:
            return None
        found.append(got)
        if not ask.is_init:
            for it in state:
                if it.index in got:
                    it.entries += 1
                    it.used += ask.slice_mib or it.size
    return found


def _is_usable(device: RefDevice, ask: RefAsk, *, is_alone: bool) -> bool:
    if not device.takes_pods:
        return False
    if not ask.slice_mib or is_alone:
        if device.entries:
            return False
        return not ask.slice_mib or ask.slice_mib <= device.size
    if device.used + ask.slice_mib > device.size:
        return False
    return not device.entries or device.used // device.entries == ask.slice_mib


def _pick(usable: list[int], count: int, *, has_wings: bool) -> list[int]:
    if count not in (1, 2, 4, 8):
        return []
    if not has_wings:
        return usable[:count] if len(usable) >= count else []
    if count == 8:
        return usable if len(usable) == 8 else []
    left, right = [it for it in usable if it < 4], [it for it in usable if it >= 4]
    order = {1: [1, 3, 2, 4], 2: [2, 3, 4], 4: [4]}[count]
    for level in order:
        for wing in (left, right):
            if len(wing) == level:
                return wing[:count]
    if count == 2:
        pairs = [sorted(it) for it in LINKS if it <= set(usable)]
        return min(pairs, default=[])
    return _pick_quad(usable) if count == 4 else []


def _pick_quad(usable: list[int]) -> list[int]:
    complete = [it for it in QUADS if it <= set(usable)]
    if complete and len(usable) in (4, 5):
        return sorted(complete[0])
    if complete and len(usable) == 6:
        for quad in complete:
            one, other = sorted(set(usable) - quad)
            if (one < 4) == (other < 4) or frozenset((one, other)) in LINKS:
                return sorted(quad)
        return sorted(complete[-1])
    return []
