from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster_sandbox.world.power_machines import MACHINES, STOCKY, Machine, Rack

machines = st.sampled_from(MACHINES)
celsius = st.floats(15, 40)


def test_worked_example() -> None:
    assert STOCKY.watts(0.5, 22) == pytest.approx(268.1, abs=0.1)


@given(machines, st.floats(0, 1), st.floats(0, 1), celsius)
def test_more_load_never_draws_less(
    machine: Machine, one: float, other: float, inlet: float
) -> None:
    low, high = sorted((one, other))

    assert machine.watts(low, inlet) <= machine.watts(high, inlet) + 1e-9


@given(machines, st.floats(0, 1), celsius, celsius)
def test_warmer_air_never_draws_less(
    machine: Machine, load: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))

    assert machine.watts(load, low) <= machine.watts(load, high) + 1e-9


def test_inlet_follows_the_racks_heat_with_a_lag() -> None:
    rack = Rack([STOCKY] * 4)

    rack.step([1.0] * 4, 60)
    soon = rack.inlet_celsius
    for _ in range(120):
        drawn = rack.step([1.0] * 4, 60)

    assert 20.0 < soon < rack.inlet_celsius
    assert rack.inlet_celsius == pytest.approx(20 + 1.2 * sum(drawn) / 1000, abs=0.1)
