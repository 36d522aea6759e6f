from __future__ import annotations

from collections import Counter

import pytest

from berthmaster.api import names
from berthmaster_webhook.turns import Turns, read_weight

WEIGHTS = {"heavy": 3}


def weight_of(namespace: str) -> int:
    return WEIGHTS.get(namespace, 1)


def serve(turns: Turns, *waiting: str, times: int) -> list[str]:
    """Let each time the namespace have its turn that would begin first."""
    served = []
    for _ in range(times):
        first = min(waiting, key=lambda it: (turns.of(it), it))
        turns.take(first)
        served.append(first)
    return served


def test_namespaces_take_turns_by_their_weights() -> None:
    counts = Counter(serve(Turns(weight_of), "a", "b", "heavy", times=50))

    assert counts == {"a": 10, "b": 10, "heavy": 30}


def test_who_comes_late_neither_waits_nor_catches_up() -> None:
    turns = Turns(weight_of)
    serve(turns, "a", times=1000)

    assert serve(turns, "a", "late", times=4) in (
        ["late", "a", "late", "a"],
        ["a", "late", "a", "late"],
        ["late", "a", "a", "late"],
        ["a", "late", "late", "a"],
    )


def test_who_waits_for_room_saves_no_turns() -> None:
    turns = Turns(weight_of)
    turns.take("big")
    serve(turns, "a", "b", times=100)

    assert Counter(serve(turns, "a", "b", "big", times=30)) == {"a": 10, "b": 10, "big": 10}


def test_namespaces_of_the_past_are_forgotten() -> None:
    turns = Turns(weight_of)
    for index in range(20_000):
        turns.take(f"gone-{index}")
        turns.take("stays")

    assert len(turns._ends) <= 1024


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("3", 3),
        ("100", 100),
        ("999", 100),
        ("0", 1),
        ("-2", 1),
        ("1.5", 1),
        ("٣", 1),
        ("9" * 99, 1),
    ],
)
def test_weight_is_a_small_whole_number_above_zero(text: str, weight: int) -> None:
    assert read_weight({names.QUEUE_WEIGHT: text}) == weight
    assert read_weight(None) == read_weight({}) == 1
