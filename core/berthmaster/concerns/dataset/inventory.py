"""Datashim's objects to places: which nodes are a dataset's gateways, which have its data.

    Dataset, DatasetInternal, node labels --locate--> Located: state, mode, nodes
    Located per dataset                   --here--->  the part of one node's inventory

A dataset counts only while it is `usable`; every other state changes nothing for the pods that name it.
Which mode it has is what its DatasetInternal declares, whether or not that can be found: so a gateway
that has gone never turns its cache into one that pods may not leave.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from berthmaster.api import names
from berthmaster.api.datasets import (
    DISABLED,
    OK,
    PENDING,
    Dataset,
    DatasetInternal,
    Placement,
)
from berthmaster.api.inventory import MOST_DATASETS, DatasetRole, NodeDataset

_SHOWN = 3


class DatasetState(StrEnum):
    """How far a dataset is; only a usable one takes part."""

    USABLE = "usable"
    MISSING = "missing"
    NO_INTERNAL = "no-internal"
    NOT_PROVISIONED = "not-provisioned"
    CACHING_DISABLED = "caching-disabled"
    CACHING_NOT_READY = "caching-not-ready"
    NO_PLACEMENT = "no-placement"
    STALE = "stale"


class DatasetMode(StrEnum):
    """How the data are reached: through a gateway from everywhere, or only where they are."""

    GATEWAY = "gateway"
    FILESYSTEM = "filesystem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a dataset is. `roles` by node is empty unless it is usable.

    `stale` are declared placements that no node answers to, which a usable dataset may have too.
    """

    state: DatasetState
    mode: DatasetMode | None = None
    roles: Mapping[str, DatasetRole]
    stale: tuple[Placement, ...] = ()

    def describe(self) -> str:
        """Return the state in words: `stale (kubernetes.io/hostname=n7 is no node)`."""
        if not self.stale:
            return str(self.state)
        gone = ", ".join(map(str, self.stale[:_SHOWN]))
        more = f" and {len(self.stale) - _SHOWN} more" if len(self.stale) > _SHOWN else ""
        return f"{self.state} ({gone}{more}: no such node)"


class NodeIndex:
    """Nodes by name and by label; what a label key finds is gathered when it is first asked for."""

    def __init__(self, labels_by_node: Mapping[str, Mapping[str, str]]) -> None:
        self._labels = labels_by_node
        self._by_key: dict[str, dict[str, set[str]]] = {}

    def find(self, placement: Placement) -> set[str]:
        """Return the nodes of a placement: by label, and for the hostname also by name."""
        by_value = self._by_key.get(placement.key)
        if by_value is None:
            by_value = self._by_key[placement.key] = defaultdict(set)
            for node, labels in self._labels.items():
                if placement.key in labels:
                    by_value[labels[placement.key]].add(node)
        found = set(by_value.get(placement.value, ()))
        if placement.key == names.HOSTNAME_LABEL and placement.value in self._labels:
            found.add(placement.value)
        return found


def choose(candidates: Iterable[Dataset]) -> Dataset | None:
    """Return which of the Datasets of one namespace and name counts: that of the newer group."""
    ranks = {group: rank for rank, group in enumerate(names.DATASHIM_GROUPS)}
    known = [it for it in candidates if it.group in ranks]
    return min(known, key=lambda it: ranks[it.group], default=None)


def locate(dataset: Dataset | None, internal: DatasetInternal | None, nodes: NodeIndex) -> Located:
    """Return how far a dataset is and where; `internal` is the one of the Dataset's own group."""
    state = _state_before_placement(dataset, internal)
    if state is not None or internal is None:
        return Located(state=state or DatasetState.NO_INTERNAL, roles={})
    if not internal.gateways and not internal.data_locations:
        return Located(state=DatasetState.NO_PLACEMENT, roles={})
    mode = DatasetMode.GATEWAY if internal.gateways else DatasetMode.FILESYSTEM
    gateways, no_gateways = _find_all(internal.gateways, nodes)
    data, no_data = _find_all(internal.data_locations, nodes)
    if mode is DatasetMode.GATEWAY:
        roles = dict.fromkeys(data, DatasetRole.BACKING) if gateways else {}
        roles.update(dict.fromkeys(gateways, DatasetRole.GATEWAY))
    else:
        roles = dict.fromkeys(data, DatasetRole.DATA)
    return Located(
        state=DatasetState.USABLE if roles else DatasetState.STALE,
        mode=mode,
        roles=roles,
        stale=tuple(dict.fromkeys((*no_gateways, *no_data))),
    )


def here(node: str, located: Mapping[str, Located]) -> tuple[NodeDataset, ...] | None:
    """Return the node's part of the inventory: what is here of the datasets `namespace/name`."""
    found: list[NodeDataset] = []
    for key in sorted(located):
        role = located[key].roles.get(node)
        if role is not None and len(found) < MOST_DATASETS:
            namespace, _, name = key.partition("/")
            found.append(NodeDataset(namespace=namespace, name=name, role=role))
    return tuple(found) or None


def _state_before_placement(
    dataset: Dataset | None, internal: DatasetInternal | None
) -> DatasetState | None:
    """Return why a dataset is not even looked for, in the order in which upstream asks."""
    if dataset is None:
        return DatasetState.MISSING
    if internal is None:
        return DatasetState.NO_INTERNAL
    if dataset.provision != OK:
        return DatasetState.NOT_PROVISIONED
    if dataset.caching == DISABLED:
        return DatasetState.CACHING_DISABLED
    if dataset.caching not in (OK, PENDING):
        return DatasetState.CACHING_NOT_READY
    return None


def _find_all(
    placements: Iterable[Placement], nodes: NodeIndex
) -> tuple[set[str], tuple[Placement, ...]]:
    found: set[str] = set()
    missing = []
    for placement in placements:
        there = nodes.find(placement)
        found |= there
        if not there:
            missing.append(placement)
    return found, tuple(missing)
