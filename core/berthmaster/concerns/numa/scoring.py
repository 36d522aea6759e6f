"""How good a node's zones are for a pod: upstream's four strategies, and our own.

    LeastAllocated     per resource (available - asked) * 100 / available, weighted mean
    MostAllocated      per resource asked * 100 / available, weighted mean
    BalancedAllocation (1 - sample variance of asked / available) * 100
    LeastNUMANodes     few zones, near each other
    PredictedZone      how full the zones are that the kubelet will take, afterwards

The first three score every zone and take the lowest that is not 0, since the kubelet may choose any;
with the scope container the mean over containers, each against untouched zones. Amounts count in
whole units, rounded up. Worked: 2 cpu and 20Mi on 4 cpu and 500Mi: Least (50 + 96) / 2 = 73, Most
(50 + 4) / 2 = 27, Balanced: fractions 0.5 and 0.04, variance 0.1058, 89.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.policy import NumaStrategy
from berthmaster.concerns.numa.aligning import Part, keeps, serving, subtract, units
from berthmaster.concerns.numa.amounts import scale_of, whole
from berthmaster.concerns.numa.columns import SINGLE, Flags, Ints
from berthmaster.concerns.numa.fewest import find_fewest, take_off
from berthmaster.concerns.numa.request import (
    INIT,
    Amounts,
    ContainerAsk,
    NumaRequest,
    exclusive,
    weight_of,
)
from berthmaster.concerns.shape import Scores

_BEST = 100


def score_part(
    part: Part, request: NumaRequest, policy: NDArray[np.uint8], *, is_pod_scope: bool
) -> Scores:
    """Return 0..100 per row of a part whose rows are all of one scope."""
    asks = units(request, is_pod_scope=is_pod_scope)
    if request.strategy is NumaStrategy.LEAST_NUMA_NODES:
        return _least_numa_nodes(part, request, asks)
    if request.strategy is NumaStrategy.PREDICTED_ZONE:
        return _predicted(part, request, policy, is_pod_scope=is_pod_scope)
    scores = np.zeros(part.count)
    single = policy == SINGLE
    if single.any():
        some = part.narrow(single)
        total = np.zeros(some.count, dtype=np.int64)
        for ask in asks:
            total += _lowest(_zone_scores(some, request, ask.amounts))
        scores[single] = total // max(1, len(asks))
    return scores


def _zone_scores(part: Part, request: NumaRequest, amounts: Amounts) -> Ints:
    if not amounts:
        return np.full((part.count, max(1, part.size)), _BEST, dtype=np.int64)
    if request.strategy is NumaStrategy.BALANCED_ALLOCATION:
        return _balanced(part, amounts)
    is_least = request.strategy is NumaStrategy.LEAST_ALLOCATED
    total = np.zeros((part.count, part.size), dtype=np.int64)
    weights = 0
    for resource, amount in amounts:
        weight = weight_of(request.weights, resource)
        asked, free, fits = _units(part, resource, amount)
        used = free - asked if is_least else np.full_like(free, asked)
        total += weight * np.where(fits, used * _BEST // np.maximum(free, 1), 0)
        weights += weight
    return total // weights


def _balanced(part: Part, amounts: Amounts) -> Ints:
    shares = []
    fits = np.ones((part.count, part.size), dtype=np.bool_)
    for resource, amount in amounts:
        asked, free, _ = _units(part, resource, amount)
        share = np.where(free > 0, asked / np.maximum(free, 1), 1.0)
        fits &= share <= 1
        shares.append(share)
    # Two passes with a correction, as upstream's library sums it: a last digit may decide.
    mean = sum(shares[1:], shares[0]) / len(shares)
    squares = np.zeros_like(mean)
    deviations = np.zeros_like(mean)
    for share in shares:
        distance = share - mean
        squares += distance * distance
        deviations += distance
    variance = np.zeros_like(mean)
    if len(shares) > 1:
        variance = (squares - deviations * deviations / len(shares)) / (len(shares) - 1)
    scores: Ints = np.where(fits, ((1 - variance) * _BEST).astype(np.int64), 0)
    return scores


def _units(part: Part, resource: str, amount: int) -> tuple[int, Ints, Flags]:
    """Return what is asked and free in whole units, and where it fits; nothing fits in none."""
    cells = np.maximum(part.amounts[resource], 0)
    free = -(-cells // scale_of(resource))
    return whole(resource, amount), free, (free > 0) & (amount <= cells)


def _lowest(scores: Ints) -> Ints:
    """Return per row the lowest score that is not 0, 0 if all are."""
    worst = np.where(scores > 0, scores, _BEST + 1).min(axis=1, initial=_BEST + 1)
    lowest: Ints = np.where(worst > _BEST, 0, worst)
    return lowest


def _least_numa_nodes(part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...]) -> Scores:
    if not part.size:
        # Nothing is known of such a node; upstream finds that it needs no zone at all.
        return np.full(part.count, float(_BEST if request.is_strict_upstream else 0))
    most = np.zeros(part.count, dtype=np.int64)
    is_nearest = np.ones(part.count, dtype=np.bool_)
    fits = np.ones(part.count, dtype=np.bool_)
    for index, ask in enumerate(asks):
        listed = np.zeros(part.count, dtype=np.bool_)
        for resource, _ in ask.amounts:
            listed |= part.lists(resource)
        if not listed.any():
            continue
        found = find_fewest(part, ask.amounts, is_strict=request.is_strict_upstream)
        fits &= ~listed | (found.count > 0)
        most = np.where(listed, np.maximum(most, found.count), most)
        is_nearest &= ~listed | found.is_nearest
        if index + 1 < len(asks):
            take_off(part, ask.amounts, listed & fits, found.chosen)
    scores = _score_of_count(part, request, most, is_nearest)
    scores[most == 0] = _BEST
    scores[~fits] = 0
    return scores


def _score_of_count(
    part: Part, request: NumaRequest, count: Ints, is_nearest: Flags
) -> Scores:
    rows = part.columns.blocks[part.size].rows[part.indices]
    unit = _BEST // part.columns.max_numa_nodes[rows]
    if not request.is_strict_upstream:
        unit = np.maximum(unit, 1)
    scores = _BEST - count * unit + np.where(is_nearest, unit // 2, 0)
    return np.maximum(scores, 0).astype(np.float64)


def _predicted(
    part: Part, request: NumaRequest, policy: NDArray[np.uint8], *, is_pod_scope: bool
) -> Scores:
    """Return how full the zones are that the kubelet will take; across zones, how few and near.

    The score of one zone lies in 50..100, that of several below: a pod within one zone is served
    best, and of single zones the fuller one keeps others whole for larger pods.
    """
    if not part.size:
        return np.zeros(part.count)
    asks = _exclusive_asks(request, is_pod_scope=is_pod_scope)
    spread = _least_numa_nodes(part.narrow(np.ones(part.count, np.bool_)), request, asks) / 2
    share = np.zeros(part.count)
    counted = 0
    work = part.narrow(np.ones(part.count, np.bool_))
    fits = np.ones(part.count, dtype=np.bool_)
    for ask in asks:
        if not ask.amounts:
            continue
        possible, mask = serving(work, request, ask.amounts)
        fits &= possible
        slots = mask.argmax(axis=1)
        if keeps(ask.kind, request):
            subtract(work, request, ask.amounts, possible, slots)
        share += _used_share(work, ask.amounts, slots)
        counted += 1
    single = 50 + 50 * share / max(1, counted)
    return np.where(fits, single, np.where(policy == SINGLE, 0.0, spread))


def _used_share(work: Part, amounts: Amounts, slots: NDArray[np.intp]) -> Scores:
    """Return per row the mean share in use, 0..1, of what is asked in the chosen zone."""
    at = np.arange(work.count)
    total = np.zeros(work.count)
    for resource, _ in amounts:
        whole_zone = work.totals[resource][at, slots]
        free = work.amounts[resource][at, slots]
        used = np.where(whole_zone > 0, 1 - free / np.maximum(whole_zone, 1), 0.0)
        total += np.clip(used, 0.0, 1.0)
    return total / len(amounts)


def _exclusive_asks(request: NumaRequest, *, is_pod_scope: bool) -> tuple[ContainerAsk, ...]:
    """Return what the kubelet itself looks at: only what a container would hold alone."""
    held = tuple(
        it._replace(amounts=exclusive(it.amounts, request.is_guaranteed, request.has_pod_resources))
        for it in units(request, is_pod_scope=is_pod_scope)
    )
    return tuple(it for it in held if it.kind != INIT) or held



