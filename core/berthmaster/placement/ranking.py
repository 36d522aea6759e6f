"""Which rows are the best: the winner, and those that come next.

Most rows cannot be among the best few, and telling that costs less than ordering them: rows are looked
at in groups, and a row below the k-th largest of the groups' maxima is not among the k largest rows.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.shape import Rows, Scores

# Totals closer than this are equal: a mean of whole numbers differs by more.
_SAME = 1e-9
_GROUPS = 256


class Ranking:
    """The best rows by their totals, of which those below 0 do not count.

    `ties` tells rows of equal total apart, and then an order that `hashes` of the rows' names and the
    decision's id give: any two rows differ in it, whatever their numbers are.
    """

    def __init__(
        self, totals: Scores, ties: Scores, hashes: NDArray[np.uint64], decision_id: str, count: int
    ) -> None:
        self._totals = totals
        self._ties = ties
        self._hashes = hashes
        self._seed = int.from_bytes(blake2b(decision_id.encode(), digest_size=8).digest(), "little")
        self._top = _largest(totals, count)

    def best(self) -> int | None:
        """Return the row of the largest total, None where no row counts."""
        if not len(self._top):
            return None
        values = self._totals[self._top]
        rows = self._top[values >= values.max() - _SAME]
        if len(rows) > 1:
            ties = self._ties[rows]
            rows = rows[ties >= ties.max() - _SAME]
        return int(rows[self._ranks(rows).argmin()] if len(rows) > 1 else rows[0])

    def top(self, count: int) -> Rows:
        """Return so many of the largest rows, fewer where fewer count; not more than was said first."""
        values = self._totals[self._top]
        if len(values) <= count:
            return self._top
        least = np.partition(values, -count)[-count]
        above, equal = self._top[values > least], self._top[values == least]
        wanted = count - len(above)
        if len(equal) > wanted:
            # Many are as good as the last of the top: take some whatever their rows are.
            equal = equal[np.argpartition(self._ranks(equal), wanted - 1)[:wanted]]
        return np.concatenate([above, equal])

    def _ranks(self, rows: Rows) -> NDArray[np.uint64]:
        mixed = (self._hashes[rows] ^ np.uint64(self._seed)) * np.uint64(0x9E3779B97F4A7C15)
        return mixed ^ (mixed >> np.uint64(29))


def _largest(totals: Scores, count: int) -> Rows:
    """Return all rows of 0 or more that are not below the `count` largest, and perhaps others."""
    least = 0.0
    size = len(totals) // _GROUPS
    if size > 1:
        groups = totals[: size * _GROUPS].reshape(size, _GROUPS).max(axis=0)
        least = max(float(np.partition(groups, -count)[-count]) - _SAME, 0.0)
    return np.flatnonzero(totals >= least)
