"""What was found for a request over all rows, remembered, and brought up to date where rows changed.

The next replica of a workload asks the same of each concern, so it finds everything as its predecessor
left it but for the rows that changed meanwhile. Only those are filtered and scored again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.shape import AnyConcern, Rows, Scores
from berthmaster.placement.table import NodeTable

_SHAPES_REMEMBERED = 128
# Of all remembered arrays together. Some shapes are remembered however many nodes there are.
MOST_BYTES = 192 * 2**20
_LEAST_SHAPES = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """What a pod asks of one concern, and what that counts."""

    index: int
    weight: int
    request: Hashable


PodRequest = tuple[Ask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """The nodes that one reason refuses."""

    group: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} ({', '.join(self.examples)}{more}) {self.group}"


@dataclass(slots=True)
class Results:
    """A request's results for all rows, as of `tick`.

    `codes` are (concern + 1) * 256 + the concern's code, 0 where the row fits. `scores` has a row of this
    table for each ask: what its concern says of the nodes that fit. `totals` and `ties` are the means
    by weight, and of the asks without weight; -1 in `totals` where a node does not fit. The means are without
    relative concerns, until these were compared: `compared` are then their scores by the ask's place.

    `refusals` are the refused nodes by reason, None while nobody has counted them. `groups` are the words
    last made for a code: for which row, in which version of it. `is_local` says whether no wide
    concern had anything to say when this was asked for last.
    """

    codes: NDArray[np.uint16]
    scores: Scores
    totals: Scores
    ties: Scores
    tick: int = -1
    compared: dict[int, Scores] = field(default_factory=dict)
    refusals: tuple[Refusals, ...] | None = None
    groups: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    is_local: bool = True


class Shapes:
    """The results of the last requests. `relative` are the concerns whose scores are no scores yet."""

    def __init__(
        self, table: NodeTable, relative: Collection[int], *, most_bytes: int = MOST_BYTES
    ) -> None:
        self._table = table
        self._relative = relative
        self._known: OrderedDict[PodRequest, Results] = OrderedDict()
        self._most_bytes = most_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def results(self, request: PodRequest) -> Results:
        """Return what is found for a request now; it stays as it is until this is called again."""
        found = self._known.get(request)
        if found is not None and len(found.codes) != self._table.size:
            self._forget(request)
            found = None
        if found is None:
            found = self._remember(request)
        else:
            self._known.move_to_end(request)
        if found.tick != self._table.tick:
            self._refresh(found, request)
        return found

    def _remember(self, request: PodRequest) -> Results:
        size = self._table.size
        found = self._known[request] = Results(
            codes=np.zeros(size, dtype=np.uint16),
            scores=np.zeros((len(request), size)),
            totals=np.full(size, -1.0),
            ties=np.zeros(size),
        )
        self._bytes += _size_of(found)
        while len(self._known) > _SHAPES_REMEMBERED or (
            self._bytes > self._most_bytes and len(self._known) > _LEAST_SHAPES
        ):
            self._forget(next(iter(self._known)))
        return found

    def _forget(self, request: PodRequest) -> None:
        self._bytes -= _size_of(self._known.pop(request))

    def _refresh(self, found: Results, request: PodRequest) -> None:
        rows = self._table.changed_since(found.tick)
        found.tick = self._table.tick
        is_refusing = found.codes[rows].any()
        found.codes[rows] = 0
        found.totals[rows] = -1.0
        left = self._filter(found, request, rows[self._table.alive[rows]])
        if is_refusing or len(left) < len(rows):
            found.refusals = None
        if not len(left):
            return
        for at, ask in enumerate(request):
            concern, columns = self._concern(ask)
            found.scores[at, left] = concern.score(columns, left, ask.request)
        found.totals[left] = self._mean(found, request, left, weight_of)
        found.ties[left] = self._mean(found, request, left, weight_of_tie)

    def _filter(self, found: Results, request: PodRequest, rows: Rows) -> Rows:
        """Write the first refusing code of each row; return the rows that no concern refuses."""
        for ask in request:
            if not len(rows):
                break
            concern, columns = self._concern(ask)
            codes = concern.filter(columns, rows, ask.request)
            if codes.any():
                refused = codes != 0
                found.codes[rows[refused]] = codes_of(ask, codes[refused])
                rows = rows[~refused]
        return rows

    def _mean(
        self, found: Results, request: PodRequest, rows: Rows, weigh: Callable[[Ask], int]
    ) -> Scores:
        total: Scores = np.zeros(len(rows))
        weights = 0
        for at, ask in enumerate(request):
            weight = weigh(ask)
            if weight and ask.index not in self._relative:
                total += weight * found.scores[at, rows]
                weights += weight
        return total / weights if weights else np.full(len(rows), 100.0)

    def _concern(self, ask: Ask) -> tuple[AnyConcern, object]:
        concern = self._table.concerns[ask.index]
        return concern, self._table.columns[concern.name]


def codes_of(ask: Ask, codes: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return a concern's codes as they stand beside those of others."""
    return (ask.index + 1) * 256 + codes.astype(np.uint16)


def split_code(code: int) -> tuple[int, int]:
    """Return the index of the concern that refuses, and its own code."""
    return code // 256 - 1, code % 256


def weight_of(ask: Ask) -> int:
    """Return what an ask counts in the total."""
    return ask.weight


def weight_of_tie(ask: Ask) -> int:
    """Return what an ask counts among nodes of equal total."""
    return 0 if ask.weight else 1


def _size_of(found: Results) -> int:
    return found.codes.nbytes + found.scores.nbytes + found.totals.nbytes + found.ties.nbytes
