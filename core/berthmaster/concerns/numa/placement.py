"""NUMA: which nodes' zones can serve a pod, which serve it best, and what it gets of them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import combinations, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.settings.numa import NumaStrategy, RestrictedPolicy, WhenMissing, WhenStale
from berthmaster.concerns.numa import columns as states
from berthmaster.concerns.numa import reasons
from berthmaster.concerns.numa.aligning import NOBODY, Part, aligned_units, keeps, read_part, units
from berthmaster.concerns.numa.amounts import is_memory, to_text
from berthmaster.concerns.numa.arriving import NONE
from berthmaster.concerns.numa.columns import Flags, NumaColumns, View
from berthmaster.concerns.numa.request import (
    APP,
    INIT,
    PREFER,
    STRICT,
    Amounts,
    ContainerAsk,
    NumaRequest,
    is_aligned,
    shape_of,
)
from berthmaster.concerns.numa.restricted import align_minimally, align_single
from berthmaster.concerns.numa.scoring import score_part
from berthmaster.concerns.numa.zones import Zones, candidates, take, take_spread
from berthmaster.concerns.shape import Codes, Rows, Scores

# Upstream's strategies for one zone: they count in whole units, and know single-numa-node alone.
_IN_UNITS = (
    NumaStrategy.LEAST_ALLOCATED,
    NumaStrategy.MOST_ALLOCATED,
    NumaStrategy.BALANCED_ALLOCATION,
)
# Sets of zones of one size that are tried for one answer; then all zones count as chosen.
_MOST_SETS = 512


def filter_rows(columns: NumaColumns, rows: Rows, request: NumaRequest) -> Codes:
    """Return a code per row, 0 where the kubelet would take the pod, as far as can be told."""
    codes = np.zeros(len(rows), dtype=np.uint8)
    if request.mode == PREFER:
        return codes
    state = columns.state[rows]
    codes[state == states.UNRELIABLE] = reasons.UNRELIABLE
    is_strict = request.mode == STRICT
    if is_strict or request.when_missing is WhenMissing.REFUSE:
        codes[state == states.MISSING] = reasons.MISSING
    if is_strict or request.when_stale is WhenStale.REFUSE:
        codes[state == states.STALE] = reasons.STALE
    policy = columns.policy[rows]
    judged = (policy == states.SINGLE) | (
        (policy == states.RESTRICTED) & (request.restricted is RestrictedPolicy.PREDICT)
    )
    judged &= (codes == 0) & ((state == states.FRESH) | (state == states.STALE))
    for at, part in parts(columns, rows, judged, request, view_for(request)):
        is_single, is_pod_scope = part.block.policy == states.SINGLE, part.block.is_pod_scope
        asks = filtered_units(request, is_pod_scope=is_pod_scope, is_single=is_single)
        if not asks:
            continue
        if is_single:
            # The last is that of `NOBODY`.
            of_asks = [reasons.code_of(it.kind, is_pod_scope=is_pod_scope) for it in asks] + [0]
            failed = align_single(part, request, asks)
            codes[at] = part.pick(np.array(of_asks, dtype=np.uint8)[failed])
        else:
            failed = align_minimally(part, request, asks)
            code = reasons.MINIMAL_POD if is_pod_scope else reasons.MINIMAL_CONTAINER
            codes[at] = part.pick(np.where(failed == NOBODY, 0, code))
    crowded = judged & (codes == 0) & crowds(columns, rows, request)
    for at, part in parts(columns, rows, crowded, request, View.DOUBTFUL):
        codes[at] = part.pick(np.where(_fits_in_crowd(part, request), 0, reasons.CROWDED))
    return codes


def view_for(request: NumaRequest) -> View:
    """Return the view for a pod: strict ones have to fit wherever those lie whose zones are not certain."""
    return View.DOUBTFUL if request.mode == STRICT else View.FREE


def crowds(columns: NumaColumns, rows: Rows, request: NumaRequest) -> Flags:
    """Return per row whether others may take the zones that the pod would get: see `arriving`."""
    if request.is_literal or columns.presumes or not request.aligned:
        return np.zeros(len(rows), dtype=np.bool_)
    coming = columns.coming[rows]
    crowded: Flags = (coming != NONE) & (coming != shape_of(request.aligned))
    return crowded


def _fits_in_crowd(part: Part, request: NumaRequest) -> Flags:
    """Return per row whether one zone has all that the pod asks, whoever else goes there first."""
    asks = aligned_units(request, is_pod_scope=part.block.is_pod_scope)
    if any(it.kind == INIT for it in asks):
        return np.zeros(part.count, dtype=np.bool_)
    together: dict[str, int] = {}
    for name, amount in (it for ask in asks for it in ask.amounts):
        together[name] = together.get(name, 0) + amount
    whole = ContainerAsk("", APP, tuple(together.items()))
    fits: Flags = align_single(part, request, (whole,)) == NOBODY
    return fits


def filtered_units(
    request: NumaRequest, *, is_pod_scope: bool, is_single: bool
) -> tuple[ContainerAsk, ...]:
    """Return what zones have to give, in this order, for the filter to pass a node."""
    if is_single and request.is_literal:
        return units(request, is_pod_scope=is_pod_scope)
    return aligned_units(request, is_pod_scope=is_pod_scope)


def score_rows(columns: NumaColumns, rows: Rows, request: NumaRequest) -> Scores:
    """Return 0..100 per row by the request's strategy.

    Upstream's strategies give every pod that is not Guaranteed 100 everywhere, and a Guaranteed one
    0 where the topology is not known.
    """
    if not request.is_guaranteed and request.strategy is not NumaStrategy.PREDICTED_ZONE:
        return np.full(len(rows), 100.0)
    scores = np.zeros(len(rows))
    state, policy = columns.state[rows], columns.policy[rows]
    known = (state == states.FRESH) | (state == states.STALE)
    scored = known
    if request.strategy in _IN_UNITS:
        scored = known & (policy == states.SINGLE)
    counts_units = request.strategy in _IN_UNITS
    for at, part in parts(columns, rows, scored, request, View.FREE, with_units=counts_units):
        scores[at] = part.pick(score_part(part, request))
    if request.when_missing is WhenMissing.PREFER_KNOWN:
        scores[known] = np.maximum(scores[known], 1.0)
    return scores


def allocate_row(columns: NumaColumns, row: int, request: NumaRequest) -> dict[str, Any]:
    """Return what each zone will give, as quantities by resource, where the topology is known."""
    zones = columns.zones(row)
    if zones is None or columns.state[row] in (states.MISSING, states.UNRELIABLE):
        return {}
    free = [dict(zone) for zone in columns.free(row)]
    given: dict[int, dict[str, int]] = {}
    for slot, amounts in _place(free, request, is_pod_scope=zones.scope == "pod"):
        mine = given.setdefault(zones.ids[slot], {})
        for resource, amount in amounts:
            if resource in free[slot]:
                mine[resource] = mine.get(resource, 0) + amount
    return {
        "zones": {
            str(id_): {name: to_text(name, amount) for name, amount in sorted(mine.items())}
            for id_, mine in sorted(given.items())
            if mine
        }
    }


def parts(
    columns: NumaColumns,
    rows: Rows,
    chosen: Flags,
    request: NumaRequest,
    view: View,
    *,
    with_units: bool = False,
) -> Iterator[tuple[NDArray[np.intp], Part]]:
    """Yield the chosen rows by block: their places in `rows`, and the part."""
    places = chosen.nonzero()[0]
    if not len(places):
        return
    kinds = columns.kinds[rows[places]]
    for kind in np.bincount(kinds).nonzero()[0].tolist():
        at = places[kinds == kind]
        block = columns.blocks[kind]
        foresees = request.restricted is RestrictedPolicy.PREDICT
        has_next = len(request.aligned) > 1 and not block.is_pod_scope and not request.is_literal
        yield (
            at,
            read_part(
                columns,
                block,
                columns.indices[rows[at]],
                request,
                view=view,
                with_units=with_units,
                with_totals=request.strategy is NumaStrategy.PREDICTED_ZONE
                or (foresees and block.policy == states.RESTRICTED),
                with_most=has_next and bool(columns.has_leftovers[rows[at]].any()),
            ),
        )


def _place(
    free: Zones, request: NumaRequest, *, is_pod_scope: bool
) -> Iterator[tuple[int, Amounts]]:
    """Yield which zone gives what, taking it off `free`: what the kubelet is going to do.

    Containers that ask for what an init container had come to its zone. What is left of it is taken last.
    """
    if not free:
        return
    left = _left(request, is_pod_scope=is_pod_scope)
    # The zone of the first init container, by resource.
    first: dict[str, int] = {}
    for ask in aligned_units(request, is_pod_scope=is_pod_scope):
        amounts = tuple(it for it in ask.amounts if is_aligned(request, it[0]))
        is_kept = keeps(ask.kind, request)
        if not amounts or not (is_kept or left):
            continue
        bound = {first[name] for name, _ in amounts if name in first and not is_memory(name)}
        slots = _choose(free, amounts, bound)
        if is_pod_scope or not is_kept:
            first = dict.fromkeys((name for name, _ in amounts), slots[0]) | first
        if is_kept and len(slots) == 1:
            take(free, slots[0], amounts)
            yield slots[0], amounts
        elif is_kept:
            yield from take_spread(free, slots, amounts)
    for name, amount in left:
        if is_aligned(request, name):
            slot = first.get(name, 0)
            take(free, slot, ((name, amount),))
            yield slot, ((name, amount),)


def _left(request: NumaRequest, *, is_pod_scope: bool) -> Amounts:
    """Return what init containers keep of zones beside what the units that are placed keep."""
    if request.is_literal or not is_pod_scope:
        return () if request.is_literal else request.left
    beyond = dict(request.left)
    for name in beyond:
        kept = (dict(it.amounts).get(name, 0) for it in request.aligned if it.kind != INIT)
        beyond[name] += sum(kept) - dict(request.aligned_pod).get(name, 0)
    return tuple(it for it in beyond.items() if it[1])


def _choose(free: Zones, amounts: Amounts, bound: Set[int] = frozenset()) -> tuple[int, ...]:
    """Return the lowest zone that holds the amounts, else the fewest zones, else all.

    Bound: one of these zones if it holds them.
    """
    single = candidates(free, amounts)
    single = [slot for slot in single if slot in bound] or single
    if single:
        return (single[0],)
    every = tuple(range(len(free)))
    for count in range(2, len(free)):
        for slots in islice(combinations(every, count), _MOST_SETS):
            if all(
                sum(free[slot].get(name, 0) for slot in slots) >= amount for name, amount in amounts
            ):
                return slots
    return every
