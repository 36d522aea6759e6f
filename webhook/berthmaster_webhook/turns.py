"""Turns of namespaces: who has had fewer pods placed from the queue, for its weight, goes first.

Each placement of a namespace begins where its last one ended, or where the queue is now if that is later,
and lasts 1 / weight; the namespace that would begin first has its turn. So among namespaces with pods
that fit, each gets its share whatever the others bring, and nobody saves up turns by having no pods or
by waiting for room (start-time fair queuing, Goyal et al. 1996, counted in pods).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from berthmaster.api import names

MOST_WEIGHT = 100
_FIRST_LIMIT = 1024


class Turns:
    """`weight_of` gives a namespace's weight, above 0."""

    def __init__(self, weight_of: Callable[[str], int]) -> None:
        self._weight_of = weight_of
        self._now = 0.0
        self._ends: dict[str, float] = {}
        self._limit = _FIRST_LIMIT

    def of(self, namespace: str) -> float:
        """Return when a namespace's next turn begins; it never becomes less."""
        return max(self._now, self._ends.get(namespace, 0.0))

    def take(self, namespace: str) -> None:
        """Note that a namespace had its turn."""
        self._now = self.of(namespace)
        self._ends[namespace] = self._now + 1 / self._weight_of(namespace)
        if len(self._ends) > self._limit:
            # Who ended in the past begins now in any case.
            self._ends = {key: end for key, end in self._ends.items() if end > self._now}
            self._limit = max(_FIRST_LIMIT, 2 * len(self._ends))


def read_weight(labels: Mapping[str, str] | None) -> int:
    """Return the weight that a namespace's label gives it, 1..100; 1 without one that can be read."""
    text = (labels or {}).get(names.QUEUE_WEIGHT, "")
    # Not every digit of Unicode is one of ours, and a long number is no weight.
    is_weight = text.isascii() and text.isdecimal() and len(text) <= 3
    return min(int(text), MOST_WEIGHT) if is_weight and int(text) else 1
