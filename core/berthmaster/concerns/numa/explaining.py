"""Why a node's zones cannot serve a pod: which container, which resource, and what would help.

What is said to help was tried: the same filter was asked again with the change made. The codes and
the words are in `reasons`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from berthmaster.concerns.numa import placement, reasons
from berthmaster.concerns.numa.aligning import NOBODY, Part, constrains
from berthmaster.concerns.numa.amounts import (
    MEMORY,
    is_affine,
    is_memory,
    scale_of,
    whole_part,
)
from berthmaster.concerns.numa.columns import NumaColumns
from berthmaster.concerns.numa.request import INIT, Amounts, ContainerAsk, NumaRequest
from berthmaster.concerns.numa.restricted import align_minimally, align_single, fewest_ever
from berthmaster.concerns.shape import Reason

Asks = tuple[ContainerAsk, ...]
# What is proposed to ask more of, where one unit would be a byte.
_STEPS = {MEMORY: 2**20 * scale_of(MEMORY)}


def explain(columns: NumaColumns, row: int, code: int, request: NumaRequest) -> Reason:
    """Return the words for a code that the filter gave for this row."""
    zones = columns.zones(row)
    if zones is None or code in reasons.OF_NODE:
        return reasons.plain(code)
    is_minimal = code in (reasons.MINIMAL_POD, reasons.MINIMAL_CONTAINER)
    node = _Node(columns, row, request, is_minimal=is_minimal)
    failed, part = node.place(node.asks, is_minimal=is_minimal)
    if failed == NOBODY:
        # The node has changed since; the code is all that is left.
        return reasons.plain(code)
    ask = node.asks[failed]
    other_scope = node.other_scope(is_minimal=is_minimal)
    if node.place(node.asks[: failed + 1], is_minimal=is_minimal)[0] == NOBODY:
        return reasons.uncertain(code, ask.name, other_scope)
    if is_minimal:
        widths = [
            (name, amount, int(fewest_ever(part, name, amount)[0]))
            for name, amount in ask.amounts
            if amount and constrains(part, request, name)[0]
        ]
        other = next(
            (
                it
                for it in _of_one_width(part, widths)
                if node.fits_with(failed, it, is_minimal=True)
            ),
            (),
        )
        return reasons.cannot_align_minimally(
            code, ask.name, widths, limits=other, other_scope=other_scope
        )
    unknown = next((it for it, amount in ask.amounts if amount and not part.known[it][0]), "")
    wanted = tuple(_wanted(part, request, ask.amounts))
    cells = [
        (
            id_,
            {
                name: int(part.amounts[name][0, slot])
                for name, _ in wanted
                if part.amounts[name][0, slot] >= 0
            },
        )
        for slot, id_ in enumerate(zones.ids)
    ]
    if unknown:
        return reasons.has_not(code, ask.name, unknown)
    nearest = _nearest(wanted, cells)
    lower: Amounts = ()
    if nearest is not None and node.fits_with(failed, nearest[1], is_minimal=False):
        lower = nearest[1]
    return reasons.cannot_align(
        code,
        ask.name,
        wanted,
        cells,
        nearest=nearest,
        limits=lower,
        other_scope=other_scope,
        is_bound=not request.is_literal and _is_bound(node.asks, failed),
    )


class _Node:
    """One node and one request, which may be placed there as often as one likes."""

    def __init__(
        self, columns: NumaColumns, row: int, request: NumaRequest, *, is_minimal: bool
    ) -> None:
        self._columns, self._row, self._request = columns, row, request
        self.is_pod_scope = bool(columns.is_pod_scope[row])
        self.asks = placement.filtered_units(
            request, is_pod_scope=self.is_pod_scope, is_single=not is_minimal
        )

    def place(self, asks: Asks, *, is_minimal: bool) -> tuple[int, Part]:
        """Return the first ask that is not served, and what the zones had then."""
        rows = np.array([self._row], dtype=np.intp)
        view = placement.view_for(self._request)
        every = np.ones(1, dtype=np.bool_)
        _, part = next(placement.parts(self._columns, rows, every, self._request, view))
        serve = align_minimally if is_minimal else align_single
        return int(serve(part, self._request, asks)[0]), part

    def other_scope(self, *, is_minimal: bool) -> str:
        """Return the scope that the node has not, if the pod fitted with it."""
        asks = placement.filtered_units(
            self._request, is_pod_scope=not self.is_pod_scope, is_single=not is_minimal
        )
        if self.place(asks, is_minimal=is_minimal)[0] != NOBODY:
            return ""
        return "container" if self.is_pod_scope else "pod"

    def fits_with(self, failed: int, other: Amounts, *, is_minimal: bool) -> bool:
        """Return whether the pod fits if one of its asks is for other amounts."""
        asks = list(self.asks)
        changed = {**dict(asks[failed].amounts), **dict(other)}
        asks[failed] = asks[failed]._replace(amounts=tuple(sorted(changed.items())))
        return self.place(tuple(asks), is_minimal=is_minimal)[0] == NOBODY


def _is_bound(asks: Asks, failed: int) -> bool:
    """Return whether init containers had some of what the one that failed asks; memory binds nobody."""
    had = {name for it in asks[:failed] if it.kind == INIT for name, _ in it.amounts}
    return any(name in had and not is_memory(name) for name, _ in asks[failed].amounts)


def _nearest(wanted: Amounts, zones: reasons.Zones) -> tuple[int, Amounts] | None:
    """Return the zone that misses the least, and what could be had there of what is short.

    The least is the smallest of the largest shares; a zone that has nothing of something is not near.
    """
    asked, found = dict(wanted), []
    for id_, free in zones:
        cut = tuple(
            (name, whole_part(name, free.get(name, 0)))
            for name, amount in wanted
            if free.get(name, -1) < amount
        )
        if cut and all(amount for _, amount in cut):
            share = max(1 - Fraction(amount, asked[name]) for name, amount in cut)
            found.append((share, id_, cut))
    return min(found)[1:] if found else None


def _of_one_width(part: Part, widths: list[tuple[str, int, int]]) -> Iterator[Amounts]:
    """Yield amounts with which every resource needs the same number of zones.

    First with more of what needs fewer, as that takes nothing from the pod; then with less of the rest.
    """
    counts = [count for *_, count in widths]
    low, high = min(counts), max(counts)
    if low == high:
        return
    if high <= part.size:
        yield tuple(
            (name, _most_of(part, name, high - 1) + _STEPS.get(name, scale_of(name)))
            for name, _, count in widths
            if count < high
        )
    less = tuple(
        (name, whole_part(name, _most_of(part, name, low)))
        for name, _, count in widths
        if count > low
    )
    if all(amount for _, amount in less):
        yield less


def _most_of(part: Part, name: str, count: int) -> int:
    """Return what so many zones of the row could give at the most."""
    totals = sorted(np.maximum(part.totals[name][0], 0).tolist(), reverse=True)
    return int(sum(totals[:count]))


def _wanted(part: Part, request: NumaRequest, amounts: Amounts) -> Iterator[tuple[str, int]]:
    """Yield what zones are looked at for, 0 where they only have to list it."""
    for name, amount in amounts:
        if amount and constrains(part, request, name)[0]:
            yield name, amount if request.is_guaranteed or not is_affine(name) else 0
