"""PodSpread beyond the decision cases: what changes while pods come and go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster.api.objects import (
    ObjectMeta,
    Pod,
    ReplicaSet,
    pod_from_manifest,
    replica_set_from_manifest,
)
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import podspread
from berthmaster.concerns.podspread.request import parse_rate
from berthmaster.placement.engine import Engine
from support.builders import make_node, make_pod_manifest

RATE = names.SPREAD_RATES[1]
ZONES = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}


def replica_set(replicas: int, rate: str = "0.5") -> ReplicaSet:
    return replica_set_from_manifest(
        {
            "metadata": {"name": "rs", "uid": "rs", "annotations": {RATE: rate}},
            "spec": {"replicas": replicas},
        }
    )


def replica(name: str = "new", *, rate: str | None = "0.5", **fields: Any) -> Pod:
    annotations = {} if rate is None else {RATE: rate}
    manifest = make_pod_manifest(name, annotations=annotations, **fields)
    owner = {"kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": True}
    manifest["metadata"]["ownerReferences"] = [owner]
    manifest["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    return pod_from_manifest(manifest)


def zoned(**control_plane: bool) -> Engine:
    engine = Engine([podspread.CONCERN])
    for name, zone in ZONES.items():
        labels = {names.ZONE: zone}
        if control_plane.get(name):
            labels[names.CONTROL_PLANE_LABEL] = ""
        engine.ledger.write_node(make_node(name, labels=labels), None)
    return engine


def offered(engine: Engine, pod: Pod | None = None, **setting: bool) -> set[str]:
    policy = PlacementPolicySpec.model_validate({"concerns": {"podspread": setting}})
    request = engine.read_request(pod or replica(), policy)
    return {it.node for it in engine.verdicts(request) if it.reason is None}


def test_spread_follows_scaling() -> None:
    engine = zoned()
    engine.observe(replica_set(2))
    engine.ledger.see(replica("p", node="a1"))
    before = engine.news

    assert offered(engine) == set(ZONES)

    engine.observe(replica_set(8))

    assert offered(engine) == {"b1", "c1"}
    assert engine.news > before


def test_answers_count_before_their_pods_are_seen() -> None:
    engine = zoned()
    engine.observe(replica_set(8))
    placed = []

    for number in range(4):
        pod = replica(f"p{number}")
        request = engine.read_request(pod, PlacementPolicySpec())
        decision = engine.decide(request, f"d{number}")
        assert decision.node is not None
        placed.append(ZONES[decision.node])
        engine.ledger.assume(
            decision.id,
            node=decision.node,
            usages=engine.ledger.usages_of(pod, {}),
            namespace="default",
            name=pod.metadata.name,
            owner=None,
            now_s=0.0,
        )

    assert sorted(placed[:3]) == ["a", "b", "c"]


def test_finished_pods_make_room_unless_upstream_is_wanted() -> None:
    engine = zoned()
    engine.observe(replica_set(8))
    done = replica("p", node="a1", phase="Succeeded")
    engine.ledger.see(done)
    engine.observe(done)

    assert offered(engine) == set(ZONES)
    assert offered(engine, strictUpstream=True) == {"b1", "c1"}

    engine.observe(done, is_gone=True)

    assert offered(engine, strictUpstream=True) == set(ZONES)


def test_finished_pod_of_which_only_the_end_is_seen_counts_no_more() -> None:
    """One that vanished between two lists is known by its name and uid alone."""
    engine = zoned()
    engine.observe(replica_set(8))
    done = replica("p", node="a1", phase="Succeeded")
    engine.observe(done)

    vanished = Pod(metadata=ObjectMeta(name="p", namespace="default", uid=done.metadata.uid))
    engine.observe(vanished, is_gone=True)

    assert offered(engine, strictUpstream=True) == set(ZONES)


def test_zone_without_eligible_node_does_not_hold_up_the_others() -> None:
    engine = zoned(c1=True)
    engine.observe(replica_set(8))
    for node in ("a1", "b1"):
        engine.ledger.see(replica(node, node=node))

    assert offered(engine) == {"a1", "a2", "b1"}
    assert offered(engine, strictUpstream=True) == set()


def test_annotation_of_the_owner_does_where_that_is_wanted() -> None:
    engine = zoned()
    engine.observe(replica_set(8))
    engine.ledger.see(replica("p", node="a1", rate=None))
    plain = replica(rate=None)

    assert offered(engine, plain) == set(ZONES)
    assert offered(engine, plain, ownerAnnotation=True) == {"b1", "c1"}
    assert offered(engine, replica(rate="most"), ownerAnnotation=True) == set(ZONES)


def test_node_that_goes_takes_its_pods_along() -> None:
    engine = zoned()
    engine.observe(replica_set(8))
    engine.ledger.see(replica("p", node="a1"))

    engine.ledger.remove_node("a1")

    assert offered(engine) == {"a2", "b1", "c1"}


def test_refusal_is_in_upstreams_words() -> None:
    engine = zoned()
    engine.observe(replica_set(8))
    engine.ledger.see(replica("p", node="a1"))

    decision = engine.decide(engine.read_request(replica(), PlacementPolicySpec()), "d")

    assert [str(it) for it in decision.refusals] == [
        "2 (a1, a2) node(s) didn't satisfy plugin PodSpread"
    ]


@pytest.mark.parametrize("text", ["0_1", " 0.5", "0.5\n", "nan", "1.01", "-0.1", "half", ""])
def test_what_is_no_rate(text: str) -> None:
    assert parse_rate(text) is None


@given(st.text(max_size=8))
def test_rates_are_numbers_up_to_one(text: str) -> None:
    rate = parse_rate(text)

    assert rate is None or 0 <= rate <= 1
