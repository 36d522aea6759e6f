"""Where every dataset is: Datashim's objects and the nodes' labels, joined as they come.

Pure bookkeeping, as `fleet`. A Dataset counts with the DatasetInternal of its own group; of two groups
the newer wins. Only what an event touches is looked at again: the datasets of a name, or those whose
placements may mean a node that changed. That is done when somebody reads, or `flush` is called: while a cluster
is being listed a dataset that is on every node would else be located once for each of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from berthmaster.api.datasets import Dataset, DatasetInternal, Placement
from berthmaster.api.inventory import NodeDataset
from berthmaster.api.schema import StatusCondition
from berthmaster.concerns.dataset.inventory import (
    DatasetState,
    Located,
    NodeIndex,
    choose,
    here,
    judge,
    locate,
)
from berthmaster_operator.sightings import is_older

Keyed = Dataset | DatasetInternal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """An object as stored."""

    found: Keyed
    version: str


class DatasetMap:
    """Datasets by `namespace/name`; `on_node` is told whose inventory, `on_dataset` what was looked at.

    `on_pending` is told that something is to be looked at again; without it that is done at once.
    """

    def __init__(
        self, on_node: Callable[[str], None], on_dataset: Callable[[str], None] = lambda _: None
    ) -> None:
        self.on_dataset = on_dataset
        self.on_pending: Callable[[], None] = self.flush
        self._pending: set[str] = set()
        # What corrects stored placements by what is known of the cache.
        self.correct: Callable[[Dataset, DatasetInternal], DatasetInternal] = lambda _, it: it
        self._on_node = on_node
        self._index = NodeIndex()
        # By kind, key and group.
        self._seen: dict[type, dict[str, dict[str, _Seen]]] = {
            Dataset: defaultdict(dict),
            DatasetInternal: defaultdict(dict),
        }
        self._located: dict[str, Located] = {}
        self._by_placement: dict[Placement, set[str]] = defaultdict(set)
        self._placements: dict[str, frozenset[Placement]] = {}
        self._by_node: dict[str, set[str]] = defaultdict(set)
        # The Datasets of a name, in whatever namespace.
        self._by_name: dict[str, set[str]] = defaultdict(set)

    def flush(self) -> None:
        """Locate what was touched; tell whose inventory changed by it."""
        pending, self._pending = self._pending, set()
        for key in sorted(pending):
            self._relocate(key)

    def __len__(self) -> int:
        self.flush()
        return len(self._located)

    def look_again(self, name: str | None) -> None:
        """Locate the datasets of a name anew, or all, after what is known of their caches changed."""
        self._touch(self._located if name is None else self._by_name.get(name, ()))

    def placements(self, key: str) -> tuple[DatasetInternal | None, DatasetInternal | None]:
        """Return a dataset's placements as stored, and as they are by what is known of its cache."""
        self.flush()
        dataset, stored = self._objects(key)
        if dataset is None or stored is None:
            return stored, None
        # The pods of a cache do not say in which namespace their dataset is.
        is_alone = len(self._by_name[dataset.name]) == 1
        return stored, self.correct(dataset, stored) if is_alone else stored

    def find(self, key: str) -> tuple[Dataset | None, DatasetInternal | None, Located | None]:
        """Return what is known of a dataset: its objects that count, and where it is."""
        dataset, _ = self._objects(key)
        return dataset, self.placements(key)[1], self._located.get(key)

    def _objects(self, key: str) -> tuple[Dataset | None, DatasetInternal | None]:
        seen = self._seen[Dataset].get(key, {})
        dataset = choose(it.found for it in seen.values() if isinstance(it.found, Dataset))
        internal = None
        if dataset is not None:
            entry = self._seen[DatasetInternal].get(key, {}).get(dataset.group)
            if entry is not None and isinstance(entry.found, DatasetInternal):
                internal = entry.found
        return dataset, internal

    def here(self, node: str) -> tuple[NodeDataset, ...] | None:
        """Return the node's part of the inventory."""
        self.flush()
        return here(node, self._of(node))

    def judge(self, node: str) -> StatusCondition | None:
        """Return the node's condition."""
        self.flush()
        return judge(self._of(node))

    def count(self) -> Counter[str]:
        """Return how many Datasets are in each state."""
        self.flush()
        return Counter(str(it.state) for it in self._located.values())

    @property
    def stale_placements(self) -> int:
        """Return how many declared placements no node answers to."""
        self.flush()
        return sum(len(it.stale) for it in self._located.values())

    def __iter__(self) -> Iterator[str]:
        """Yield all datasets that there is an object of."""
        self.flush()
        return iter(tuple(self._located))

    def see(self, found: Keyed, version: str) -> None:
        """Take over an object; an older version than the known one changes nothing."""
        by_group = self._seen[type(found)][found.key]
        known = by_group.get(found.group)
        is_same = known is not None and known.found.uid == found.uid
        if known is not None and is_same and is_older(version, known.version):
            return
        by_group[found.group] = _Seen(found=found, version=version)
        if known is None or known.found != found:
            self._changed(found.key)

    def lose(self, kind: type[Keyed], group: str, key: str, uid: str = "") -> None:
        """Forget an object, but not the successor of the one with this uid."""
        by_group = self._seen[kind].get(key, {})
        known = by_group.get(group)
        if known is not None and uid in ("", known.found.uid):
            del by_group[group]
            if not by_group:
                del self._seen[kind][key]
            self._changed(key)

    def known(self, kind: type[Keyed], group: str) -> dict[tuple[str, str], str]:
        """Return the uid of every known object of a kind, by namespace and name."""
        found = {}
        for by_group in self._seen[kind].values():
            it = by_group.get(group)
            if it is not None:
                found[it.found.namespace, it.found.name] = it.found.uid
        return found

    def see_node(self, node: str, labels: Mapping[str, str]) -> None:
        """Take over a node's labels."""
        self._look_at(self._index.put(node, labels))

    def lose_node(self, node: str) -> None:
        """Forget a node."""
        self._look_at(self._index.drop(node))

    def _look_at(self, placements: frozenset[Placement]) -> None:
        for placement in placements:
            self._touch(self._by_placement.get(placement, ()))

    def _touch(self, keys: Iterable[str]) -> None:
        was_empty = not self._pending
        self._pending.update(keys)
        if was_empty and self._pending:
            self.on_pending()

    def _of(self, node: str) -> dict[str, Located]:
        return {key: self._located[key] for key in self._by_node.get(node, ())}

    def _changed(self, key: str) -> None:
        name = key.partition("/")[2]
        before = len(self._by_name[name])
        if key in self._seen[Dataset]:
            self._by_name[name].add(key)
        else:
            self._by_name[name].discard(key)
        others = tuple(self._by_name[name] - {key}) if len(self._by_name[name]) != before else ()
        if not self._by_name[name]:
            del self._by_name[name]
        self._touch((key, *others))

    def _relocate(self, key: str) -> None:
        before = self._located.pop(key, None)
        dataset, internal, _ = self.find(key)
        self._register(key, internal)
        if dataset is None and internal is None and not self._seen[DatasetInternal].get(key):
            now = None
        else:
            now = self._located[key] = locate(dataset, internal, self._index)
        nodes_before = before.nodes if before is not None else frozenset()
        nodes_now = now.nodes if now is not None else frozenset()
        for node in nodes_before - nodes_now:
            self._by_node[node].discard(key)
            if not self._by_node[node]:
                del self._by_node[node]
        for node in nodes_now - nodes_before:
            self._by_node[node].add(key)
        # Also where it is where it was: what is stored may not say so any more.
        self.on_dataset(key)
        if before == now:
            return
        for node in sorted(_affected(before, now)):
            self._on_node(node)

    def _register(self, key: str, internal: DatasetInternal | None) -> None:
        for placement in self._placements.pop(key, ()):
            keys = self._by_placement[placement]
            keys.discard(key)
            if not keys:
                del self._by_placement[placement]
        if internal is not None:
            declared = frozenset((*internal.gateways, *internal.data_locations))
            self._placements[key] = declared
            for placement in declared:
                self._by_placement[placement].add(key)


def _affected(before: Located | None, now: Located | None) -> frozenset[str]:
    """Return the nodes whose inventory or condition says something else by it."""
    if before is None or now is None:
        return (before.nodes if before else frozenset()) | (now.nodes if now else frozenset())
    if before.state is now.state is DatasetState.USABLE:
        # Which of its placements lead nowhere is told of an unusable one only.
        moved = before.nodes ^ now.nodes
        both = before.nodes & now.nodes
        return moved | {it for it in both if before.roles.get(it) is not now.roles.get(it)}
    return before.nodes | now.nodes
