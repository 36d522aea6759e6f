"""All five concerns in one pod: each in turn decides, by score and by refusal; one mean, one set of reasons."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.allocation import MAX_BYTES, read_allocation, write_allocation
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.placement.engine import Decision
from support.five_concerns import SHARE_MIB, make_snapshot, read_pod_of_five

FIVE = {"diskio", "numa", "xpu", "dataset", "power"}
NAMES = ("n1", "n2", "n3")
# Everywhere alike, and the data in another zone of the region.
ALIKE: dict[str, dict[str, Any]] = {name: {"zone": "b"} for name in NAMES}
GATEWAY: dict[str, Any] = {"zone": "a", "corpus": "gateway", "cpu": "0"}


def decide(snapshot: Snapshot, **pod: Any) -> Decision:
    asked = read_pod_of_five(**pod)
    request = snapshot.engine.read_request(asked, snapshot.policy_of(asked).spec)
    return snapshot.engine.decide(request, "id")


def world(concerns: dict[str, Any] | None = None, **better: dict[str, Any]) -> Snapshot:
    nodes = {name: {**ALIKE[name], **better.get(name, {})} for name in NAMES}
    return make_snapshot({**nodes, "gate": GATEWAY}, concerns=concerns)


# Of a node that one concern finds better, and one that it refuses, if it refuses any.
BETTER: dict[str, dict[str, Any]] = {
    "diskio": {"disk": "2000Mi"},
    "numa": {"free_cpus": (64, 64)},
    "xpu": {"card_mib": 16000},
    "dataset": {"zone": "a"},
    "power": {"watts_per_core": 4.0},
}
REFUSED: dict[str, dict[str, Any]] = {
    "diskio": {"disk": "50Mi"},
    "numa": {"free_cpus": (3, 3)},
    "xpu": {"card_mib": 1000},
}


@pytest.mark.parametrize("best", NAMES)
@pytest.mark.parametrize("concern", sorted(FIVE))
def test_each_concern_in_turn_decides_where_the_others_find_nodes_alike(
    concern: str, best: str
) -> None:
    found = decide(world(**{best: BETTER[concern]}))

    assert set(found.scores) == {*FIVE, "resources"}
    assert found.node == best


@pytest.mark.parametrize("best", NAMES)
@pytest.mark.parametrize("concern", sorted(REFUSED))
def test_each_concern_in_turn_refuses_what_the_others_would_take(concern: str, best: str) -> None:
    refused = {name: REFUSED[concern] for name in NAMES if name != best}
    found = decide(world(**refused))

    assert (found.node, found.feasible) == (best, 1)


@pytest.mark.parametrize("decisive", sorted(FIVE))
def test_weights_of_the_policy_say_which_concern_wins(decisive: str) -> None:
    """A node that one concern likes best, against one that all others like best."""
    others = {key: it for name in FIVE - {decisive} for key, it in BETTER[name].items()}
    cluster = {"n1": BETTER[decisive], "n2": others}

    assert decide(world(**cluster)).node == "n2"
    assert decide(world({decisive: {"weight": 100}}, **cluster)).node == "n1"


def test_total_is_the_mean_by_weight_and_resources_only_break_ties() -> None:
    weights = {"diskio": 2, "numa": 0, "xpu": 5, "dataset": 3, "power": 1}
    snapshot = world({name: {"weight": it} for name, it in weights.items()}, n2={"zone": "a"})
    found = decide(snapshot)

    weighted = sum(found.scores[name] * it for name, it in weights.items())
    assert found.score == pytest.approx(weighted / sum(weights.values()), abs=1e-3)
    assert found.node == "n2"


def test_what_each_gives_stands_in_one_allocation_within_its_bound() -> None:
    found = decide(world(n3={"zone": "a"}))
    text = write_allocation(found.allocation("required"))

    assert set(found.allocated) == FIVE
    assert found.allocated["xpu"]["devices"] == [{"i": 0, "id": "n3-0", "mem": SHARE_MIB}]
    assert len(text) <= MAX_BYTES
    assert read_allocation(text) == found.allocation("required")


def test_a_node_that_several_refuse_is_explained_by_all_of_them() -> None:
    both = {**REFUSED["diskio"], **REFUSED["xpu"]}
    snapshot = world(n1=both, n2=REFUSED["numa"])
    asked = read_pod_of_five()
    request = snapshot.engine.read_request(asked, snapshot.policy_of(asked).spec)
    objections = snapshot.engine.objections(request)

    assert {name: set(it) for name, it in objections.items()} == {
        "n1": {"diskio", "xpu", "resources"},
        "n2": {"numa"},
        "gate": {"resources"},
    }
    assert set(snapshot.engine.asked(request)) == {*FIVE, "resources"}
    for verdict in snapshot.engine.verdicts(request):
        assert (verdict.reason is not None) == (verdict.node in objections)
        if verdict.reason is not None:
            assert objections[verdict.node][verdict.concern] == verdict.reason


def test_a_concern_of_which_nothing_is_known_says_nothing_for_the_others() -> None:
    dark: dict[str, Any] = {"watts_per_core": None}
    snapshot = make_snapshot({name: {**ALIKE[name], **dark} for name in NAMES})
    found = decide(snapshot, dataset="", share_mib=0)

    assert set(found.scores) == {"resources", "numa", "diskio"}
    assert set(found.allocated) == {"numa", "diskio"}
