"""Label selectors as values, and which of many selectors a pod's labels meet.

A selector is a tuple of requirements that must all hold: `()` selects everything, `None` nothing, as
an empty and an absent selector do in Kubernetes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from berthmaster.api.objects import LabelSelector


@dataclass(frozen=True, slots=True)
class Requirement:
    """One expression over a label, or over a node's name."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


Selector = tuple[Requirement, ...] | None
Labels = Mapping[str, str]

_Item = TypeVar("_Item", bound=Hashable)


def read_selector(selector: LabelSelector | None) -> Selector:
    """Return a selector's value, equal for equal meanings in any order."""
    if selector is None:
        return None
    found = {Requirement(key, "In", (it,)) for key, it in (selector.match_labels or {}).items()}
    for expression in selector.match_expressions or ():
        values = tuple(sorted(set(expression.values or ())))
        found.add(Requirement(expression.key, expression.operator, values))
    return tuple(sorted(found, key=lambda it: (it.key, it.operator, it.values)))


def require(selector: Selector, *more: Requirement) -> Selector:
    """Return the selector with more requirements; one that selects nothing stays so."""
    if selector is None or not more:
        return selector
    joined = {*selector, *more}
    return tuple(sorted(joined, key=lambda it: (it.key, it.operator, it.values)))


def matches(selector: Selector, labels: Labels) -> bool:
    """Return whether the labels are selected."""
    return selector is not None and all(_holds(it, labels) for it in selector)


def _holds(requirement: Requirement, labels: Labels) -> bool:
    value = labels.get(requirement.key)
    if requirement.operator == "In":
        return value in requirement.values
    if requirement.operator == "NotIn":
        return value not in requirement.values
    if requirement.operator == "Exists":
        return value is not None
    return requirement.operator == "DoesNotExist" and value is None


class SelectorIndex(Generic[_Item]):
    """Items that each wait for pods of some namespaces with some labels.

    A pod is compared only with the items of its namespace that ask for one of its labels, and with
    those that ask for none in particular. `namespaces` is None where the item decides that itself.
    """

    def __init__(self) -> None:
        self._buckets: dict[Hashable, dict[_Item, None]] = {}

    def add(self, item: _Item, namespaces: Iterable[str] | None, selector: Selector) -> None:
        """Add an item."""
        for key in _buckets_of(namespaces, selector):
            self._buckets.setdefault(key, {})[item] = None

    def remove(self, item: _Item, namespaces: Iterable[str] | None, selector: Selector) -> None:
        """Take an item out, with what it was added with."""
        for key in _buckets_of(namespaces, selector):
            bucket = self._buckets[key]
            del bucket[item]
            if not bucket:
                del self._buckets[key]

    def find(self, namespace: str, labels: Labels) -> Iterator[_Item]:
        """Yield, each once, the items that may want such a pod."""
        if not self._buckets:
            return
        for scope in (namespace, None):
            yield from self._buckets.get((scope, None), ())
            for pair in labels.items():
                yield from self._buckets.get((scope, pair), ())


def _buckets_of(namespaces: Iterable[str] | None, selector: Selector) -> Iterator[Hashable]:
    if selector is None:
        return
    scopes: Iterable[str | None] = (None,) if namespaces is None else namespaces
    asked = next((it for it in selector if it.operator == "In"), None)
    for scope in scopes:
        if asked is None:
            yield scope, None
        else:
            for value in asked.values:
                yield scope, (asked.key, value)
