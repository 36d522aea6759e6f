"""What the doctor concludes about NUMA: topologies, who writes them, what kubelets align."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from berthmaster.cli.doctor import topologies
from berthmaster.cli.doctor.facts import TopologySeen, Unread
from berthmaster.cli.doctor.findings import State
from cli.test_doctor import FACTS, found
from support.fake_api import Json

NFD = "node-feature-discovery-topology-updater"


def seen(
    name: str,
    *,
    policy: str = "single-numa-node",
    resources: Sequence[str] = ("cpu", "memory"),
    allocatable: str = "8",
    managed: Sequence[Json] = (),
    **attributes: str,
) -> TopologySeen:
    told = {"topologyManagerPolicy": policy, **attributes}
    zone = {
        "name": "node-0",
        "type": "Node",
        "resources": [
            {"name": it, "capacity": "8", "allocatable": allocatable, "available": "1"}
            for it in resources
        ],
    }
    manifest = {
        "metadata": {"name": name, "managedFields": list(managed)},
        "attributes": [{"name": key, "value": value} for key, value in told.items()],
        "zones": [zone],
    }
    return topologies.decode(json.dumps(manifest).encode())


def writing(manager: str, *fields: str, annotations: Sequence[str] = ()) -> Json:
    owned: Json = {f"f:{it}": {} for it in fields}
    owned["f:metadata"] = {"f:annotations": {f"f:{it}": {} for it in annotations}}
    return {"manager": manager, "operation": "Update", "fieldsV1": owned}


def node(name: str, **spec: object) -> Json:
    return {"metadata": {"name": name}, "spec": spec}


def inventory(name: str, status: str = "True", reason: str = "Reported") -> Json:
    condition = {"type": "TopologyReady", "status": status, "reason": reason, "message": "words"}
    return {"metadata": {"name": name}, "status": {"conditions": [condition]}}


WELL = replace(FACTS, topologies=(seen("a"),), nodes=(node("a"),), inventories=(inventory("a"),))


def test_cluster_without_topologies_is_as_well_as_one_with_them() -> None:
    assert found(topologies.check, FACTS, State.OK) == [
        "no node has a NodeResourceTopology: NUMA zones are not looked at"
    ]
    assert found(topologies.check, replace(FACTS, topologies=None)) == []
    assert found(topologies.check, WELL) == []
    assert found(topologies.check, WELL, State.OK) == [
        "kubelets by policy: 1 single-numa-node, scope container; the CPU manager of 1 is not told "
        "and taken for static",
        "1 node with topologies to rely upon",
    ]


def test_names_are_compared_with_nodes() -> None:
    tainted = node("tainted", taints=[{"effect": "NoSchedule"}])
    cordoned = node("cordoned", unschedulable=True)
    facts = replace(
        WELL,
        topologies=(seen("a"), seen("gone")),
        nodes=(node("a"), node("bare"), tainted, cordoned),
    )

    assert found(topologies.check, facts) == [
        "NodeResourceTopologies have names of no node: gone",
        "bare has no NodeResourceTopology while others have: pods are not aligned there",
    ]


def test_updaters_for_a_few_nodes_are_somebody_s_choice() -> None:
    facts = replace(WELL, nodes=(node("a"), node("b"), node("c")))

    assert found(topologies.check, facts) == []
    assert found(topologies.check, facts, State.OK)[0].startswith(
        "b, c has no NodeResourceTopology"
    )


@pytest.mark.parametrize(
    ("managed", "writers"),
    [
        ([writing(NFD, "zones", "attributes"), writing("kubectl-label", "labels")], ""),
        ([writing(NFD, "topologyPolicies"), writing("rte", "zones")], f"{NFD}, rte"),
        # The other lost all its fields but what it alone annotates.
        (
            [
                writing(NFD, "zones", "attributes"),
                writing("rte", annotations=["k8stopoawareschedwg/rte-update"]),
            ],
            f"{NFD}, rte",
        ),
    ],
)
def test_several_writers_of_one_topology(managed: list[Json], writers: str) -> None:
    facts = replace(WELL, topologies=(seen("a", managed=managed),))

    words = found(topologies.check, facts)

    assert words == (
        [f"several write the topology of a, and each undoes the other: {writers}"]
        if writers
        else []
    )


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (seen("a", resources=["cpu"]), "a lists cpu and in no zone memory"),
        (seen("a", allocatable="0"), "a aligns no CPUs"),
        (seen("a", cpuManagerPolicy="none"), "a aligns no CPUs"),
        (seen("a", resources=["vendor.com/gpu"]), "a aligns no CPUs"),
        (seen("a", resources=["cpu"], policy="best-effort"), ""),
    ],
)
def test_managers_that_align_nothing_on_kubelets_that_refuse(
    topology: TopologySeen, words: str
) -> None:
    told = found(topologies.check, replace(WELL, topologies=(topology,)))

    assert [it.startswith(words) for it in told] == ([True] if words else [])


def test_silent_updaters_are_told_by_the_inventory() -> None:
    facts = replace(WELL, inventories=(inventory("a", "False", "Stale"),))

    (finding,) = [it for it in topologies.check(facts) if it.state is State.WARNING]

    assert finding.found == "Stale on a: words"
    assert "spec.nodeName=a" in finding.way_out


def test_topologies_that_come_to_nothing_are_the_operator_s_fault() -> None:
    assert found(topologies.check, replace(WELL, inventories=()), State.BROKEN) == [
        "there are NodeResourceTopologies and no zones in any NodeInventory"
    ]


@pytest.mark.parametrize("kind", ["topologies", "nodes", "inventories"])
def test_what_cannot_be_read_is_not_checked(kind: str) -> None:
    facts = {
        "topologies": replace(WELL, topologies=Unread("needs it")),
        "nodes": replace(WELL, nodes=Unread("needs it")),
        "inventories": replace(WELL, inventories=Unread("needs it")),
    }[kind]

    (words,) = found(topologies.check, facts, State.NOT_CHECKED)

    assert words.endswith(": needs it")
