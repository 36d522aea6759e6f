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

from berthmaster.api.settings.numa import NumaStrategy
from berthmaster.concerns.numa.aligning import (
    Part,
    constrains,
    keeps,
    serving,
    subtract,
    units,
)
from berthmaster.concerns.numa.amounts import HIGHEST_OFFER, whole
from berthmaster.concerns.numa.columns import SINGLE, Flags, Floats, Ints
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
# Scores make many passes over the numbers; those of so many rows stay in the processor's cache.
_ROWS_AT_ONCE = 1024


def score_part(part: Part, request: NumaRequest) -> Scores:
    """Return 0..100 per row of a part."""
    asks = units(request, is_pod_scope=part.block.is_pod_scope)
    if request.strategy is NumaStrategy.LEAST_NUMA_NODES:
        return _least_numa_nodes(part, request, asks)
    if request.strategy is NumaStrategy.PREDICTED_ZONE:
        return _predicted(part, request)
    if part.block.policy != SINGLE:
        return np.zeros(part.count)
    pieces = [_mean_of_asks(piece, request, asks) for piece in part.pieces(_ROWS_AT_ONCE)]
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _mean_of_asks(part: Part, request: NumaRequest, asks: tuple[ContainerAsk, ...]) -> Scores:
    total = np.zeros(part.count)
    for ask in asks:
        total += _lowest(_zone_scores(part, request, ask.amounts))
    total /= max(1, len(asks))
    return np.floor(total, out=total)


def _zone_scores(part: Part, request: NumaRequest, amounts: Amounts) -> Floats:
    """Return each zone's score, a whole number.

    Quotients of doubles, rounded down, are exact here: no zone has as much as 2**53 / 100 units.
    """
    if not amounts:
        return np.full((part.count, max(1, part.size)), float(_BEST))
    if request.strategy is NumaStrategy.BALANCED_ALLOCATION:
        return _balanced(part, amounts)
    is_least = request.strategy is NumaStrategy.LEAST_ALLOCATED
    total = np.zeros((part.count, part.size), order="F")
    weights = 0
    for resource, amount in amounts:
        weight = weight_of(request.weights, resource)
        # 100 - the share rounded up is what is left of 100 rounded down.
        share = (100.0 * whole(resource, amount)) / part.units[resource]
        if is_least:
            np.subtract(_BEST, np.ceil(share, out=share), out=share)
        else:
            np.floor(share, out=share)
        share *= part.amounts[resource] >= max(amount, 1)
        if weight != 1:
            share *= weight
        total += share
        weights += weight
    return np.floor(np.divide(total, weights, out=total), out=total) if weights > 1 else total


def _balanced(part: Part, amounts: Amounts) -> Floats:
    shares = []
    fits = np.ones((part.count, part.size), dtype=np.bool_, order="F")
    for resource, amount in amounts:
        free = part.units[resource]
        share = whole(resource, amount) / free
        share[part.amounts[resource] <= 0] = 1.0
        fits &= share <= 1
        shares.append(share)
    if len(shares) == 1:
        return np.where(fits, float(_BEST), 0.0)
    # Two passes with a correction, as upstream's library sums it: a last digit may decide.
    mean = sum(shares[1:], shares[0]) / len(shares)
    squares = np.zeros_like(mean)
    deviations = np.zeros_like(mean)
    for share in shares:
        distance = share - mean
        squares += distance * distance
        deviations += distance
    variance = (squares - deviations * deviations / len(shares)) / (len(shares) - 1)
    # Cut as Go cuts, which for a variance above 1 is towards 0.
    return np.where(fits, np.trunc((1 - variance) * _BEST), 0.0)


def _lowest(scores: Floats) -> Floats:
    """Return per row the lowest score that is not 0, 0 if all are."""
    worst: Floats = np.where(scores != 0, scores, np.inf).min(axis=1, initial=np.inf)
    worst[np.isinf(worst)] = 0
    return worst


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


def _score_of_count(part: Part, request: NumaRequest, count: Ints, is_nearest: Flags) -> Scores:
    rows = part.block.rows[part.indices]
    unit = _BEST // part.columns.max_numa_nodes[rows]
    if not request.is_strict_upstream:
        unit = np.maximum(unit, 1)
    scores = _BEST - count * unit + np.where(is_nearest, unit // 2, 0)
    clamped: Scores = np.maximum(scores, 0).astype(np.float64)
    return clamped


def _predicted(part: Part, request: NumaRequest) -> Scores:
    """Return how full the zones are that the kubelet will take; across zones, how few and near.

    The score of one zone lies in 50..100, that of several below: a pod within one zone is served
    best, and of single zones the fuller one keeps others whole for larger pods.
    """
    if not part.size:
        return np.zeros(part.count)
    asks = _exclusive_asks(request, is_pod_scope=part.block.is_pod_scope)
    share = np.zeros(part.count)
    counted = 0
    work = part.copy()
    fits = np.ones(part.count, dtype=np.bool_)
    for ask in asks:
        if not ask.amounts:
            continue
        possible, slots = serving(work, request, ask.amounts)
        fits &= possible
        if keeps(ask.kind, request):
            subtract(work, request, ask.amounts, possible, slots)
        share += _used_share(work, request, ask.amounts, slots)
        counted += 1
    scores = 50 + 50 * share / max(1, counted)
    across = ~fits
    scores[across] = 0
    if part.block.policy != SINGLE and across.any():
        scores[across] = _least_numa_nodes(_unbounded(part.narrow(across), request), request, asks)
        scores[across] /= 2
    return scores


def _used_share(
    work: Part, request: NumaRequest, amounts: Amounts, slots: NDArray[np.intp]
) -> Scores:
    """Return per row the mean share in use, 0..1, of what is aligned in the chosen zone."""
    at = np.arange(work.count)
    total = np.zeros(work.count)
    counted = np.zeros(work.count)
    for resource, _ in amounts:
        binds = constrains(work, request, resource)
        most = np.maximum(work.totals[resource][at, slots], 1).astype(np.float64)
        used = np.clip(1 - work.amounts[resource][at, slots] / most, 0.0, 1.0)
        total += np.where(binds, used, 0.0)
        counted += binds
    return total / np.maximum(counted, 1)


def _unbounded(part: Part, request: NumaRequest) -> Part:
    """Return the part with plenty, in every zone, of what is not aligned there."""
    for resource, cells in part.amounts.items():
        cells[~constrains(part, request, resource)] = HIGHEST_OFFER
    return part


def _exclusive_asks(request: NumaRequest, *, is_pod_scope: bool) -> tuple[ContainerAsk, ...]:
    """Return what the kubelet itself looks at: only what a container would hold alone."""
    held = tuple(
        it._replace(amounts=exclusive(it.amounts, request.is_guaranteed, request.has_pod_resources))
        for it in units(request, is_pod_scope=is_pod_scope)
    )
    return tuple(it for it in held if it.kind != INIT) or held
