"""The node table: rows are nodes, columns belong to the concerns.

A row keeps its number while its node exists; a node deleted and created anew gets a clean row.
Every change to a row gives it a new version from one counter, so that a cached result knows with
one comparison of arrays which rows to compute again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Node
from berthmaster.concerns.shape import AnyConcern

_FIRST_ROWS = 64


class NodeTable:
    """Rows by node name, with each concern's columns."""

    def __init__(self, concerns: Sequence[AnyConcern]) -> None:
        self.concerns = tuple(concerns)
        self.columns: dict[str, Any] = {
            concern.name: concern.new_columns() for concern in self.concerns
        }
        self.tick = 0
        # Moves when a row gets another name.
        self.moves = 0
        self.size = 0
        self.alive: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.versions: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.hashes: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.names: list[str] = []
        self.rows: dict[str, int] = {}
        self._uids: dict[str, str] = {}
        self._free: list[int] = []
        self._resize(_FIRST_ROWS)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def row_of(self, name: str) -> int | None:
        """Return the node's row, or None if it is not there."""
        return self.rows.get(name)

    def write(self, node: Node, inventory: NodeInventory | None) -> tuple[int, bool]:
        """Add the node or take over its new state; return its row and whether the row is fresh.

        A node of the same name with another uid is another node: its row starts empty.
        """
        name, uid = node.metadata.name, node.metadata.uid
        if name in self.rows and self._uids[name] != uid:
            self.remove(name)
        fresh = name not in self.rows
        row = self._take_row(name) if fresh else self.rows[name]
        self._uids[name] = uid
        for concern in self.concerns:
            self.columns[concern.name].write_node(row, node, inventory)
        self.touch(row)
        return row, fresh

    def remove(self, name: str) -> None:
        """Forget the node; unknown names are ignored."""
        row = self.rows.pop(name, None)
        if row is None:
            return
        del self._uids[name]
        for concern in self.concerns:
            self.columns[concern.name].clear(row)
        self.alive[row] = False
        self.names[row] = ""
        self.moves += 1
        self.touch(row)
        self._free.append(row)

    def touch(self, row: int) -> None:
        """Give the row a new version."""
        self.tick += 1
        self.versions[row] = self.tick

    def touch_all(self) -> None:
        """Give every row a new version."""
        self.tick += 1
        self.versions[:] = self.tick

    def changed_since(self, tick: int) -> NDArray[np.intp]:
        """Return the rows that changed after `tick`."""
        return np.flatnonzero(self.versions > tick)

    def _take_row(self, name: str) -> int:
        if not self._free:
            self._resize(self.size * 2)
        row = self._free.pop()
        self.rows[name] = row
        self.names[row] = name
        self.moves += 1
        self.alive[row] = True
        digest = blake2b(name.encode(), digest_size=8).digest()
        self.hashes[row] = int.from_bytes(digest, "little")
        return row

    def _resize(self, rows: int) -> None:
        grown = rows - self.size
        self.alive = np.concatenate([self.alive, np.zeros(grown, dtype=np.bool_)])
        self.versions = np.concatenate([self.versions, np.zeros(grown, dtype=np.int64)])
        self.hashes = np.concatenate([self.hashes, np.zeros(grown, dtype=np.uint64)])
        self.names.extend("" for _ in range(grown))
        self.moves += 1
        for concern in self.concerns:
            self.columns[concern.name].resize(rows)
        # Lowest rows first: popped from the end.
        self._free = list(range(rows - 1, self.size - 1, -1)) + self._free
        self.size = rows
