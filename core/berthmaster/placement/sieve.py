"""Which of many waiting requests a node may have room for, told by counted amounts alone, all at once.

A request that passes may still be refused for something else; one that does not pass surely is. So when a
slot comes free among thousands of requests, only those that could take it are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

KeyT = TypeVar("KeyT", bound=Hashable)

_FIRST_ROWS = 64
# Of what else pods may ask for nothing is told here.
_MOST_NAMES = 64
# Nothing is asked: any amount will do, also one that is overdrawn.
_NOTHING = np.iinfo(np.int64).min


class Sieve(Generic[KeyT]):
    """Requests by key; a row of the array each, a column for each name of something counted."""

    def __init__(self) -> None:
        self._asked: NDArray[np.int64] = np.full((_FIRST_ROWS, 1), _NOTHING, dtype=np.int64)
        self._columns: dict[str, int] = {}
        self._rows: dict[KeyT, int] = {}
        self._keys: list[KeyT | None] = [None] * _FIRST_ROWS
        self._unused = list(range(_FIRST_ROWS - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._rows

    def put(self, key: KeyT, needs: Mapping[str, int]) -> None:
        """Add a request, or replace it."""
        self.remove(key)
        for name in needs:
            if name not in self._columns and len(self._columns) < _MOST_NAMES:
                self._columns[name] = len(self._columns)
                if len(self._columns) > self._asked.shape[1]:
                    self._grow(rows=0, columns=self._asked.shape[1])
        if not self._unused:
            self._grow(rows=len(self._keys), columns=0)
        row = self._rows[key] = self._unused.pop()
        self._keys[row] = key
        self._asked[row] = _NOTHING
        for name, amount in needs.items():
            if name in self._columns:
                self._asked[row, self._columns[name]] = amount

    def remove(self, key: KeyT) -> None:
        """Forget a request; an unknown one is ignored."""
        row = self._rows.pop(key, None)
        if row is not None:
            self._keys[row] = None
            self._unused.append(row)

    def passing(self, free: Mapping[str, int]) -> list[KeyT]:
        """Return the keys of the requests for which nothing counted is lacking."""
        limits = np.zeros(self._asked.shape[1], dtype=np.int64)
        for name, column in self._columns.items():
            limits[column] = free.get(name, 0)
        rows = np.flatnonzero((self._asked <= limits).all(axis=1)).tolist()
        return [key for row in rows if (key := self._keys[row]) is not None]

    def _grow(self, *, rows: int, columns: int) -> None:
        have = len(self._keys)
        self._asked = np.pad(self._asked, ((0, rows), (0, columns)), constant_values=_NOTHING)
        self._keys += [None] * rows
        self._unused += range(have + rows - 1, have - 1, -1)
