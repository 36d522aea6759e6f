"""What is remembered is what would be made anew, for as long as nothing else comes in."""

from __future__ import annotations

from typing import Any

from berthmaster_operator.remembering import Remembered


def make(remembered: Remembered[list[Any]], *sources: object) -> list[Any]:
    return remembered.of(sources, lambda: list(sources))


def test_same_objects_are_not_looked_at_twice() -> None:
    remembered: Remembered[list[Any]] = Remembered()
    pods, stale = {"a": 1}, False

    first = make(remembered, pods, stale)

    assert make(remembered, pods, stale) is first


def test_any_other_object_has_it_made_anew() -> None:
    remembered: Remembered[list[Any]] = Remembered()
    pods = {"a": 1}
    first = make(remembered, pods, False)

    assert make(remembered, {"a": 1}, False) is not first
    assert make(remembered, pods, True) == [pods, True]
    assert make(remembered, pods, False) == [pods, False]
    assert make(remembered, pods) == [pods]


def test_nothing_can_be_remembered_too() -> None:
    remembered: Remembered[None] = Remembered()
    asked = []
    source = {"a": 1}

    for _ in range(3):
        assert remembered.of((source,), lambda: asked.append(1)) is None

    assert len(asked) == 1
