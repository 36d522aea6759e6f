"""Tiers as node affinity: what kube-scheduler adds up for a node is what the rules give it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.dataset import CONCERN
from berthmaster.concerns.shape import NodeTerms
from berthmaster.placement.engine import Engine
from support.dataset_reference import HOST, NEW, REGION, ZONE, Rules, expect
from support.dataset_world import World, first, make_pod, pods, policy_of

Data = dict[str, Any]


def is_met(node: Mapping[str, Any], term: Mapping[str, Any]) -> bool:
    labels, name = node["metadata"]["labels"], node["metadata"]["name"]
    found = [
        *((it, labels.get(it["key"])) for it in term.get("matchExpressions") or ()),
        *((it, name) for it in term.get("matchFields") or ()),
    ]
    assert all(it["operator"] == "In" for it, _ in found)
    return bool(found) and all(value in it["values"] for it, value in found)


def weigh(node: Mapping[str, Any], preferred: Iterable[Mapping[str, Any]]) -> int:
    """Return what kube-scheduler's NodeAffinity plugin adds up for a node."""
    assert all(1 <= it["weight"] <= 100 for it in preferred)
    return sum(it["weight"] for it in preferred if is_met(node, it["preference"]))


def terms_for(
    engine: Engine, pod: Mapping[str, Any], policy: PlacementPolicySpec
) -> NodeTerms | None:
    request = engine.read_request(pod_from_manifest(pod), policy)
    decision = engine.decide(request, "id")
    if decision.node is None:
        return None
    terms, rest = engine.affinity(request, decision.node)
    # Nothing but datasets matters here: either they say everything, or nobody says anything.
    assert rest == (0 if terms.required or terms.preferred else 1)
    return terms


@settings(max_examples=300, deadline=None)
@given(first, pods, st.booleans())
def test_weights_of_a_node_add_up_to_its_score(
    first: tuple[Any, ...], pod_fields: dict[str, Any], requires: bool
) -> None:
    world, pod = World(), make_pod(**pod_fields)
    rules = Rules(requires=requires)
    for change in first:
        world.change(*change)
    policy = policy_of(rules)
    terms = terms_for(world.engine, pod, policy)
    if terms is None:
        return
    request = world.engine.read_request(pod_from_manifest(pod), policy)
    (found,) = [it.request.found for it in request] if request else [()]  # type: ignore[attr-defined]
    columns = world.engine.table.columns["dataset"]
    for node in world.nodes.values():
        wanted = expect(
            node,
            nodes=list(world.nodes.values()),
            resources=world.resources,
            pod=pod,
            rules=rules,
            busy=frozenset(world.busy),
        )
        if requires and terms.required:
            assert any(is_met(node, it) for it in terms.required) == (not wanted.absent)
        bound = sum(requires and not columns.has_gateway(key) for key, _ in found)
        if wanted.absent or bound:
            continue
        # Each of n datasets is rounded for itself, by at most a half in each of its tiers.
        assert abs(weigh(node, terms.preferred) - wanted.score) <= len(found)


def world_of(*nodes: tuple[str, Data], **datasets: Data) -> World:
    world = World()
    for name, labels in nodes:
        world.change("node", name, {"busy": False, **labels})
    for name, it in datasets.items():
        world.change("dataset", (NEW, name), {"provision": "OK", "caching": "OK", **it})
    return world


def at(*values: str, key: str = HOST) -> list[Data]:
    return [{"key": key, "value": it} for it in values]


def placed(zone: str, region: str = "eu", host: str = "") -> Data:
    return {ZONE: zone, REGION: region, HOST: host}


def test_the_example_of_the_rules() -> None:
    world = world_of(
        ("node-7", placed("eu-a", host="node-7")),
        ("other", placed("eu-b", host="other")),
        d={"gateways": at("node-7"), "datalocations": []},
    )
    terms = terms_for(world.engine, make_pod({"dataset.0.id": "d"}, []), PlacementPolicySpec())
    assert terms is not None
    zone = {"key": ZONE, "operator": "In", "values": ["eu-a"]}
    region = {"key": REGION, "operator": "In", "values": ["eu"]}
    hostname = {"key": HOST, "operator": "In", "values": ["node-7"]}
    assert terms.required == ()
    assert terms.preferred == (
        {"weight": 50, "preference": {"matchExpressions": [hostname]}},
        {"weight": 25, "preference": {"matchExpressions": [zone, region]}},
        {"weight": 25, "preference": {"matchExpressions": [region]}},
    )


def test_nodes_that_cannot_be_told_by_hostname_are_named() -> None:
    world = world_of(
        ("n1", placed("a", host="same")),
        ("n2", placed("a", host="same")),
        ("n3", {ZONE: "", REGION: "", HOST: ""}),
        ("n4", placed("a", host="n4")),
        d={"gateways": at("n1", "n3", "n4"), "datalocations": []},
    )
    terms = terms_for(world.engine, make_pod({"dataset.0.id": "d"}, []), PlacementPolicySpec())
    assert terms is not None
    scores = {name: weigh(node, terms.preferred) for name, node in world.nodes.items()}
    assert scores == {"n1": 100, "n2": 50, "n3": 100, "n4": 100}


def test_a_file_system_is_required_where_all_of_its_data_are() -> None:
    world = world_of(
        *((f"n{index}", placed("a", host=f"n{index}")) for index in range(4)),
        f={"gateways": [], "datalocations": at("n0", "n1", "n2")},
        g={"gateways": [], "datalocations": at("n1", "n2", "n3")},
    )
    pod = make_pod({"dataset.0.id": "f", "dataset.1.id": "g"}, [])
    terms = terms_for(world.engine, pod, PlacementPolicySpec())
    assert terms is not None
    (term,) = terms.required
    (expression,) = term["matchExpressions"]
    assert expression["key"] == HOST
    assert sorted(expression["values"]) == ["n1", "n2"]
    assert terms.preferred == ()


def test_of_very_many_nodes_the_chosen_one_stays() -> None:
    names = [f"n{index:03}" for index in range(300)]
    world = World()
    for name in names:
        world.nodes[name] = {"metadata": {"name": name, "uid": name, "labels": {HOST: name}}}
    world.change(
        "dataset",
        (NEW, "f"),
        {"provision": "OK", "caching": "OK", "gateways": [], "datalocations": at(*names)},
    )
    request = world.engine.read_request(
        pod_from_manifest(make_pod({"dataset.0.id": "f"}, [])), PlacementPolicySpec()
    )
    terms, _ = world.engine.affinity(request, "n299")
    values = terms.required[0]["matchExpressions"][0]["values"]
    assert len(values) == 256
    assert values[0] == "n299"


def test_the_share_of_other_concerns_stays_theirs() -> None:
    world = world_of(("n1", placed("a", host="n1")), d={"gateways": at("n1"), "datalocations": []})
    columns = world.engine.table.columns["dataset"]
    request = CONCERN.request(
        pod_from_manifest(make_pod({"dataset.0.id": "d"}, [])), PlacementPolicySpec()
    )
    assert request is not None
    resolved = CONCERN.resolve(columns, request)
    terms = CONCERN.affinity(columns, 0, resolved, Fraction(1, 2))  # type: ignore[attr-defined]
    assert [it["weight"] for it in terms.preferred] == [25, 13, 12]
