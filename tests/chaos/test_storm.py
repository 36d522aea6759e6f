"""The short form of the suite: a few faults on a small cluster; `make chaos` is the long one."""

from __future__ import annotations

import pytest

from berthmaster_sandbox.chaos.plan import Plan
from berthmaster_sandbox.chaos.scene import open_scene
from berthmaster_sandbox.chaos.storm import Storm

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio, pytest.mark.timeout(600)]

PLAN = Plan(
    nodes=40,
    pods=0,
    alive=120,
    faults=("leader-killed", "watches-cut"),
    gap_s=(1.0, 2.0),
    request_timeout_s=10.0,
)


async def test_promises_hold_under_fire() -> None:
    async with open_scene(PLAN) as scene:
        storm = Storm(scene)

        await storm.run()

    assert [it.fault for it in storm.outcomes] == list(PLAN.faults)
    assert [str(it) for outcome in storm.outcomes for it in outcome.violations] == []
    assert storm.tally.counts["bound"] > PLAN.alive / 2
    # Nobody counts nothing.
    assert all(it.pods > PLAN.alive / 3 and it.first_s is not None for it in storm.outcomes)
