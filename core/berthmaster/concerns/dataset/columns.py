"""Where the datasets are, by row, and what that makes of every other row.

A row is near a dataset by its own zone and region and by those of the rows where the dataset is. For each
request the sum over its datasets is kept for all rows, and made anew when one of them moved or any
row has another place. Names become small numbers: a (zone, region) pair and a region have a code each.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berthmaster.api import names
from berthmaster.api.datasets import CacheSighting, Dataset
from berthmaster.api.inventory import DatasetRole, NodeInventory
from berthmaster.api.objects import Node
from berthmaster.concerns.dataset.inventory import choose
from berthmaster.concerns.dataset.request import DatasetRequest, Weights

Found = tuple[tuple[str, int], ...]
_SUMS_REMEMBERED = 128
_NOWHERE: set[int] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A row's own: names, and codes of its (zone, region) pair and its region, 0 without labels."""

    name: str = ""
    hostname: str = ""
    zone: str = ""
    region_name: str = ""
    pair: int = 0
    region: int = 0


@dataclass(slots=True)
class Sums:
    """Over the datasets of a request, for all rows.

    `tiers` is the sum of the tiers; `gateways` how many have a gateway here; `is_absent` whether the data
    of one without a gateway are missing here.
    """

    stamp: int
    tiers: NDArray[np.int32]
    gateways: NDArray[np.int32]
    is_absent: NDArray[np.bool_]
    # The nodes that have all data of those, by name; None while nobody has asked.
    common: tuple[str, ...] | None = None


class DatasetColumns:
    """Rows of datasets and datasets of rows; `changes` moves whenever a dataset does."""

    def __init__(self) -> None:
        self.changes = 0
        self.places: list[Place] = []
        # How many rows have a hostname.
        self.hostnames: Counter[str] = Counter()
        # By role and dataset: the rows; only those that there are.
        self.where: dict[DatasetRole, dict[str, set[int]]] = {role: {} for role in DatasetRole}
        # By dataset: the number of its latest move.
        self.moves: dict[str, int] = {}
        # The Datasets themselves by key and group, wherever their caches are.
        self.announced: dict[str, dict[str, Dataset]] = {}
        # By key and group: whether the DatasetInternal says where the cache is.
        self._sightings: dict[tuple[str, str], bool] = {}
        self.is_busy: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        # Whether a row has the data of a dataset without a gateway.
        self.has_files: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        # Pods that were placed beside a gateway, by row.
        self.beside: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._here: list[dict[str, DatasetRole]] = []
        self._holders: list[set[str]] = []
        self._pairs: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._regions: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._codes: dict[tuple[str, ...], int] = {}
        self._stamp = 0
        self._sums: OrderedDict[tuple[Found, Weights, bool], Sums] = OrderedDict()

    @property
    def rows(self) -> int:
        """Return how many rows there are."""
        return len(self.places)

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        grown = rows - self.rows
        self.places.extend(Place() for _ in range(grown))
        self._here.extend({} for _ in range(grown))
        self._holders.extend(set() for _ in range(grown))
        self.is_busy = np.concatenate([self.is_busy, np.zeros(grown, dtype=np.bool_)])
        self.has_files = np.concatenate([self.has_files, np.zeros(grown, dtype=np.bool_)])
        self.beside = np.concatenate([self.beside, np.zeros(grown, dtype=np.int32)])
        self._pairs = np.concatenate([self._pairs, np.zeros(grown, dtype=np.int32)])
        self._regions = np.concatenate([self._regions, np.zeros(grown, dtype=np.int32)])
        self._stamp += 1

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        """Take over where the node is and which datasets are on it."""
        self._put(row, self._place(node.metadata.name, node.metadata.labels or {}))
        status = inventory.status if inventory is not None else None
        entries = (status.datasets if status is not None else None) or ()
        self._settle(row, {it.key: it.role for it in entries})
        self.is_busy[row] = bool(status is not None and status.gateway_busy)

    def clear(self, row: int) -> None:
        """Forget the node and who holds something of it."""
        self._settle(row, {})
        self._put(row, Place())
        self.is_busy[row] = False
        self._holders[row].clear()
        self.beside[row] = 0

    def charge(self, row: int, key: str) -> None:
        """Count a pod that was placed beside a gateway."""
        self._holders[row].add(key)
        self.beside[row] = len(self._holders[row])

    def release(self, row: int, key: str) -> None:
        """Count it no more."""
        self._holders[row].discard(key)
        self.beside[row] = len(self._holders[row])

    def observe(self, dataset: Dataset, *, is_gone: bool) -> None:
        """Take over a Dataset, or its end."""
        by_group = self.announced.setdefault(dataset.key, {})
        before = by_group.pop(dataset.group, None)
        if not is_gone:
            by_group[dataset.group] = dataset
        if not by_group:
            del self.announced[dataset.key]
        if before != by_group.get(dataset.group):
            self.changes += 1

    def sight(self, found: CacheSighting, *, is_gone: bool) -> None:
        """Take over whether a DatasetInternal says where the cache is, or its end; only words depend on it."""
        if is_gone:
            self._sightings.pop((found.key, found.group), None)
        else:
            self._sightings[found.key, found.group] = found.is_declared

    def is_declared(self, dataset: Dataset) -> bool | None:
        """Return whether a Dataset's DatasetInternal says where the cache is; None: there is none."""
        return self._sightings.get((dataset.key, dataset.group))

    def find(self, key: str) -> Dataset | None:
        """Return the Dataset that counts."""
        return choose(self.announced.get(key, {}).values())

    def has_gateway(self, key: str) -> bool:
        """Return whether a dataset is reached through a gateway."""
        return key in self.where[DatasetRole.GATEWAY] or key in self.where[DatasetRole.BACKING]

    def rows_of(self, key: str) -> set[int]:
        """Return the rows that a dataset's pods should be on or near; none: it is not usable."""
        role = DatasetRole.GATEWAY if self.has_gateway(key) else DatasetRole.DATA
        return self.where[role].get(key, _NOWHERE)

    def tiers_of(self, key: str, weights: Weights) -> NDArray[np.int32]:
        """Return for all rows what one usable dataset scores there, no gateway being busy."""
        rows = _array(self.rows_of(key))
        pair_hits = _hits(self._pairs, rows)
        region_hits = _hits(self._regions, rows)
        tiers: NDArray[np.int32] = np.where(
            pair_hits, weights.zone, np.where(region_hits, weights.region, 0)
        ).astype(np.int32)
        tiers[rows] = weights.node
        return tiers

    def tier_at(self, key: str, row: int, weights: Weights) -> int:
        """Return what one usable dataset scores on a row, no gateway being busy."""
        rows = self.rows_of(key)
        if row in rows:
            return weights.node
        there = _array(rows)
        place = self.places[row]
        if place.pair and (self._pairs[there] == place.pair).any():
            return weights.zone
        if place.region and (self._regions[there] == place.region).any():
            return weights.region
        return 0

    def sums(self, request: DatasetRequest) -> Sums:
        """Return the sums for a resolved request, as things are now."""
        key = (request.found, request.weights, request.spares_data)
        known = self._sums.get(key)
        if known is None or known.stamp != self._stamp:
            known = self._sums[key] = self._add_up(request)
            if len(self._sums) > _SUMS_REMEMBERED:
                self._sums.popitem(last=False)
        self._sums.move_to_end(key)
        return known

    def common(self, request: DatasetRequest) -> tuple[str, ...]:
        """Return the nodes that have the data of all datasets of the request without a gateway."""
        sums = self.sums(request)
        if sums.common is None:
            rows = np.flatnonzero(~sums.is_absent)
            sums.common = tuple(sorted(it.name for row in rows if (it := self.places[row]).name))
        return sums.common

    def _add_up(self, request: DatasetRequest) -> Sums:
        sums = Sums(
            stamp=self._stamp,
            tiers=np.zeros(self.rows, dtype=np.int32),
            gateways=np.zeros(self.rows, dtype=np.int32),
            is_absent=np.zeros(self.rows, dtype=np.bool_),
        )
        for key, _ in request.found:
            rows = _array(self.rows_of(key))
            tiers = self.tiers_of(key, request.weights)
            if self.has_gateway(key):
                sums.gateways[rows] += 1
                backing = _array(self.where[DatasetRole.BACKING].get(key, _NOWHERE))
                if request.spares_data:
                    tiers[backing] = np.maximum(tiers[backing] - 1, 0)
            else:
                here = np.zeros(self.rows, dtype=np.bool_)
                here[rows] = True
                sums.is_absent |= ~here
            sums.tiers += tiers
        return sums

    def _settle(self, row: int, here: dict[str, DatasetRole]) -> None:
        before = self._here[row]
        if before == here:
            return
        self._here[row] = here
        self.has_files[row] = DatasetRole.DATA in here.values()
        for key in before.keys() | here.keys():
            if before.get(key) is not here.get(key):
                self._move(row, key, before.get(key), here.get(key))

    def _move(
        self, row: int, key: str, before: DatasetRole | None, now: DatasetRole | None
    ) -> None:
        if before is not None:
            rows = self.where[before][key]
            rows.discard(row)
            if not rows:
                del self.where[before][key]
        if now is not None:
            self.where[now].setdefault(key, set()).add(row)
        self._note(key)

    def _put(self, row: int, place: Place) -> None:
        before = self.places[row]
        if before == place:
            return
        self.places[row] = place
        self.hostnames[place.hostname] += 1
        self.hostnames[before.hostname] -= 1
        if not self.hostnames[before.hostname]:
            del self.hostnames[before.hostname]
        self._pairs[row], self._regions[row] = place.pair, place.region
        self._stamp += 1
        for key in self._here[row]:
            # What was near it is not any more, and the other way round.
            self._note(key)

    def _note(self, key: str) -> None:
        self.changes += 1
        self._stamp += 1
        if any(key in by_dataset for by_dataset in self.where.values()):
            self.moves[key] = self.changes
        else:
            self.moves.pop(key, None)

    def _place(self, name: str, labels: Mapping[str, str]) -> Place:
        zone, region = labels.get(names.ZONE, ""), labels.get(names.REGION, "")
        return Place(
            name=name,
            hostname=labels.get(names.HOSTNAME_LABEL, ""),
            zone=zone,
            region_name=region,
            pair=self._code(zone, region) if zone and region else 0,
            region=self._code(region) if region else 0,
        )

    def _code(self, *words: str) -> int:
        return self._codes.setdefault(words, len(self._codes) + 1)


def _hits(codes: NDArray[np.int32], rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return for all rows whether one of the given rows has the same code; 0 is like nothing."""
    wanted = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.bool_)
    wanted[codes[rows]] = True
    wanted[0] = False
    return wanted[codes]


def _array(rows: set[int]) -> NDArray[np.intp]:
    return np.fromiter(rows, dtype=np.intp, count=len(rows))
