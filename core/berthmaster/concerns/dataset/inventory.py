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
from dataclasses import dataclass, field
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
from berthmaster.api.schema import StatusCondition

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
    """Where a dataset is. `roles` by node is empty unless it is usable; `nodes` are named in any case.

    `stale` are declared placements that no node answers to, which a usable dataset may have too.
    """

    state: DatasetState
    mode: DatasetMode | None = None
    roles: Mapping[str, DatasetRole] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()
    stale: tuple[Placement, ...] = ()

    def describe(self) -> str:
        """Return the state in words: `stale (kubernetes.io/hostname=n7: no such node)`."""
        if not self.stale:
            return str(self.state)
        return f"{self.state} ({_some(list(map(str, self.stale)))}: no such node)"


class NodeIndex:
    """Nodes by name and by label; what a label key finds is gathered when it is first asked for."""

    def __init__(self, labels_by_node: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._labels: dict[str, Mapping[str, str]] = dict(labels_by_node or {})
        self._by_key: dict[str, dict[str, set[str]]] = {}

    def put(self, node: str, labels: Mapping[str, str]) -> frozenset[Placement]:
        """Take over a node's labels; return the placements that may find other nodes by it."""
        before = self._labels.get(node)
        self._labels[node] = labels
        return self._changed(node, before, labels)

    def drop(self, node: str) -> frozenset[Placement]:
        """Forget a node; return the placements that may find other nodes by it."""
        return self._changed(node, self._labels.pop(node, None), None)

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

    def _changed(
        self, node: str, before: Mapping[str, str] | None, now: Mapping[str, str] | None
    ) -> frozenset[Placement]:
        changed = set((before or {}).items()) ^ set((now or {}).items())
        for key, value in changed:
            by_value = self._by_key.get(key)
            if by_value is None:
                continue
            if now is not None and now.get(key) == value:
                by_value[value].add(node)
            else:
                by_value[value].discard(node)
        if (before is None) != (now is None):
            changed.add((names.HOSTNAME_LABEL, node))
        return frozenset(Placement(*it) for it in changed)


def choose(candidates: Iterable[Dataset]) -> Dataset | None:
    """Return which of the Datasets of one namespace and name counts: that of the newer group."""
    ranks = {group: rank for rank, group in enumerate(names.DATASHIM_GROUPS)}
    known = [it for it in candidates if it.group in ranks]
    return min(known, key=lambda it: ranks[it.group], default=None)


def locate(dataset: Dataset | None, internal: DatasetInternal | None, nodes: NodeIndex) -> Located:
    """Return how far a dataset is and where; `internal` is the one of the Dataset's own group."""
    state = DatasetState.MISSING if dataset is None else None
    if dataset is not None and internal is not None:
        state = state_of(dataset)
    if internal is None:
        return Located(state=state or DatasetState.NO_INTERNAL)
    if not internal.gateways and not internal.data_locations:
        return Located(state=state or DatasetState.NO_PLACEMENT)
    mode = DatasetMode.GATEWAY if internal.has_gateway else DatasetMode.FILESYSTEM
    gateways, no_gateways = _find_all(internal.gateways, nodes)
    data, no_data = _find_all(internal.data_locations, nodes)
    if mode is DatasetMode.GATEWAY:
        roles = dict.fromkeys(data, DatasetRole.BACKING) if gateways else {}
        roles.update(dict.fromkeys(gateways, DatasetRole.GATEWAY))
    else:
        roles = dict.fromkeys(data, DatasetRole.DATA)
    if state is None:
        state = DatasetState.USABLE if roles else DatasetState.STALE
    return Located(
        state=state,
        mode=mode,
        roles=roles if state is DatasetState.USABLE else {},
        nodes=frozenset(gateways | data),
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


def judge(located: Mapping[str, Located]) -> StatusCondition | None:
    """Return the condition of a node that these datasets name; None if none does.

    True: all of them are usable. Those that are not change nothing for pods, and are told here.
    """
    if not located:
        return None
    unusable = [
        f"{key} is {located[key].describe()}"
        for key in sorted(located)
        if located[key].state is not DatasetState.USABLE
    ]
    if unusable:
        return StatusCondition(
            type=names.DATASET_READY, status="False", reason="NotUsable", message=_some(unusable)
        )
    message = f"the cache is here of {_some(sorted(located))}"
    return StatusCondition(
        type=names.DATASET_READY, status="True", reason="Usable", message=message
    )


def state_of(dataset: Dataset) -> DatasetState | None:
    """Return why a Dataset by itself is not usable, in the order in which upstream asks; else None."""
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


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return f"{shown} and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown
