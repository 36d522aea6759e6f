"""How few zones can hold a request, and are they the nearest such? For all nodes of a block at once.

    for k = 1, 2, ...: of all sets of k zones that hold it, the one of the smallest mean distance

Sets come in lexicographic order of the vendor's list, and the first of equals wins. A missing distance
counts 255. The sums of all sets are one product of matrices; sets without hope are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.numa.aligning import Part
from berthmaster.concerns.numa.columns import Flags, Ints
from berthmaster.concerns.numa.request import Amounts

UNKNOWN_COST = 255
# Sets of one size; beyond that the fullest zones are taken, which may not be the nearest.
MOST_SETS = 4096
_EXACT = 2**53
_CELLS_AT_ONCE = 2**21
_DISTANCES_REMEMBERED = 4096

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fewest:
    """Per row: how many zones (0: it does not fit), whether nearest, and which, by ascending id."""

    count: Ints
    is_nearest: Flags
    chosen: Flags


def find_fewest(part: Part, amounts: Amounts, *, is_strict: bool = False) -> Fewest:
    """Return the fewest zones that hold the amounts; each must list every resource of them."""
    block = part.block
    orders = block.orders[part.indices]
    costs = block.costs[part.indices]
    found = Fewest(
        count=np.zeros(part.count, dtype=np.int64),
        is_nearest=np.zeros(part.count, dtype=np.bool_),
        chosen=np.zeros((part.count, part.size), dtype=np.bool_, order="F"),
    )
    asked = [(name, amount) for name, amount in amounts if amount]
    needs = [amount for _, amount in asked]
    usable = np.ones((part.count, part.size), dtype=np.bool_, order="F")
    for resource, _ in amounts:
        usable &= part.amounts[resource] >= 0
    offers = [np.maximum(part.amounts[name], 0) for name, _ in asked]
    if not block.is_ordered:
        usable = np.take_along_axis(usable, orders, axis=1)
        offers = [np.take_along_axis(it, orders, axis=1) for it in offers]
    # One zone is enough for most; only for the others the sums are worth their while.
    least = np.ones(part.count, dtype=np.int64)
    open_rows = np.ones(part.count, dtype=np.bool_)
    for k in range(1, part.size + 1):
        rows = np.flatnonzero(open_rows & (least <= k))
        if not len(rows):
            continue
        if comb(part.size, k) > MOST_SETS:
            _take_fullest(found, rows, k, usable, offers, needs, orders)
        else:
            step = max(1, _CELLS_AT_ONCE // comb(part.size, k))
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                if len(some) == part.count:
                    fits = sets_that_hold(usable, offers, needs, k)
                else:
                    fits = sets_that_hold(usable[some], [it[some] for it in offers], needs, k)
                for cost in np.unique(costs[some]).tolist():
                    of_k = (k, *_distances(part.columns.costs[cost], k))
                    same = costs[some] == cost
                    if same.all():
                        _choose(found, some, fits, of_k, orders, is_strict=is_strict)
                    else:
                        _choose(found, some[same], fits[same], of_k, orders, is_strict=is_strict)
        open_rows &= found.count == 0
        if k == 1 and open_rows.any():
            left = np.flatnonzero(open_rows)
            least[left] = _least_count(usable[left], [it[left] for it in offers], needs)
    return found


def sets_that_hold(usable: Flags, offers: list[Ints], needs: list[int], k: int) -> Flags:
    """Return per row and set of k zones whether all of them are usable and together hold it."""
    if k == 1:
        single = usable.copy("F")
        for offer, need in zip(offers, needs, strict=True):
            single &= offer >= need
        return single
    members = _members(usable.shape[1], k)
    fits: Flags = np.equal((~usable).astype(np.float64) @ members, 0)
    for offer, need in zip(offers, needs, strict=True):
        if offer.size and int(offer.max()) * k < _EXACT:
            fits &= np.greater_equal(offer.astype(np.float64) @ members, need)
        else:
            sets = _sets(usable.shape[1], k)
            fits &= offer[:, sets].sum(axis=2) >= need
    return fits


def take_off(part: Part, amounts: Amounts, rows: Flags, chosen: Flags) -> None:
    """Take amounts off the chosen zones of some rows, the lowest id first, each what it has."""
    for resource, amount in amounts:
        if not amount:
            continue
        cells = part.own(resource)
        offers = np.where(chosen & rows[:, None], np.maximum(cells, 0), 0)
        before = np.cumsum(offers, axis=1) - offers
        cells -= np.minimum(np.maximum(amount - before, 0), offers)


def _least_count(usable: Flags, offers: list[Ints], needs: list[int]) -> Ints:
    """Return a number of zones below which no set can hold it, by the largest zones' sums."""
    size = usable.shape[1]
    least = np.where(usable.any(axis=1), 1, size + 1)
    for offer, need in zip(offers, needs, strict=True):
        ordered = np.sort(np.where(usable, offer, 0), axis=1)[:, ::-1]
        holds = np.cumsum(ordered, axis=1) >= need
        count = np.where(holds.any(axis=1), holds.argmax(axis=1) + 1, size + 1)
        least = np.maximum(least, count)
    return least


def _choose(
    found: Fewest,
    rows: NDArray[np.intp],
    fits: Flags,
    of_k: tuple[int, Floats, Flags],
    orders: NDArray[np.intp],
    *,
    is_strict: bool,
) -> None:
    k, distances, nearest = of_k
    if is_strict:
        fits = fits & (distances < UNKNOWN_COST + 1)
    some = fits.any(axis=1)
    if not some.any():
        return
    if not some.all():
        rows, fits = rows[some], fits[some]
    is_nearest = (fits & nearest).any(axis=1)
    best = fits if nearest.all() else np.where(fits, -distances, -np.float32(np.inf))
    # Of the nearest ones that fit argmax finds the first as well: they are equally near.
    found.count[rows] = k
    found.is_nearest[rows] = is_nearest
    positions = _sets(orders.shape[1], k)[best.argmax(axis=1)]
    slots = np.take_along_axis(orders[rows], positions, axis=1)
    found.chosen[rows[:, None], slots] = True


def _take_fullest(
    found: Fewest,
    rows: NDArray[np.intp],
    k: int,
    usable: Flags,
    offers: list[Ints],
    needs: list[int],
    orders: NDArray[np.intp],
) -> None:
    """Try the k zones that have most of the resources, measured against what is asked."""
    worth = np.zeros(usable.shape)
    for offer, need in zip(offers, needs, strict=True):
        worth += np.minimum(offer / need, 1.0)
    worth = np.where(usable, worth, -1.0)
    positions = np.sort(np.argsort(-worth[rows], axis=1, kind="stable")[:, :k], axis=1)
    holds = np.take_along_axis(usable[rows], positions, axis=1).all(axis=1)
    for offer, need in zip(offers, needs, strict=True):
        holds &= np.take_along_axis(offer[rows], positions, axis=1).sum(axis=1) >= need
    rows, positions = rows[holds], positions[holds]
    found.count[rows] = k
    found.chosen[rows[:, None], np.take_along_axis(orders[rows], positions, axis=1)] = True


@lru_cache(maxsize=64)
def _sets(size: int, k: int) -> NDArray[np.intp]:
    return np.array(list(combinations(range(size), k)), dtype=np.intp)


@lru_cache(maxsize=64)
def _members(size: int, k: int) -> NDArray[np.float64]:
    sets = _sets(size, k)
    members = np.zeros((size, len(sets)))
    members[sets, np.arange(len(sets))[:, None]] = 1.0
    return members


@lru_cache(maxsize=_DISTANCES_REMEMBERED)
def _distances(costs: tuple[tuple[int, ...], ...], k: int) -> tuple[Floats, Flags]:
    """Return each set's mean distance, and whether it is the smallest there is."""
    table = np.array(costs, dtype=np.int64)
    table[table < 0] = UNKNOWN_COST
    sets = _sets(len(costs), k)
    sums = table[sets[:, :, None], sets[:, None, :]].sum(axis=(1, 2))
    means: Floats = sums.astype(np.float32) / np.float32(k * k)
    return means, means == min(means.min(), np.float32(UNKNOWN_COST))
