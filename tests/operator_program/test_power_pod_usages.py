from __future__ import annotations

from dataclasses import replace

import pytest

from berthmaster.api.quantities import NANO
from berthmaster_operator.power.pod_usages import AssumedPod, PodUsages

POD = AssumedPod(uid="u1", namespace="ns", name="p", node="n1", assumed=2 * NANO)


@pytest.fixture
def usages() -> PodUsages:
    found = PodUsages()
    found.see(POD)
    return found


def test_a_pod_is_asked_for_until_it_uses_half_of_what_was_assumed(usages: PodUsages) -> None:
    assert usages.next(10) == [POD]
    assert usages.take(POD, 700_000_000)
    # Within the same tenth: nothing to write.
    assert not usages.take(POD, 790_000_000)
    assert usages.of_node("n1") == {"u1": 600_000_000}

    assert usages.take(POD, NANO)

    assert usages.of_node("n1") == {"u1": 2 * NANO}
    assert usages.next(10) == []
    # Half reached once is reached for good.
    assert not usages.take(POD, 0)
    usages.see(POD)
    assert usages.next(10) == []


def test_all_get_their_turn_where_they_are_many(usages: PodUsages) -> None:
    others = [replace(POD, uid=f"u{index}") for index in range(2, 6)]
    for pod in others:
        usages.see(pod)

    rounds = [[it.uid for it in usages.next(2)] for _ in range(3)]

    assert rounds == [["u1", "u2"], ["u3", "u4"], ["u5", "u1"]]


def test_a_node_has_no_more_pods_than_an_inventory_holds(usages: PodUsages) -> None:
    for index in range(300):
        pod = replace(POD, uid=f"more-{index}")
        usages.see(pod)
        usages.take(pod, 300_000_000)

    assert len(usages.of_node("n1")) == 256
    usages.lose("more-0")
    assert usages.take(replace(POD, uid="more-299"), 300_000_000)


def test_a_pod_that_is_gone_leaves_nothing(usages: PodUsages) -> None:
    usages.take(POD, NANO)

    usages.lose("u1")
    usages.lose("nobody")

    assert usages.of_node("n1") == {}
    assert not usages.take(POD, NANO)
