"""How the kubelet's topology manager makes one choice of its hint providers' wishes.

Each provider gives, per resource, hints: a mask of zones and whether it is preferred. The kubelet goes
through every combination of one hint per resource. That many need not be looked at: what it finds
is the best of the masks that can come out, by an order that does not depend on theirs. Preferred
beats not preferred. Among preferred ones, whose hints are all of one mask, the narrower wins, then
the lower (or, of equal width, the nearer). Among the others those win that come closest, from
below, to the widest of the resources' narrowest hints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import NamedTuple

from berthmaster_sandbox.world.numa_machines import Machine


class Hint(NamedTuple):
    """A mask of zones; None is any zone."""

    mask: int | None
    is_preferred: bool


ANY_ZONE = Hint(None, True)
NO_ZONE = Hint(None, False)
# Hints by resource: None for a resource without a wish, empty where no zones will do.
Wishes = Mapping[str, Sequence[Hint] | None]


def collect(providers: Iterable[Wishes]) -> list[list[Hint]]:
    """Return the hints to choose from, one list per resource or provider without any."""
    lists: list[list[Hint]] = []
    for wishes in providers:
        if not wishes:
            lists.append([ANY_ZONE])
        for hints in wishes.values():
            if hints is None:
                lists.append([ANY_ZONE])
            else:
                lists.append(list(hints) or [NO_ZONE])
    return lists


def choose(machine: Machine, providers: Iterable[Wishes]) -> tuple[Hint, bool]:
    """Return the topology manager's choice, and whether its policy admits with it."""
    lists = collect(providers)
    policy = machine.settings.topology_manager_policy
    if policy != "single-numa-node":
        best = merge(machine, lists)
        return best, policy != "restricted" or best.is_preferred
    best = merge(machine, [[it for it in hints if _is_single(it)] for hints in lists])
    if best.mask == machine.every_zone:
        best = Hint(None, best.is_preferred)
    return best, best.is_preferred


def _is_single(hint: Hint) -> bool:
    return hint.is_preferred and (hint.mask is None or hint.mask.bit_count() == 1)


def merge(machine: Machine, lists: Sequence[Sequence[Hint]]) -> Hint:
    """Return the best hint that one of each list make together."""
    every = machine.every_zone
    if not all(lists):
        return Hint(every, False)
    preferred = _preferred_masks(every, lists)
    if preferred:
        return Hint(min(preferred, key=lambda mask: _fitness(machine, mask)), True)
    masks = {every}
    for hints in lists:
        masks = {mask & (every if it.mask is None else it.mask) for mask in masks for it in hints}
    masks.discard(0)
    if not masks:
        return Hint(every, False)
    aim = max((_narrowest(hints) for hints in lists), default=0)

    def rank(mask: int) -> tuple[bool, int, tuple[int, float, int]]:
        width = mask.bit_count()
        return width > aim, max(aim - width, 0), _fitness(machine, mask)

    return Hint(min(masks, key=rank), False)


def _preferred_masks(every: int, lists: Sequence[Sequence[Hint]]) -> set[int]:
    """Return the masks on which all resources agree with a preferred hint."""
    wanted = []
    for hints in lists:
        masks = {it.mask for it in hints if it.is_preferred}
        if not masks:
            return set()
        # Nobody gives "any zone" beside other hints.
        if None not in masks:
            wanted.append({mask & every for mask in masks if mask is not None})
    return reduce(and_, wanted) - {0} if wanted else {every}


def _narrowest(hints: Iterable[Hint]) -> int:
    return min((it.mask.bit_count() for it in hints if it.mask is not None), default=0)


def _fitness(machine: Machine, mask: int) -> tuple[int, float, int]:
    settings = machine.settings
    distance = 0.0
    if (
        settings.prefer_closest_numa_nodes
        and settings.topology_manager_policy != "single-numa-node"
    ):
        zones = [zone for zone in machine.zones if mask >> zone.id & 1]
        total = sum(here.distance(there.id) for here in zones for there in zones)
        distance = total / len(zones) ** 2
    return mask.bit_count(), distance, mask
