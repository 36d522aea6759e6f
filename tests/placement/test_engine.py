from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import resources
from berthmaster.concerns.resources import ResourcesConcern
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.resources.request import ResourcesRequest
from berthmaster.concerns.shape import AnyConcern, InvalidRequestError, Rows, Scores
from berthmaster.placement.engine import MOST_CONTAINERS, Decision, Engine, Verdict
from support.builders import make_container, make_node, make_pod, make_taint

POLICY = PlacementPolicySpec()
WEIGHTED = PlacementPolicySpec.model_validate({"concerns": {"resources": {"weight": 1}}})
NAMES = tuple(f"n{index}" for index in range(6))
SHAPES: tuple[dict[str, Any], ...] = (
    {"cpu": "1"},
    {"cpu": "3", "memory": "1Gi"},
    {"nodeSelector": {"zone": "a"}},
    {"cpu": "1", "tolerations": [{"operator": "Exists"}]},
)
node_fields = st.fixed_dictionaries(
    {
        "cpu": st.sampled_from(["2", "4", "8"]),
        "labels": st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
        "taints": st.sampled_from([(), (make_taint("t"),)]),
        "uid": st.sampled_from(["1", "2"]),
    }
)
names = st.sampled_from(NAMES)
pods = st.integers(0, 4)
changes = st.one_of(
    st.tuples(st.just("write"), names, node_fields),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("bind"), pods, names, st.sampled_from(["1", "2"])),
    st.tuples(st.just("forget"), pods),
    st.tuples(st.just("ask"), st.sampled_from(SHAPES)),
)


class Emptiest(ResourcesConcern):
    """Scores a row by its rank among those that fit: the emptiest 100, the fullest 0."""

    name = "emptiest"
    only_scores = False

    def weight(self, policy: PlacementPolicySpec) -> int:
        return 3 * policy.concerns.resources.weight

    def score(self, columns: ResourcesColumns, rows: Rows, request: ResourcesRequest) -> Scores:
        return super().score(columns, rows, request) * 7 - 1000

    def normalize(
        self, columns: ResourcesColumns, values: Scores, request: ResourcesRequest
    ) -> Scores:
        span = np.ptp(values) if len(values) else 0
        return (values - values.min()) * 100 / span if span else np.full(len(values), 100.0)


ABSOLUTE: tuple[AnyConcern, ...] = (resources.CONCERN,)
RELATIVE: tuple[AnyConcern, ...] = (resources.CONCERN, Emptiest())


def new_engine(concerns: tuple[AnyConcern, ...] = ABSOLUTE) -> Engine:
    return Engine(concerns)


def decide(
    engine: Engine, decision_id: str, policy: PlacementPolicySpec = WEIGHTED, **pod: Any
) -> Decision:
    return engine.decide(engine.read_request(make_pod(**pod), policy), decision_id)


def verdicts(engine: Engine, **pod: Any) -> list[Verdict]:
    return list(engine.verdicts(engine.read_request(make_pod(**pod), WEIGHTED)))


class World:
    """The nodes and pods of a cluster, kept to build a second engine from."""

    def __init__(self, concerns: tuple[AnyConcern, ...]) -> None:
        self.concerns = concerns
        self.nodes: dict[str, dict[str, Any]] = {}
        self.pods: dict[int, Pod] = {}

    def change(self, engine: Engine, kind: str, *what: Any) -> None:
        if kind == "write":
            name, fields = what
            self.nodes[name] = fields
            engine.ledger.write_node(make_node(name, **fields), None)
        elif kind == "remove":
            self.nodes.pop(what[0], None)
            engine.ledger.remove_node(what[0])
        elif kind == "bind":
            index, node, cpu = what
            self.pods[index] = make_pod(f"pod-{index}", node=node, cpu=cpu)
            engine.ledger.see(self.pods[index])
        elif kind == "forget" and what[0] in self.pods:
            engine.ledger.forget(self.pods.pop(what[0]))
        elif kind == "ask":
            decide(engine, "asked", **what[0])

    def build(self, order: list[str]) -> Engine:
        engine = new_engine(self.concerns)
        for pod in self.pods.values():
            engine.ledger.see(pod)
        for name in order:
            if name in self.nodes:
                engine.ledger.write_node(make_node(name, **self.nodes[name]), None)
        return engine


@pytest.mark.parametrize("concerns", [ABSOLUTE, RELATIVE], ids=["absolute", "relative"])
@settings(max_examples=150, deadline=None)
@given(history=st.lists(changes, max_size=30), order=st.permutations(NAMES))
def test_remembered_shapes_equal_new_ones(
    concerns: tuple[AnyConcern, ...], history: list[tuple[Any, ...]], order: list[str]
) -> None:
    world, engine = World(concerns), new_engine(concerns)
    for shape in SHAPES:
        decide(engine, "first", **shape)

    for change in history:
        world.change(engine, *change)

    fresh = world.build(order)
    for shape in SHAPES:
        assert verdicts(engine, **shape) == verdicts(fresh, **shape)
        for decision_id in ("a", "b"):
            old, new = (decide(it, decision_id, **shape) for it in (engine, fresh))
            assert old == new


@settings(max_examples=100, deadline=None)
@given(history=st.lists(changes, max_size=30))
def test_a_node_may_fit_where_its_verdict_finds_no_reason(history: list[tuple[Any, ...]]) -> None:
    world, engine = World(ABSOLUTE), new_engine()
    for change in history:
        world.change(engine, *change)

    for shape in SHAPES:
        request = engine.read_request(make_pod(**shape), WEIGHTED)
        fitting = {it.node for it in verdicts(engine, **shape) if it.reason is None}
        needs = engine.needs(request)
        for name in NAMES:
            assert engine.may_fit(request, (name,)) == (name in fitting)
            has_room = all(engine.free(name).get(it, 0) >= needs[it] for it in needs)
            assert has_room or name not in fitting
        assert engine.may_fit(request, NAMES) == bool(fitting)


def test_order_of_rows_does_not_show() -> None:
    forward, backward = new_engine(), new_engine()
    everybody = [f"node-{index:03}" for index in range(200)]
    for name in everybody:
        forward.ledger.write_node(make_node(name), None)
    for name in reversed(everybody):
        backward.ledger.write_node(make_node(name), None)

    for index in range(50):
        shapes: tuple[dict[str, Any], ...] = ({"cpu": "1"}, {"cpu": "9"})
        for shape in shapes:
            assert decide(forward, str(index), **shape) == decide(backward, str(index), **shape)


def test_ties_spread_by_decision_id() -> None:
    engine = new_engine()
    for index in range(10):
        engine.ledger.write_node(make_node(f"n{index}"), None)

    chosen = Counter(decide(engine, str(index), cpu="1").node for index in range(1000))

    assert len(chosen) == 10
    assert max(chosen.values()) < 200
    assert decide(engine, "7", cpu="1") == decide(engine, "7", cpu="1")


def test_concern_without_weight_breaks_ties() -> None:
    engine = new_engine()
    engine.ledger.write_node(make_node("empty"), None)
    engine.ledger.write_node(make_node("fuller"), None)
    engine.ledger.see(make_pod("held", node="fuller", cpu="1"))

    decision = decide(engine, "x", POLICY, cpu="1")

    assert decision.node == "empty"
    assert decision.score == 100.0
    assert decision.runners_up == (("fuller", 100.0),)


def test_refusals_are_counted_by_reason() -> None:
    engine = new_engine()
    engine.ledger.write_node(make_node("a", cpu="1"), None)
    engine.ledger.write_node(make_node("b", cpu="1"), None)
    engine.ledger.write_node(make_node("c", taints=[make_taint("x")]), None)

    decision = decide(engine, "x", cpu="2")

    assert decision.node is None
    assert decision.describe() == (
        "0/3 nodes: 2 (a, b) Insufficient cpu, 1 (c) node(s) had untolerated taint(s)"
    )


def test_avoided_nodes_are_not_chosen() -> None:
    engine = new_engine()
    engine.ledger.write_node(make_node("a", cpu="64"), None)
    engine.ledger.write_node(make_node("b"), None)
    request = engine.read_request(make_pod(cpu="1"), WEIGHTED)

    assert engine.decide(request, "x").node == "a"
    assert engine.decide(request, "x", avoid=frozenset({"a", "gone"})).node == "b"
    assert engine.decide(request, "x", avoid=frozenset({"a", "b"})).node is None


def test_more_shapes_than_are_remembered() -> None:
    engine = new_engine()
    engine.ledger.write_node(make_node("a", cpu="1"), None)

    found = [decide(engine, "x", cpu=f"{index}m").node for index in (*range(500), 0, 2000)]

    assert found == ["a"] * 501 + [None]


def test_pod_of_too_many_containers_is_refused_before_anybody_reads_it() -> None:
    engine = new_engine()
    engine.ledger.write_node(make_node("a"), None)
    most = [make_container(requests={"cpu": "1m"})] * MOST_CONTAINERS
    bad = make_container(requests={"cpu": "much"})

    assert engine.decide(engine.read_request(make_pod(containers=most), WEIGHTED), "x").node == "a"
    with pytest.raises(InvalidRequestError) as refusal:
        engine.read_request(make_pod(containers=most, initContainers=[bad]), WEIGHTED)

    assert str(refusal.value) == (
        "spec.containers: found 513 with initContainers, expected at most 512 in a pod that is to be placed"
    )


def test_no_nodes_is_an_answer() -> None:
    decision = decide(new_engine(), "x")

    assert decision.node is None
    assert decision.describe() == "0/0 nodes: there are none"


def test_relative_scores_compare_only_nodes_that_fit() -> None:
    engine = new_engine(RELATIVE)
    engine.ledger.write_node(make_node("big", cpu="100", taints=[make_taint("t")]), None)
    engine.ledger.write_node(make_node("middle", cpu="8", memory="8Gi"), None)
    engine.ledger.write_node(make_node("small", cpu="4", memory="8Gi"), None)

    found = {it.node: it for it in verdicts(engine, cpu="1", memory="1Gi")}
    decision = decide(engine, "x", cpu="1", memory="1Gi")

    assert found["big"].reason is not None
    assert found["middle"].scores["emptiest"] == 100.0
    assert found["small"].scores["emptiest"] == 0.0
    assert found["small"].score == found["small"].scores["resources"] / 4
    assert (decision.node, decision.scores) == ("middle", found["middle"].scores)
    assert decision.score == found["middle"].score


def test_relative_concern_without_weight_breaks_ties() -> None:
    engine = Engine([Emptiest()])
    engine.ledger.write_node(make_node("empty"), None)
    engine.ledger.write_node(make_node("fuller"), None)
    engine.ledger.see(make_pod("held", node="fuller", cpu="1"))

    decision = decide(engine, "x", POLICY, cpu="1")

    assert (decision.node, decision.score) == ("empty", 100.0)
    assert decision.scores == {"emptiest": 100.0}
