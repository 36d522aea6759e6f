"""The filter against an evaluation written per node, straight from the rules of Kubernetes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api.objects import node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.resources import CONCERN
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.resources.request import ResourcesRequest
from berthmaster.concerns.shape import Holder, Reason
from support.builders import (
    make_container,
    make_node,
    make_node_manifest,
    make_pod,
    make_pod_manifest,
    make_taint,
)

POLICY = PlacementPolicySpec()
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
ANY_IP = "0.0.0.0"  # noqa: S104 - compared with, never bound
Data = dict[str, Any]


def fill(columns: ResourcesColumns, nodes: list[Data], bound: list[Data]) -> list[str]:
    names = [node["metadata"]["name"] for node in nodes]
    columns.resize(len(nodes))
    for row, node in enumerate(nodes):
        columns.write_node(row, node_from_manifest(node), None)
    for index, manifest in enumerate(bound):
        pod = pod_from_manifest(manifest)
        usage = CONCERN.usage(pod, None)
        assert usage is not None
        holder = Holder(key=str(index), namespace="", name="")
        CONCERN.charge(columns, names.index(pod.spec.node_name), holder, usage)
    return names


def judge(pod: Data, node: Data, *bound: Data) -> Reason | None:
    columns = CONCERN.new_columns()
    fill(columns, [node], list(bound))
    request = CONCERN.request(pod_from_manifest(pod), POLICY)
    assert request is not None
    code = int(CONCERN.filter(columns, np.array([0], dtype=np.intp), request)[0])
    return CONCERN.explain(columns, 0, code, request, "node") if code else None


def words(columns: ResourcesColumns, request: ResourcesRequest) -> list[Reason | None]:
    """Return why each row is refused; codes of resources depend on which came first."""
    codes = CONCERN.filter(columns, np.arange(columns.rows, dtype=np.intp), request).tolist()
    return [
        CONCERN.explain(columns, row, code, request, "node") if code else None
        for row, code in enumerate(codes)
    ]


# The reference: plain loops over plain data, sharing no code with what it judges.


def number(text: str) -> Fraction:
    return Fraction(text[:-1]) / 1000 if text.endswith("m") else Fraction(text)


def wants(pod: Data) -> dict[str, Fraction]:
    total: dict[str, Fraction] = {}
    for container in pod["spec"]["containers"]:
        for name, text in container["resources"].get("requests", {}).items():
            total[name] = total.get(name, Fraction(0)) + number(text)
    return total


def has_room(pod: Data, node: Data, bound: list[Data]) -> bool:
    offered = node["status"]["allocatable"]
    if len(bound) + 1 > int(offered["pods"]):
        return False
    for name, asked in wants(pod).items():
        held = sum((wants(other).get(name, Fraction(0)) for other in bound), Fraction(0))
        if asked > 0 and held + asked > number(offered.get(name, "0")):
            return False
    return True


def label_matches(expression: Data, labels: dict[str, str]) -> bool:
    value, operator = labels.get(expression["key"]), expression["operator"]
    values = expression.get("values", [])
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    if value is None or not value.isdigit():
        return False
    return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])


def affinity_matches(pod: Data, node: Data) -> bool:
    labels, name = node["metadata"]["labels"], node["metadata"]["name"]
    if any(labels.get(key) != value for key, value in pod["spec"].get("nodeSelector", {}).items()):
        return False
    affinity = pod["spec"].get("affinity")
    if not affinity:
        return True
    for term in affinity["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]:
        labelled = term.get("matchExpressions", [])
        named = term.get("matchFields", [])
        if not labelled and not named:
            continue
        if all(label_matches(it, labels) for it in labelled) and all(
            (name in it["values"]) == (it["operator"] == "In") for it in named
        ):
            return True
    return False


def tolerates(pod: Data, node: Data) -> bool:
    taints = [it for it in node["spec"]["taints"] if it["effect"] != "PreferNoSchedule"]
    if node["spec"]["unschedulable"]:
        taints = [*taints, make_taint("node.kubernetes.io/unschedulable")]
    for taint in taints:
        for it in pod["spec"].get("tolerations", []):
            right_effect = it.get("effect") in (None, taint["effect"])
            if it.get("operator", "Equal") == "Exists":
                right_key = it.get("key") in (None, taint["key"])
            elif it.get("operator", "Equal") == "Equal":
                right_key = it["key"] == taint["key"] and it.get("value", "") == taint["value"]
            else:
                right_key = False
            if right_effect and right_key:
                break
        else:
            return False
    return True


def ports_of(pod: Data) -> list[tuple[str, str, int]]:
    return [
        (port.get("hostIP", ANY_IP), port.get("protocol", "TCP"), port["hostPort"])
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    ]


def has_ports(pod: Data, bound: list[Data]) -> bool:
    for ip, protocol, port in ports_of(pod):
        for other in bound:
            for other_ip, other_protocol, other_port in ports_of(other):
                same = (protocol, port) == (other_protocol, other_port)
                if same and (ip == other_ip or ANY_IP in (ip, other_ip)):
                    return False
    return True


def accepts(pod: Data, node: Data, bound: list[Data]) -> bool:
    return (
        tolerates(pod, node)
        and affinity_matches(pod, node)
        and has_ports(pod, bound)
        and has_room(pod, node, bound)
    )


# Small worlds, so that every rule meets every other.

NODE_NAMES = ["n0", "n1", "n2", "n3"]
KEYS = st.sampled_from(["zone", "gen"])
VALUES = st.sampled_from(["a", "b", "1", "5", "9"])
GPU = "example.com/gpu"

labelled = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(VALUES, min_size=1, max_size=3),
        }
    ),
    st.fixed_dictionaries({"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["Gt", "Lt"]),
            "values": st.sampled_from([["1"], ["5"]]),
        }
    ),
)
named = st.fixed_dictionaries(
    {
        "key": st.just("metadata.name"),
        "operator": st.sampled_from(["In", "NotIn"]),
        "values": st.sampled_from([*NODE_NAMES, "elsewhere"]).map(lambda name: [name]),
    }
)
terms = st.fixed_dictionaries(
    {},
    optional={
        "matchExpressions": st.lists(labelled, max_size=2),
        "matchFields": st.lists(named, max_size=2),
    },
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "cpu": st.sampled_from(["0", "1m", "500m", "1", "2"]),
        "memory": st.sampled_from(["0", "1", "1000"]),
        GPU: st.sampled_from(["1", "2"]),
    },
)
host_ports = st.fixed_dictionaries(
    {"containerPort": st.just(1), "hostPort": st.sampled_from([80, 81])},
    optional={
        "hostIP": st.sampled_from([ANY_IP, "10.0.0.1", "10.0.0.2"]),
        "protocol": st.sampled_from(["TCP", "UDP"]),
    },
)
containers = st.lists(
    st.builds(
        lambda requests, ports: make_container(requests=requests, ports=ports),
        requests,
        st.lists(host_ports, max_size=1),
    ),
    min_size=1,
    max_size=2,
)
effects = st.sampled_from(["NoSchedule", "NoExecute", "PreferNoSchedule"])
taints = st.builds(make_taint, st.sampled_from(["t", "u"]), st.sampled_from(["", "x"]), effects)
tolerations = st.one_of(
    st.fixed_dictionaries(
        {"key": st.sampled_from(["t", "node.kubernetes.io/unschedulable"])},
        optional={
            "value": st.sampled_from(["", "x"]),
            "effect": effects,
            "operator": st.sampled_from(["Exists", "Equal", "Gt"]),
        },
    ),
    st.just({"operator": "Exists"}),
)


@st.composite
def pods(draw: st.DrawFn) -> Data:
    spec: Data = {"containers": draw(containers)}
    if draw(st.booleans()):
        wanted = {"nodeSelectorTerms": draw(st.lists(terms, min_size=1, max_size=3))}
        spec["affinity"] = {"nodeAffinity": {REQUIRED: wanted}}
    if draw(st.integers(0, 3)) == 0:
        spec["nodeSelector"] = {draw(KEYS): draw(VALUES)}
    spec["tolerations"] = draw(st.lists(tolerations, max_size=2))
    return make_pod_manifest(**spec)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Data], list[Data]]:
    nodes = []
    for name in NODE_NAMES:
        node = make_node_manifest(
            name,
            cpu=draw(st.sampled_from(["1", "2500m", "4"])),
            memory=draw(st.sampled_from(["0", "1500", "9999"])),
            pods=draw(st.integers(0, 4)),
            labels=draw(st.dictionaries(KEYS, VALUES)),
            taints=draw(st.lists(taints, max_size=2)),
            unschedulable=draw(st.integers(0, 4)) == 0,
        )
        if draw(st.booleans()):
            node["status"]["allocatable"][GPU] = "2"
        nodes.append(node)
    bound = []
    for containers_drawn in draw(st.lists(containers, max_size=6)):
        node_name = draw(st.sampled_from(NODE_NAMES))
        bound.append(make_pod_manifest(node=node_name, containers=containers_drawn))
    return nodes, bound


@settings(max_examples=300, deadline=None)
@given(worlds(), st.lists(pods(), min_size=1, max_size=4), st.permutations(range(4)))
def test_filter_agrees_with_the_rules(
    world: tuple[list[Data], list[Data]], wanted: list[Data], order: list[int]
) -> None:
    nodes, bound = world
    columns = CONCERN.new_columns()
    names = fill(columns, nodes, bound)

    for pod in wanted:
        request = CONCERN.request(pod_from_manifest(pod), POLICY)
        assert request is not None
        codes = CONCERN.filter(columns, np.array(order, dtype=np.intp), request)
        for row, code in zip(order, codes.tolist(), strict=True):
            there = [it for it in bound if it["spec"]["nodeName"] == names[row]]
            assert (code == 0) == accepts(pod, nodes[row], there)
            if code:
                assert CONCERN.explain(columns, row, code, request, names[row]).group


@settings(max_examples=100, deadline=None)
@given(worlds(), worlds(), pods())
def test_rows_used_again_are_like_new(
    before: tuple[list[Data], list[Data]], after: tuple[list[Data], list[Data]], pod: Data
) -> None:
    used, fresh = CONCERN.new_columns(), CONCERN.new_columns()
    request = CONCERN.request(pod_from_manifest(pod), POLICY)
    assert request is not None
    rows = np.arange(len(NODE_NAMES), dtype=np.intp)
    fill(used, *before)
    CONCERN.filter(used, rows, request)

    for row in rows.tolist():
        used.clear(row)
    fill(used, *after)
    fill(fresh, *after)

    assert words(used, request) == words(fresh, request)
    assert np.allclose(CONCERN.score(used, rows, request), CONCERN.score(fresh, rows, request))


# The words.


@pytest.mark.parametrize(
    ("pod", "node", "text", "detail"),
    [
        ({"cpu": "5"}, {}, "Insufficient cpu", "cpu: asks 5, free 4 of 4"),
        (
            {"memory": "9Gi"},
            {},
            "Insufficient memory",
            "memory: asks 9Gi, free 8Gi of 8Gi",
        ),
        ({}, {"pods": 0}, "Too many pods", "pods: asks 1, free 0 of 0"),
        (
            {"containers": [make_container(requests={GPU: "1"})]},
            {},
            f"Insufficient {GPU}",
            f"{GPU}: asks 1, free 0 of 0",
        ),
        (
            {"containers": [make_container(requests={GPU: "3"})]},
            {"others": {GPU: "2"}},
            f"Insufficient {GPU}",
            f"{GPU}: asks 3, free 2 of 2",
        ),
        (
            {},
            {"taints": [make_taint("pool", "gpu")]},
            "node(s) had untolerated taint {pool: gpu}",
            "",
        ),
        ({}, {"unschedulable": True}, "node(s) were unschedulable", ""),
        (
            {"nodeSelector": {"zone": "a"}},
            {},
            "node(s) didn't match Pod's node affinity/selector",
            "",
        ),
    ],
)
def test_words_of_kube_scheduler(pod: Data, node: Data, text: str, detail: str) -> None:
    reason = judge(make_pod_manifest(**pod), make_node_manifest(**node))

    assert reason is not None
    assert (reason.text, reason.detail) == (text, detail)


def test_taken_ports_are_named() -> None:
    web = make_container(ports=[{"containerPort": 1, "hostPort": 80}])
    holder = make_pod_manifest("holder", node="node", containers=[web])

    reason = judge(make_pod_manifest(containers=[web]), make_node_manifest(), holder)

    assert reason is not None
    assert reason.text == "node(s) didn't have free ports for the requested pod ports"
    assert reason.detail == "taken: 0.0.0.0:80/TCP"


def test_taints_of_several_kinds_are_one_group() -> None:
    groups = {
        reason.group
        for key in ("a", "b")
        if (reason := judge(make_pod_manifest(), make_node_manifest(taints=[make_taint(key)])))
    }

    assert groups == {"node(s) had untolerated taint(s)"}


def test_overdrawn_node_takes_what_asks_nothing() -> None:
    holder = make_pod_manifest("holder", node="node", cpu="9")

    assert judge(make_pod_manifest(), make_node_manifest(), holder) is None
    assert judge(make_pod_manifest(cpu="1m"), make_node_manifest(), holder) is not None


def test_capacity_counts_where_allocatable_is_absent() -> None:
    node = make_node_manifest()
    node["status"]["capacity"] = node["status"].pop("allocatable")

    assert judge(make_pod_manifest(cpu="4"), node) is None


def test_held_devices_count_once_a_node_advertises_them() -> None:
    columns = CONCERN.new_columns()
    columns.resize(1)
    columns.write_node(0, make_node(), None)
    pod = make_pod(containers=[make_container(requests={GPU: "2"})])
    usage = CONCERN.usage(pod, None)
    assert usage is not None
    holder = Holder(key="p", namespace="", name="")

    CONCERN.charge(columns, 0, holder, usage)
    assert columns.amounts(0, GPU) == (0, 2)
    columns.write_node(0, make_node(others={GPU: "3"}), None)
    assert columns.amounts(0, GPU) == (3, 2)
    CONCERN.release(columns, 0, holder, usage)
    CONCERN.release(columns, 0, holder, usage)
    assert columns.amounts(0, GPU) == (3, 0)


def test_more_resources_than_codes_still_refuse() -> None:
    node = make_node_manifest(others={f"example.com/r{index}": "1" for index in range(300)})
    last = make_container(requests={"example.com/r299": "2"})

    reason = judge(make_pod_manifest(containers=[last]), node)

    assert reason is not None
    assert reason.text == "Insufficient example.com/r299"


def test_score_is_least_allocated() -> None:
    columns = CONCERN.new_columns()
    holder = make_pod_manifest("holder", node="node", cpu="1", memory="2Gi")
    fill(columns, [make_node_manifest()], [holder])
    request = CONCERN.request(make_pod(cpu="1", memory="2Gi"), POLICY)
    assert request is not None

    assert CONCERN.score(columns, np.array([0], dtype=np.intp), request).tolist() == [50.0]


def test_score_leaves_out_what_a_node_does_not_have() -> None:
    columns = CONCERN.new_columns()
    nothing = make_node_manifest("empty", cpu="0", memory="0")
    fill(columns, [make_node_manifest(memory="0"), nothing], [])
    request = CONCERN.request(make_pod(cpu="1"), POLICY)
    assert request is not None

    rows = np.array([0, 1], dtype=np.intp)
    assert CONCERN.score(columns, rows, request).tolist() == [75.0, 0.0]


def test_many_values_of_a_label_do_not_pile_up() -> None:
    columns = CONCERN.new_columns()
    columns.resize(1)
    columns.labels.column("time")

    for index in range(5000):
        columns.write_node(0, make_node(labels={"time": str(index)}), None)
        columns.labels.column("time")

    assert len(columns.labels.column("time").code_by_value) <= 1100


def test_taint_ids_are_used_again() -> None:
    columns = CONCERN.new_columns()
    columns.resize(2)

    for index in range(1000):
        columns.write_node(0, make_node(taints=[make_taint("time", str(index))]), None)

    assert len(columns.taints.sets) <= 3
