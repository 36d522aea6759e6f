"""All five concerns in one pod: each in turn decides, by score and by refusal; one mean, one set of reasons."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from berthmaster.api.allocation import MAX_BYTES, read_allocation, write_allocation
from berthmaster.api.names import ALLOCATION
from berthmaster.api.objects import Pod
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.concerns.shape import MeasuredConcern
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


def place(snapshot: Snapshot, name: str) -> Pod:
    """Decide and assume a pod; return it as the API server stores it."""
    found = decide(snapshot, name=name)
    assert found.node is not None
    asked = read_pod_of_five(name=name)
    ledger = snapshot.engine.ledger
    ledger.assume(
        f"id-{name}",
        node=found.node,
        usages=ledger.usages_of(asked, found.allocated),
        namespace="default",
        name=name,
        owner="owner",
        now_s=0.0,
    )
    answer = {
        ALLOCATION: write_allocation(
            msgspec.structs.replace(found.allocation("required"), id=f"id-{name}")
        )
    }
    return read_pod_of_five(name=name, annotations=answer)


def bind(pod: Pod) -> Pod:
    allocation = read_allocation(pod.annotations[ALLOCATION])
    assert allocation is not None
    return msgspec.structs.replace(
        pod, spec=msgspec.structs.replace(pod.spec, node_name=allocation.node)
    )


def start(pod: Pod) -> Pod:
    return msgspec.structs.replace(
        pod, status=msgspec.structs.replace(pod.status, start_time="2026-01-01T00:00:00Z")
    )


def shown(snapshot: Snapshot) -> list[Any]:
    """Return what every concern says of every node to one more pod, and what is held."""
    asked = read_pod_of_five(name="next")
    request = snapshot.engine.read_request(asked, snapshot.policy_of(asked).spec)
    engine = snapshot.engine
    rows = np.arange(len(engine.table), dtype=np.intp)
    fills = [
        (fill.resource, fill.used.tolist(), fill.capacity.tolist())
        for concern in engine.table.concerns
        if isinstance(concern, MeasuredConcern)
        for fill in concern.fills(engine.table.columns[concern.name], rows)
    ]
    return [*engine.verdicts(request), sorted(fills), dict(engine.ledger.holdings)]


def test_pods_hold_the_same_whether_their_answers_were_known_or_not() -> None:
    lived = world()
    stored: dict[str, Pod] = {}
    for name in ("a", "b", "c"):
        stored[name] = place(lived, name)
    steps = [("b", bind), ("a", bind), ("a", start)]

    before = lived.engine.table.tick
    for pod in stored.values():
        lived.engine.ledger.see(pod)
    # Nobody's room changed, so nothing has to be judged again.
    assert lived.engine.table.tick == before
    for name, become in steps:
        stored[name] = become(stored[name])
        lived.engine.ledger.see(stored[name])
    lived.engine.ledger.forget(stored.pop("c"))

    fresh = make_snapshot(
        {**{name: ALIKE[name] for name in NAMES}, "gate": GATEWAY}, *stored.values()
    )
    assert shown(lived) == shown(fresh)
    for pod in list(stored.values()):
        lived.engine.ledger.forget(pod)
    assert shown(lived) == shown(world())
