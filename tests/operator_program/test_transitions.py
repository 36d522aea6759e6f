"""Conditions say since when they hold."""

from __future__ import annotations

from berthmaster.api.schema import StatusCondition
from berthmaster_operator.transitions import keep_times


def condition(type_: str, *, holds: bool, since: str | None = None) -> StatusCondition:
    return StatusCondition(
        type=type_,
        status="True" if holds else "False",
        reason="Known",
        last_transition_time=since,
    )


def test_time_stays_until_the_status_changes() -> None:
    before = [
        condition("Same", holds=True, since="then"),
        condition("Turned", holds=True, since="then"),
        condition("Timeless", holds=True),
        condition("Gone", holds=True, since="then"),
    ]
    wanted = [
        condition("Same", holds=True),
        condition("Turned", holds=False),
        condition("Timeless", holds=True),
        condition("New", holds=False),
    ]

    kept = keep_times(wanted, before, now="now")

    assert [(it.type, it.last_transition_time) for it in kept] == [
        ("Same", "then"),
        ("Turned", "now"),
        ("Timeless", "now"),
        ("New", "now"),
    ]
