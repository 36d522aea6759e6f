"""Where the pods of each ReplicaSet are, in which domain each node is, and what ReplicaSets want."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from berthmaster.api import names
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Node, Pod, ReplicaSet
from berthmaster.concerns.podspread.request import (
    is_scheduled,
    owner_of,
    parse_rate,
    rate_text,
)
from berthmaster.concerns.shape import Surrounding

NO_DOMAIN = -1
_LEVELS = (names.REGION, names.ZONE)


class Wanted(NamedTuple):
    """What a ReplicaSet wants: so many pods, and this share of them spread."""

    replicas: int
    rate: float

    @property
    def redundancy(self) -> int:
        """Return how many pods are spread, rounded down: 0.6 of 7 are 4."""
        return int(self.replicas * self.rate)


class PodSpreadColumns:
    """`domains` are a number per row for region and zone, `NO_DOMAIN` where the label is missing."""

    def __init__(self) -> None:
        self.is_node: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.is_control_plane: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.domains: NDArray[np.intp] = np.full((len(_LEVELS), 0), NO_DOMAIN, dtype=np.intp)
        self.wanted: dict[str, Wanted] = {}
        self.changes = 0
        self._numbers: dict[str, int] = {}
        # By owner: how many of its pods each row has.
        self._counts: dict[str, dict[int, int]] = {}
        # By row: the owner of each pod there.
        self._held: list[dict[str, str]] = []
        self._row_of_node: dict[str, int] = {}
        self._names: list[str] = []
        # By owner and uid: the node of each finished pod.
        self._finished: dict[str, dict[str, str]] = {}
        # By uid: the owner of each of them.
        self._owner_of: dict[str, str] = {}

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        grown = rows - len(self._held)
        self.is_node = np.concatenate([self.is_node, np.zeros(grown, dtype=np.bool_)])
        self.is_control_plane = np.concatenate(
            [self.is_control_plane, np.zeros(grown, dtype=np.bool_)]
        )
        more = np.full((len(_LEVELS), grown), NO_DOMAIN, dtype=np.intp)
        self.domains = np.concatenate([self.domains, more], axis=1)
        self._held.extend({} for _ in range(grown))
        self._names.extend("" for _ in range(grown))

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over a node's labels."""
        del inventory
        labels = node.metadata.labels or {}
        self.is_node[row] = True
        self.is_control_plane[row] = names.CONTROL_PLANE_LABEL in labels
        for level, key in enumerate(_LEVELS):
            value = labels.get(key)
            self.domains[level, row] = (
                NO_DOMAIN if value is None else self._numbers.setdefault(value, len(self._numbers))
            )
        self._names[row] = node.metadata.name
        self._row_of_node[node.metadata.name] = row

    def clear(self, row: int) -> None:
        """Forget the node and the pods there."""
        for key in tuple(self._held[row]):
            self.release(row, key)
        self.is_node[row] = self.is_control_plane[row] = False
        self.domains[:, row] = NO_DOMAIN
        self._row_of_node.pop(self._names[row], None)
        self._names[row] = ""

    def charge(self, row: int, key: str, owner: str) -> None:
        """Count a pod."""
        self._held[row][key] = owner
        counts = self._counts.setdefault(owner, {})
        counts[row] = counts.get(row, 0) + 1
        self.changes += owner in self.wanted

    def release(self, row: int, key: str) -> None:
        """Count a pod no more; unknown ones are ignored."""
        owner = self._held[row].pop(key, None)
        if owner is None:
            return
        counts = self._counts[owner]
        counts[row] -= 1
        if not counts[row]:
            del counts[row]
            if not counts:
                del self._counts[owner]
        self.changes += owner in self.wanted

    def rename(self, row: int, before: str, after: str) -> None:
        """Count another pod in place of one."""
        held = self._held[row]
        if before in held:
            held[after] = held.pop(before)

    def observe(self, found: Surrounding, *, is_gone: bool) -> None:
        """Take over a ReplicaSet that spreads its pods, or a pod that is finished or gone."""
        if isinstance(found, ReplicaSet):
            self._take_replica_set(found, is_gone=is_gone)
        elif isinstance(found, Pod):
            self._take_finished(found, is_gone=is_gone)

    def deployed(self, owner: str, *, with_finished: bool) -> NDArray[np.int64]:
        """Return how many pods of an owner each row has."""
        deployed = np.zeros(len(self.is_node), dtype=np.int64)
        for row, count in self._counts.get(owner, {}).items():
            deployed[row] = count
        if with_finished:
            for node in self._finished.get(owner, {}).values():
                at = self._row_of_node.get(node)
                if at is not None:
                    deployed[at] += 1
        return deployed

    def _take_replica_set(self, found: ReplicaSet, *, is_gone: bool) -> None:
        uid = found.metadata.uid
        rate = parse_rate(rate_text(found.metadata.annotations or {}))
        before = self.wanted.pop(uid, None)
        if not is_gone and rate is not None:
            replicas = found.spec.replicas
            self.wanted[uid] = Wanted(1 if replicas is None else max(replicas, 0), rate)
        if self.wanted.get(uid) != before:
            self.changes += 1

    def _take_finished(self, pod: Pod, *, is_gone: bool) -> None:
        uid = pod.metadata.uid
        if is_gone:
            # Of a pod that vanished between two lists nothing but its name and uid is known.
            owner = self._owner_of.pop(uid, "")
            if owner:
                del self._finished[owner][uid]
                if not self._finished[owner]:
                    del self._finished[owner]
            return
        owner = owner_of(pod)
        if owner and pod.spec.node_name and is_scheduled(pod):
            self._finished.setdefault(owner, {})[uid] = pod.spec.node_name
            self._owner_of[uid] = owner
