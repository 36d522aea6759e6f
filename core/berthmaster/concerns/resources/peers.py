"""Who is on which row: how many pods a selector finds there, and whom the pods there keep away.

Pods are kept by namespace and labels, not one by one. A selector that was asked about keeps its count
per row from then on, so that a question costs a look into an array; every pod that comes or goes finds
the selectors that want it by its labels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berthmaster.concerns.resources.label_selectors import Labels, Selector, SelectorIndex, matches
from berthmaster.concerns.resources.terms import FlatLabels, Peer, PeerTerm, unfold

Counts = NDArray[np.int32]
# By namespace and labels.
_Spots = dict[str, dict[FlatLabels, int | dict[int, int]]]

# A selector whose count is not kept is counted anew when it is asked about.
COUNTS_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Those:
    """Pods of some namespaces (None: all) that a selector finds."""

    namespaces: frozenset[str] | None
    selector: Selector

    def has(self, namespace: str, labels: Labels) -> bool:
        """Return whether a pod is one of them."""
        is_there = self.namespaces is None or namespace in self.namespaces
        return is_there and matches(self.selector, labels)


@dataclass(frozen=True, slots=True)
class Query:
    """Pods that belong to each of `those`, at least one; `counts_leaving`: also those being deleted."""

    those: tuple[Those, ...]
    counts_leaving: bool

    def has(self, namespace: str, labels: Labels, *, is_leaving: bool) -> bool:
        """Return whether a pod is counted."""
        if is_leaving and not self.counts_leaving:
            return False
        return all(it.has(namespace, labels) for it in self.those)


class Peers:
    """The pods of all rows. `changes` moves with every count that is kept, or may have been."""

    def __init__(self) -> None:
        self.changes = 0
        self._rows = 0
        # A row where there is one pod of the kind, else a number of pods per row: many kinds, as the
        # pods of a StatefulSet, are one pod.
        self._staying: _Spots = {}
        self._leaving: _Spots = {}
        self._counts: OrderedDict[Query, Counts] = OrderedDict()
        self._asking: SelectorIndex[Query] = SelectorIndex()
        self._has_forgotten = False
        self._repelling: dict[PeerTerm, dict[int, int]] = {}
        self._repelled: SelectorIndex[PeerTerm] = SelectorIndex()

    @property
    def any_repels(self) -> bool:
        """Return whether any pod that is there keeps others away."""
        return bool(self._repelling)

    def resize(self, rows: int) -> None:
        """Make room for rows 0..rows-1."""
        self._rows = rows
        for query, counts in self._counts.items():
            grown = np.zeros(rows, dtype=np.int32)
            grown[: len(counts)] = counts
            self._counts[query] = grown

    def put(self, row: int, peer: Peer) -> None:
        """Count a pod on a row."""
        spots = self._spots_of(peer).setdefault(peer.namespace, {})
        there = spots.get(peer.labels)
        if there is None:
            spots[peer.labels] = row
        else:
            by_row = {there: 1} if isinstance(there, int) else there
            by_row[row] = by_row.get(row, 0) + 1
            spots[peer.labels] = by_row
        self._count(row, peer, 1)
        for term in peer.repels:
            if term not in self._repelling:
                self._repelling[term] = {}
                self._repelled.add(term, _scopes(term), term.selector)
            rows = self._repelling[term]
            rows[row] = rows.get(row, 0) + 1

    def take(self, row: int, peer: Peer) -> None:
        """Count a pod no more."""
        spots = self._spots_of(peer)[peer.namespace]
        there = spots[peer.labels]
        if isinstance(there, int):
            del spots[peer.labels]
        else:
            _lower(there, row)
            if not there:
                del spots[peer.labels]
        if not spots:
            del self._spots_of(peer)[peer.namespace]
        self._count(row, peer, -1)
        for term in peer.repels:
            rows = self._repelling[term]
            _lower(rows, row)
            if not rows:
                del self._repelling[term]
                self._repelled.remove(term, _scopes(term), term.selector)

    def count(self, query: Query) -> Counts:
        """Return how many pods each row has that the query finds; not to be written to."""
        counts = self._counts.get(query)
        if counts is None:
            counts = self._counts[query] = self._count_all(query)
            first = query.those[0]
            self._asking.add(query, first.namespaces, first.selector)
            if len(self._counts) > COUNTS_REMEMBERED:
                old, _ = self._counts.popitem(last=False)
                self._asking.remove(old, old.those[0].namespaces, old.those[0].selector)
                self._has_forgotten = True
        self._counts.move_to_end(query)
        return counts

    def objections(
        self, namespace: str, labels: Labels, namespace_labels: Labels
    ) -> tuple[PeerTerm, ...]:
        """Return the terms by which pods that are there keep such a pod away, in a fixed order."""
        found = [
            term
            for term in self._repelled.find(namespace, labels)
            if term.matches(namespace, labels, namespace_labels)
        ]
        return tuple(sorted(found, key=repr)) if len(found) > 1 else tuple(found)

    def rows_repelling(self, term: PeerTerm) -> NDArray[np.intp]:
        """Return the rows with a pod that has the term."""
        return np.fromiter(self._repelling.get(term, ()), dtype=np.intp)

    def _spots_of(self, peer: Peer) -> _Spots:
        return self._leaving if peer.is_leaving else self._staying

    def _count(self, row: int, peer: Peer, sign: int) -> None:
        if self._has_forgotten:
            self.changes += 1
        if not self._counts:
            return
        labels = unfold(peer.labels)
        for query in self._asking.find(peer.namespace, labels):
            if query.has(peer.namespace, labels, is_leaving=peer.is_leaving):
                self._counts[query][row] += sign
                self.changes += 1

    def _count_all(self, query: Query) -> Counts:
        counts = np.zeros(self._rows, dtype=np.int32)
        if any(it.selector is None for it in query.those):
            return counts
        for there in self._found(query, self._staying):
            _add(counts, there)
        if query.counts_leaving:
            for there in self._found(query, self._leaving):
                _add(counts, there)
        return counts

    def _found(self, query: Query, spots: _Spots) -> Iterator[int | dict[int, int]]:
        namespaces = query.those[0].namespaces
        for namespace in spots if namespaces is None else namespaces:
            for labels, there in spots.get(namespace, {}).items():
                if query.has(namespace, unfold(labels), is_leaving=False):
                    yield there


def _scopes(term: PeerTerm) -> tuple[str, ...] | None:
    return term.namespaces if term.namespace_selector is None else None


def _add(counts: Counts, there: int | dict[int, int]) -> None:
    for row, number in ((there, 1),) if isinstance(there, int) else there.items():
        counts[row] += number


def _lower(rows: dict[int, int], row: int) -> None:
    rows[row] -= 1
    if not rows[row]:
        del rows[row]
