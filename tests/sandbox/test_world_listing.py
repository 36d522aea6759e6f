"""What a new list shows is told at its end: who is gone before who is there."""

from __future__ import annotations

from typing import cast

from berthmaster.cluster.informers import EventKind, Informer
from berthmaster_sandbox.world.listing import EventsInOrder

ADDED, MODIFIED, DELETED = EventKind.ADDED, EventKind.MODIFIED, EventKind.DELETED


class FakeInformer:
    """Only what is looked at: without a version it lists."""

    resource_version = ""


def test_list_is_told_when_it_is_complete_with_ends_first() -> None:
    told: list[tuple[EventKind, str]] = []
    events = EventsInOrder[str](lambda kind, pod: told.append((kind, pod)), key=lambda pod: pod[0])
    informer = FakeInformer()
    events.informer = cast(Informer[str], informer)

    events.take(ADDED, "a1")
    events.take(ADDED, "b1")
    # The list broke off, and another one does not have `a` any more.
    events.take(DELETED, "a1")
    events.take(DELETED, "c1")
    events.take(MODIFIED, "b2")
    assert told == []
    informer.resource_version = "7"
    events.flush()

    assert told == [(DELETED, "a1"), (DELETED, "c1"), (MODIFIED, "b2")]

    events.take(DELETED, "b2")
    assert told[-1] == (DELETED, "b2")
    events.flush()
    assert len(told) == 4
