"""What containers use at once, by the worked example and by its edges."""

from __future__ import annotations

from berthmaster.concerns.lifetimes import most_at_once


def test_steps_of_initialisation_run_beside_the_sidecars_before_them() -> None:
    uses = [
        ({"cpu": 500}, True),
        ({"cpu": 3000}, False),
        ({"cpu": 1000}, True),
        ({"cpu": 1000}, True),
    ]

    assert most_at_once(uses) == ({"cpu": 3500}, {"cpu": 2500})


def test_each_resource_has_a_peak_of_its_own() -> None:
    uses = [({"cpu": 3, "gpu": 0}, False), ({"memory": 5}, False), ({"cpu": 1, "memory": 2}, True)]

    assert most_at_once(uses) == ({"cpu": 3, "gpu": 0, "memory": 5}, {"cpu": 1, "memory": 2})


def test_nothing_uses_nothing() -> None:
    assert most_at_once([]) == ({}, {})
