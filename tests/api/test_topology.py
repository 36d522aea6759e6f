"""NodeResourceTopology in every dialect, and in none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berthmaster.api.topology import topology_from_manifest
from berthmaster.concerns.numa.inventory import build_topology

CPU = {"name": "cpu", "capacity": "4", "allocatable": "4", "available": "3"}


def make_zone(name: str = "node-0", **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "Node", "resources": [CPU], **fields}


def make(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n"}, "zones": [make_zone()], **fields}


def attributes(**values: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


@pytest.mark.parametrize(
    ("deprecated", "policy", "scope"),
    [
        ("SingleNUMANodePodLevel", "single-numa-node", "pod"),
        ("SingleNUMANodeContainerLevel", "single-numa-node", "container"),
        ("BestEffortPodLevel", "best-effort", "pod"),
        ("RestrictedContainerLevel", "restricted", "container"),
        ("Restricted", "none", "container"),
        ("None", "none", "container"),
    ],
)
def test_first_version_says_it_in_one_word(deprecated: str, policy: str, scope: str) -> None:
    found = topology_from_manifest(make(topologyPolicies=[deprecated, "BestEffortPodLevel"]))

    assert (found.policy, found.scope, found.problems) == (policy, scope, ())


def test_attributes_beat_the_word_each_for_itself() -> None:
    found = topology_from_manifest(
        make(
            topologyPolicies=["SingleNUMANodePodLevel"],
            attributes=attributes(topologyManagerPolicy="restricted"),
        )
    )

    assert (found.policy, found.scope) == ("restricted", "pod")


@pytest.mark.parametrize("value", ["SingleNUMANode", "", "Pod"])
def test_unknown_policy_is_told_and_changes_nothing(value: str) -> None:
    found = topology_from_manifest(make(attributes=attributes(topologyManagerPolicy=value)))

    assert found.policy == "none"
    assert found.problems == (
        "attributes[topologyManagerPolicy]: expected one of none, best-effort, restricted, "
        f'single-numa-node, found "{value}"; none is used',
    )


@pytest.mark.parametrize(
    ("value", "most"),
    [
        ("16", 16),
        ("+4", 4),
        ("5000", 1024),
        ("99999999999", 1024),
        ("1", 8),
        ("-2", 8),
        ("a", 8),
    ],
)
def test_most_zones(value: str, most: int) -> None:
    found = topology_from_manifest(make(attributes=attributes(topologyManagerMaxNUMANodes=value)))

    assert found.max_numa_nodes == most


def test_fingerprint_of_the_attribute_counts_before_that_of_the_annotation() -> None:
    annotated = {"name": "n", "annotations": {"topology.node.k8s.io/fingerprint": "noted"}}

    for value in ("told", ""):
        both = make(metadata=annotated, attributes=attributes(nodeTopologyPodsFingerprint=value))
        assert topology_from_manifest(both).fingerprint == value
    assert topology_from_manifest(make(metadata=annotated)).fingerprint == "noted"


def test_ids_come_from_names_and_may_have_gaps() -> None:
    zones = [make_zone(it) for it in ("node-5", "node-0", "node-63", "node-64", "node--1", "cpu-1")]

    found = topology_from_manifest(make(zones=zones))

    assert [zone.id for zone in found.zones] == [5, 0, 63]
    assert len(found.problems) == 3


def test_other_types_are_no_zones_and_no_faults() -> None:
    found = topology_from_manifest(make(zones=[make_zone(type="Socket"), make_zone("node-1")]))

    assert [zone.id for zone in found.zones] == [1]
    assert found.problems == ()


def test_zones_within_zones_are_found() -> None:
    socket = {"name": "socket-0", "type": "Socket", "zones": [make_zone(), make_zone("node-1")]}

    assert [zone.id for zone in topology_from_manifest(make(zones=[socket])).zones] == [0, 1]


def test_second_zone_of_a_name_is_told() -> None:
    found = topology_from_manifest(make(zones=[make_zone(), make_zone(resources=[])]))

    assert len(found.zones) == 1
    assert "cpu" in found.zones[0].resources
    assert found.problems == ("zones[1].name: node-0 is there already; only the first is read",)


@pytest.mark.parametrize(
    ("amounts", "available", "words"),
    [
        ({"available": "-1"}, "0", '"-1" is negative; taken as 0'),
        ({"available": None}, "0", "available: missing; taken as 0"),
        ({"available": "much"}, "0", '"much" is not a quantity'),
        ({"available": "9"}, "9", "available 9 is above allocatable 4"),
    ],
)
def test_odd_amounts_are_told(amounts: dict[str, Any], available: str, words: str) -> None:
    found = topology_from_manifest(make(zones=[make_zone(resources=[{**CPU, **amounts}])]))

    assert found.zones[0].resources["cpu"].available == available
    assert words in found.problems[0]


def test_a_megabyte_of_zones_is_read_in_bounds() -> None:
    many = [make_zone(f"node-{at % 70}", resources=[CPU] * 50) for at in range(3000)]

    found = topology_from_manifest(make(zones=many))
    built = build_topology(found)

    assert len(found.zones) == 64
    assert len(found.problems) <= 21
    assert built.condition is not None
    assert len(built.condition.message) <= 4096


def test_a_megabyte_of_names_is_read_in_bounds() -> None:
    odd = "\x01" * 50
    devices = [{**CPU, "name": f"vendor.example/{at}-{odd}"} for at in range(400)]
    many = [make_zone(f"node-{at}", resources=[*devices, CPU]) for at in range(64)]

    found = topology_from_manifest(make(zones=many))
    built = build_topology(found)

    assert built.zones is not None
    assert all(zone.available["cpu"] == "3" for zone in built.zones)
    assert sum(len(zone.model_dump_json(by_alias=True)) for zone in built.zones) < 2**20
    assert found.problems[0] == (
        "zones[0].resources: more than 8192 bytes of names and amounts, the rest is not read"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda it: (
        st.lists(it, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "type", "value", "resources", "costs", "zones", "available", "time", "x"]
            ),
            it,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    manifest=st.dictionaries(
        st.sampled_from(["metadata", "attributes", "topologyPolicies", "zones"]), JSON
    )
)
def test_nothing_that_is_json_trips_it(manifest: dict[str, Any]) -> None:
    build_topology(topology_from_manifest(manifest))
