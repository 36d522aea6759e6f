"""What a kubelet with policy restricted admits: every resource in the same fewest zones.

A set of zones is preferred for a resource if no smaller set could *ever* hold the amount, whatever is
free now, and it holds it now. A container is admitted where one set is preferred for each aligned
resource it asks. So on two zones of 4 GPUs and 16 CPUs: 6 GPUs and 10 CPUs are refused (two zones
against one), 6 GPUs and 24 CPUs are admitted on both.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.numa.aligning import NOBODY, Part, constrains, keeps
from berthmaster.concerns.numa.columns import Flags, Ints
from berthmaster.concerns.numa.fewest import MOST_SETS, take_off
from berthmaster.concerns.numa.request import (
    Amounts,
    ContainerAsk,
    NumaRequest,
    exclusive,
)


def align_minimally(
    part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...]
) -> NDArray[np.int64]:
    """Place the asks one after the other; return per row the first that would be refused."""
    failed = np.full(part.count, NOBODY, dtype=np.int64)
    for index, ask in enumerate(asks):
        amounts = exclusive(ask.amounts, request.is_guaranteed, request.has_pod_resources)
        admitted, chosen = _preferred(part, request, amounts)
        alive = failed == NOBODY
        failed[alive & ~admitted] = index
        if keeps(ask.kind, request) and index + 1 < len(asks):
            take_off(part, amounts, alive & admitted, chosen)
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


def _preferred(part: Part, request: NumaRequest, amounts: Amounts) -> tuple[Flags, Flags]:
    """Return per row whether some set is preferred for all, and the lowest such set of zones."""
    chosen = np.zeros((part.count, part.size), dtype=np.bool_)
    admitted = np.ones(part.count, dtype=np.bool_)
    width = np.zeros(part.count, dtype=np.int64)
    binding = [(name, need, constrains(part, request, name)) for name, need in amounts]
    for name, need, binds in binding:
        fewest = fewest_ever(part, name, need)
        admitted &= ~binds | (width == 0) | (width == fewest)
        width = np.where(binds, fewest, width)
    admitted &= width <= part.size
    for count in range(1, part.size + 1):
        rows = np.flatnonzero(admitted & (width == count))
        if not len(rows):
            continue
        sets = _sets_by_mask(part.size, count)
        fits = np.ones((len(rows), len(sets)), dtype=np.bool_)
        for name, need, binds in binding:
            free = np.maximum(part.amounts[name][rows], 0)[:, sets].sum(axis=2)
            fits &= (free >= need) | ~binds[rows, None]
        some = fits.any(axis=1)
        admitted[rows[~some]] = False
        chosen[rows[some, None], sets[fits[some].argmax(axis=1)]] = True
    return admitted, chosen


@lru_cache(maxsize=64)
def _sets_by_mask(size: int, count: int) -> NDArray[np.intp]:
    """Return the sets of `count` zones by the number that their bits make, as the kubelet has it."""
    sets = list(islice(combinations(range(size), count), min(comb(size, count), MOST_SETS)))
    sets.sort(key=lambda it: sum(1 << slot for slot in it))
    return np.array(sets, dtype=np.intp)
