"""Bursts of Guaranteed pods onto simulated kubelets whose updaters are late; `bench/burst.py` is the large form."""

from __future__ import annotations

import pytest

from benching.bursts import Plan, play, play_perfectly
from berthmaster_sandbox.world.numa_verdicts import TOPOLOGY_AFFINITY_ERROR


@pytest.mark.parametrize("seed", [1, 2])
def test_late_reports_tear_no_pod_and_cost_little_room(seed: int) -> None:
    plan = Plan(nodes=10, pods=100, jitter_s=0.0, seed=seed)

    ours, perfect = play(plan), play_perfectly(plan)

    assert ours.count_rejected(TOPOLOGY_AFFINITY_ERROR) == 0
    assert not ours.overfilled
    assert not perfect.rejections
    # There is less room than pods, and of what there is at most a twentieth is lost, beside what kubelets
    # turn away whose policy upstream has every pod pass.
    assert perfect.placed.total() < plan.pods
    assert ours.placed.total() + ours.rejections.total() >= 0.95 * perfect.placed.total()


def test_a_plan_plays_the_same_twice() -> None:
    plan = Plan(nodes=6, pods=60)

    assert play(plan) == play(plan)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kubelets_that_learn_in_another_order_tear_no_pod(seed: int) -> None:
    ours = play(Plan(nodes=10, pods=100, jitter_s=2.0, seed=seed))

    assert ours.placed.total() > 40
    assert ours.count_rejected(TOPOLOGY_AFFINITY_ERROR) == 0
    assert not ours.overfilled
