"""What a kubelet admits container by container, where one zone is not all there is to it.

A set of zones is preferred for a resource if no smaller set could *ever* hold the amount, whatever is
free now, and it holds it now. A kubelet with policy restricted admits a container where one set is
preferred for each aligned resource it asks. So on two zones of 4 GPUs and 16 CPUs: 6 GPUs and 10 CPUs
are refused (two zones against one), 6 GPUs and 24 CPUs are admitted on both.

What an init container had, the containers after it use again, and until the pod goes nobody else. CPUs
and devices even have to be used again: a container that asks for the same resource is bound to their
zones until all of them are taken. Memory is used again by who comes to the same zone.

A zone's memory serves either containers that are bound to it alone, or those of one group of zones, until
it is empty. So memory of several zones has to come from zones that nobody has memory of. Where somebody
has, whose memory lies across zones, it is not known which these are: no zone in use is then taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.numa.aligning import NOBODY, Part, align, constrains
from berthmaster.concerns.numa.amounts import CPU, CPU_SCALE, is_memory
from berthmaster.concerns.numa.columns import Flags, Ints
from berthmaster.concerns.numa.fewest import MOST_SETS
from berthmaster.concerns.numa.request import INIT, ContainerAsk, NumaRequest

# Resource, amount, and per row whether zones are looked at for it.
_Binding = list[tuple[str, int, Flags]]
# What init containers left, by resource: per row and zone.
_Left = dict[str, Ints]


def align_minimally(
    part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...], *, is_single: bool = False
) -> NDArray[np.int64]:
    """Place the asks one after the other; return per row the first that would be refused.

    Refused is also what is not certain: where the zones depend on what we do not know, and more containers
    follow. Single: by the rules of single-numa-node, whose sets have one zone.
    """
    may_stray = _may_stray(asks)
    least = _World(part, {}, strays=may_stray, is_least=True)
    most = None
    if len(asks) > 1 and (part.most or may_stray):
        most = _World(part.copy() if not part.most else part.with_most(), {})
    failed = np.full(part.count, NOBODY, dtype=np.int64)
    for index, ask in enumerate(asks):
        binding = [(name, need, constrains(part, request, name)) for name, need in ask.amounts]
        admitted, chosen, is_sure = _preferred(least, binding, is_single=is_single)
        other = chosen
        if most is not None:
            is_admitted, other, _ = _preferred(most, binding, is_single=is_single)
            admitted &= is_admitted
        if index + 1 < len(asks):
            is_wide = chosen.sum(axis=1) > 1
            # How much of each of several zones is taken is not known.
            admitted &= is_sure & ~(is_wide & (ask.kind == INIT))
            admitted &= np.equal(other, chosen).all(axis=1)
            if most is None and is_wide.any():
                most = _World(part.copy(), {name: it.copy() for name, it in least.left.items()})
            for world in (least, most):
                if world is not None:
                    _hold(world, ask, chosen)
        failed[(failed == NOBODY) & ~admitted] = index
    return failed


@dataclass(slots=True)
class _World:
    """What there is at the least or at the most; the kubelet knows.

    Where both lead to the same zones, these are the zones that it takes. Strays: CPUs may be used again one
    less than could be; `is_odd` once a number was odd.
    """

    part: Part
    left: _Left
    strays: bool = False
    is_least: bool = False
    is_odd: bool = False


def _may_stray(asks: tuple[ContainerAsk, ...]) -> bool:
    """Return whether it is uncertain how many CPUs of init containers are used again.

    The kubelet prefers whole cores, and for a single CPU a core that somebody has begun. So where a
    number is odd, two containers may share one CPU less than they could.
    """
    has_left = any(it.kind == INIT and CPU in dict(it.amounts) for it in asks)
    return has_left and any(map(_is_odd, asks))


def _is_odd(ask: ContainerAsk) -> bool:
    return dict(ask.amounts).get(CPU, 0) // CPU_SCALE % 2 == 1


def align_single(
    part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...]
) -> NDArray[np.int64]:
    """Place the asks one after the other in one zone each; return per row the first that has none.

    Upstream has init containers give everything back.
    """
    if request.is_literal:
        return align(part, request, asks)
    if any(it.kind == INIT for it in asks):
        return align_minimally(part, request, asks, is_single=True)
    if not part.most:
        return align(part, request, asks)
    is_uncertain = part.columns.has_leftovers[part.block.rows[part.indices]]
    uncertain = part.narrow(is_uncertain)
    failed = align(part, request, asks)
    failed[is_uncertain] = align_minimally(uncertain, request, asks, is_single=True)
    return failed


def fewest_ever(part: Part, resource: str, amount: int) -> Ints:
    """Return per row the fewest zones whose totals hold the amount; more than there are: none do."""
    totals = np.maximum(part.totals[resource], 0)
    sums = np.cumsum(-np.sort(-totals, axis=1), axis=1)
    holds = sums >= amount
    if not part.size:
        return np.ones(part.count, dtype=np.int64)
    fewest: Ints = np.where(holds.any(axis=1), holds.argmax(axis=1) + 1, part.size + 1)
    return fewest


def _preferred(world: _World, binding: _Binding, *, is_single: bool) -> tuple[Flags, Flags, Flags]:
    """Return per row whether some set is preferred for all, the lowest such set, and if it is sure.

    Of several sets of several zones the kubelet may be told to prefer the nearest.
    """
    part, left = world.part, world.left
    is_sure = np.ones(part.count, dtype=np.bool_)
    chosen = np.zeros((part.count, part.size), dtype=np.bool_)
    admitted = np.ones(part.count, dtype=np.bool_)
    width = np.zeros(part.count, dtype=np.int64)
    for fewest, binds in _widths(part, binding, is_single=is_single):
        admitted &= ~binds | (width == 0) | (width == fewest)
        width = np.where(binds, fewest, width)
    admitted &= width <= part.size
    for count in range(1, part.size + 1):
        rows = np.flatnonzero(admitted & (width == count))
        if not len(rows):
            continue
        sets = _sets_by_mask(part.size, count)
        fits = _keeps_groups(part, binding, rows, sets)
        for name, need, binds in binding:
            free = np.maximum(part.amounts[name][rows], 0)[:, sets].sum(axis=2)
            again = left[name][rows] if name in left else None
            fits &= _holds(name, need, free, again, sets) | ~binds[rows, None]
        some = fits.any(axis=1)
        admitted[rows[~some]] = False
        chosen[rows[some, None], sets[fits[some].argmax(axis=1)]] = True
        if count > 1:
            is_sure[rows] = fits.sum(axis=1) == 1
    return admitted, chosen, is_sure


def _keeps_groups(
    part: Part, binding: _Binding, rows: NDArray[np.intp], sets: NDArray[np.intp]
) -> Flags:
    """Return per row and set of zones whether its memory may be taken together."""
    keeps = np.ones((len(rows), len(sets)), dtype=np.bool_)
    count = sets.shape[1]
    is_grouped = part.columns.is_grouped[part.block.rows[part.indices[rows]]]
    if count == 1 and not is_grouped.any():
        return keeps
    for name, _, binds in binding:
        if is_memory(name) and name in part.totals:
            used = (part.amounts[name][rows] < part.totals[name][rows])[:, sets].any(axis=2)
            # One of two zones is never a group, and both are one.
            matters = is_grouped if count == 1 else ~is_grouped | (part.size > 2)
            keeps &= ~(used & (matters & binds[rows])[:, None])
    return keeps


def _widths(part: Part, binding: _Binding, *, is_single: bool) -> list[tuple[Ints, Flags]]:
    """Return per resource how many zones a preferred set has; all kinds of memory are looked at as one."""
    if is_single:
        one = np.ones(part.count, dtype=np.int64)
        return [(one, binds) for _, _, binds in binding]
    found = []
    together = [it for it in binding if is_memory(it[0])]
    if len(together) > 1:
        binds = np.logical_or.reduce([it[2] for it in together])
        found.append((_fewest_together(part, together), binds))
    for name, need, binds in binding:
        if len(together) < 2 or not is_memory(name):
            found.append((fewest_ever(part, name, need), binds))
    return found


def _fewest_together(part: Part, binding: _Binding) -> Ints:
    fewest = np.full(part.count, part.size + 1, dtype=np.int64)
    for count in range(part.size, 0, -1):
        sets = _sets_by_mask(part.size, count)
        holds = np.ones((part.count, len(sets)), dtype=np.bool_)
        for name, need, binds in binding:
            totals = np.maximum(part.totals[name], 0)[:, sets].sum(axis=2)
            holds &= (totals >= need) | ~binds[:, None]
        fewest[holds.any(axis=1)] = count
    return fewest


def _holds(name: str, need: int, free: Ints, again: Ints | None, sets: NDArray[np.intp]) -> Flags:
    """Return per row and set of zones whether it has the amount, together with what is used again."""
    holds: Flags = free >= need
    if again is None:
        return holds
    if is_memory(name):
        # Of memory that lies across zones we do not know how much lies where.
        if sets.shape[1] == 1:
            holds = free + again[:, sets[:, 0]] >= need
        return holds
    there = again > 0
    has_all: Flags = there[:, sets].sum(axis=2) == there.sum(axis=1)[:, None]
    has_all &= free + again.sum(axis=1)[:, None] >= need
    return has_all


def _hold(world: _World, ask: ContainerAsk, chosen: Flags) -> None:
    """Take an ask's amounts from the chosen zones: first what is used again, then what is free."""
    part, left = world.part, world.left
    world.is_odd |= _is_odd(ask)
    is_one = (chosen.sum(axis=1) == 1)[:, None]
    for name, need in ask.amounts:
        usable = chosen & is_one if is_memory(name) else chosen
        cells = part.own(name)
        again = left.get(name)
        reused = np.zeros_like(cells)
        if again is not None:
            again_here = np.where(usable, again, 0)
            most = np.minimum(again_here.sum(axis=1), need)
            if world.strays and world.is_odd and name == CPU:
                # Unless nobody else's is left to take.
                free = np.where(chosen, np.maximum(cells, 0), 0).sum(axis=1)
                needed = np.clip(need - free, 0, most)
                most = np.maximum(most - CPU_SCALE, needed)
            reused = _spread(most, again_here)
        rest = (need - reused.sum(axis=1))[:, None]
        # Of several zones each may give all of it, or nothing.
        taken = np.where(
            chosen & (is_one | world.is_least), np.minimum(rest, np.maximum(cells, 0)), 0
        )
        cells -= taken
        if ask.kind == INIT:
            more: Ints = np.where(usable, taken, 0)
            left[name] = more if again is None else again + more
        elif again is not None:
            left[name] = again - reused


def _spread(amounts: Ints, offers: Ints) -> Ints:
    """Return what each zone gives of the amounts, the lowest first."""
    before = np.cumsum(offers, axis=1) - offers
    return np.clip(amounts[:, None] - before, 0, offers)


@lru_cache(maxsize=64)
def _sets_by_mask(size: int, count: int) -> NDArray[np.intp]:
    """Return the sets of `count` zones by the number that their bits make, as the kubelet has it."""
    sets = list(islice(combinations(range(size), count), min(comb(size, count), MOST_SETS)))
    sets.sort(key=lambda it: sum(1 << slot for slot in it))
    return np.array(sets, dtype=np.intp)
