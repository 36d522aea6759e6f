"""How many volumes of each CSI driver a node has attached, and how many it can have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.resources.labels import Mask

Handle = tuple[str, str]

_NO_LIMIT = np.iinfo(np.int32).max


class Attachments:
    """Volumes in use by row, counted for the drivers that have a limit anywhere.

    `handle_of` gives the driver and the handle of a claim's volume. A row is counted again when it is
    asked about after its claims, or what stands behind them, have changed.
    """

    def __init__(self, handle_of: Callable[[str], Handle | None]) -> None:
        self._handle_of = handle_of
        self._size = 0
        self._limits: dict[str, Mapping[str, int]] = {}
        self._limit_of: dict[str, NDArray[np.int32]] = {}
        self._rows: dict[str, int] = {}
        self._claims: dict[int, dict[str, None]] = {}
        self._handles: dict[int, frozenset[Handle]] = {}
        self._where: dict[Handle, set[int]] = {}
        self._attached: dict[str, NDArray[np.int32]] = {}
        self._stale: set[int] = set()

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self._size = rows
        self._start_over()

    def name_row(self, row: int | None, node: str) -> None:
        """Say which row a node has, None when it is gone."""
        if row is None:
            self._rows.pop(node, None)
        elif self._rows.get(node) != row:
            self._rows[node] = row
        else:
            return
        if node in self._limits:
            self._limit_of.clear()

    def limit(self, node: str, limits: Mapping[str, int]) -> None:
        """Set how many volumes of each driver a node can have."""
        if self._limits.get(node, {}) == limits:
            return
        if limits:
            self._limits[node] = limits
        else:
            del self._limits[node]
        self._limit_of.clear()

    def use(self, row: int, claim: str) -> None:
        """Count a claim on the row."""
        self._claims.setdefault(row, {})[claim] = None
        self._stale.add(row)

    def leave(self, row: int, claim: str) -> None:
        """Count it no more."""
        claims = self._claims[row]
        del claims[claim]
        if not claims:
            del self._claims[row]
        self._stale.add(row)

    def forget(self, rows: Iterable[int]) -> None:
        """Count these rows again when they are asked about."""
        self._stale.update(rows)

    def forget_all(self) -> None:
        """Count all rows again when they are asked about."""
        self._stale.update(self._claims)

    def are_full(self, claims: Iterable[str]) -> Mask:
        """Return for each row whether a pod with these claims would go past a limit."""
        full = np.zeros(self._size, dtype=np.bool_)
        if not self._limits:
            return full
        found = map(self._handle_of, claims)
        new = {it for it in found if it is not None}
        for driver in {it[0] for it in new}:
            limits = self._limits_of(driver)
            if limits is None:
                continue
            self._count()
            handles = {it for it in new if it[0] == driver}
            more = np.full(self._size, len(handles), dtype=np.int32)
            for handle in handles:
                more[list(self._where.get(handle, ()))] -= 1
            attached = self._attached.get(driver)
            total = more if attached is None else attached + more
            full |= (more > 0) & (total > limits)
        return full

    def _limits_of(self, driver: str) -> NDArray[np.int32] | None:
        found = self._limit_of.get(driver)
        if found is None:
            found = np.full(self._size, _NO_LIMIT, dtype=np.int32)
            for node, limits in self._limits.items():
                row = self._rows.get(node)
                if row is not None and driver in limits:
                    found[row] = limits[driver]
            self._limit_of[driver] = found
        return found if (found != _NO_LIMIT).any() else None

    def _count(self) -> None:
        for row in self._stale:
            for handle in self._handles.pop(row, ()):
                self._attached[handle[0]][row] -= 1
                self._where[handle].discard(row)
                if not self._where[handle]:
                    del self._where[handle]
            found = map(self._handle_of, self._claims.get(row, ()))
            handles = frozenset(it for it in found if it is not None)
            if handles:
                self._handles[row] = handles
            for handle in handles:
                if handle[0] not in self._attached:
                    self._attached[handle[0]] = np.zeros(self._size, dtype=np.int32)
                self._attached[handle[0]][row] += 1
                self._where.setdefault(handle, set()).add(row)
        self._stale.clear()

    def _start_over(self) -> None:
        self._limit_of.clear()
        self._attached.clear()
        self._handles.clear()
        self._where.clear()
        self._stale = set(self._claims)
