"""Events of a watch in an order that can have been: what a new list shows comes at its end, ends first.

When a watch cannot be resumed, an informer lists anew and tells of what is there before what is gone. A
kubelet that took in the new before the old had left would find no room. `EventsInOrder` stands between an
informer and its reader and holds back what a list tells, until it is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from berthmaster.cluster.informers import EventKind, Informer

T = TypeVar("T")


class EventsInOrder(Generic[T]):
    """Give `take` to the informer as `on_event` and `flush` as `on_sync`; `informer` is set after that."""

    def __init__(self, see: Callable[[EventKind, T], None], *, key: Callable[[T], str]) -> None:
        self._see = see
        self._key = key
        self._held: dict[str, tuple[EventKind, T]] = {}
        self.informer: Informer[T] | None = None

    def take(self, kind: EventKind, obj: T) -> None:
        """Hand an event on, or hold it back during a list; of one object only the last counts."""
        # Without a version to resume from, the informer lists.
        if self.informer is not None and not self.informer.resource_version:
            self._held[self._key(obj)] = (kind, obj)
        else:
            self._see(kind, obj)

    def flush(self) -> None:
        """Tell what a complete list has shown: first who is gone, then who is there."""
        held, self._held = self._held, {}
        for kind, obj in sorted(held.values(), key=lambda it: it[0] is not EventKind.DELETED):
            self._see(kind, obj)
