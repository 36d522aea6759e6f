"""What topology updaters publish of a kubelet, in either dialect, and random cases to compare with."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster_sandbox.world.numa_fingerprints import fingerprint, hash64
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import Device, KubeletSettings, Machine, Zone
from berthmaster_sandbox.world.numa_pods import read_pod
from berthmaster_sandbox.world.numa_random import (
    Traits,
    build_case,
    kubelet_admits,
    node_has_room,
)
from berthmaster_sandbox.world.numa_reports import (
    ALL_PODS,
    Dialect,
    ReportHabits,
    amounts_of,
    build_report,
)
from berthmaster_sandbox.world.numa_verdicts import Admitted

GI = 2**30
NIC = "vendor.example/nic"
KEY = "vendor.example/key"
NFD = ReportHabits(dialect=Dialect.NFD)
RTE = ReportHabits(dialect=Dialect.RTE)


def make_kubelet(policy: str = "single-numa-node", **options: Any) -> NumaKubelet:
    """Return a kubelet of two zones of 4 CPUs and 10Gi, with a card that is in both."""
    managers = {"cpu_manager_policy": "static", "memory_manager_policy": "Static"}
    return NumaKubelet(
        Machine(
            zones=tuple(
                Zone(
                    id=id_,
                    cpus=5,
                    memory=13 * GI,
                    hugepages={"hugepages-1Gi": 2 * GI},
                    reserved_cpus=1,
                    reserved_memory={"memory": GI},
                    distances={1 - id_: 21},
                )
                for id_ in range(2)
            ),
            devices=(
                Device(resource=NIC, id="both", zones=(0, 1)),
                Device(resource=NIC, id="ill", zones=(0,), is_healthy=False),
                Device(resource=KEY, id="k"),
            ),
            settings=KubeletSettings(topology_manager_policy=policy, **{**managers, **options}),
        )
    )


def admit(
    kubelet: NumaKubelet, name: str, *, init: dict[str, str] | None = None, **amounts: str
) -> None:
    """Let a pod run whose only container's limits are given, `nic` and `key` for devices."""
    names = {"nic": NIC, "key": KEY}
    limits = {names.get(name, name): amount for name, amount in amounts.items()}
    spec: dict[str, Any] = {"containers": [{"name": "main", "resources": {"limits": limits}}]}
    if init is not None:
        spec["initContainers"] = [{"name": "init", "resources": {"limits": init}}]
    pod = {"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec}
    assert isinstance(kubelet.admit(read_pod(pod)), Admitted)


def attributes_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(it["name"], it["value"]) for it in report["attributes"]]


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        (b"a", 0, 0xD24EC4F1A98C6E5B),
        (b"Nobody inspects the spammish repetition", 0, 0xFBCEA83C8A378BF1),
    ],
)
def test_hash_is_xxh64(data: bytes, seed: int, expected: int) -> None:
    assert hash64(data, seed) == expected


def test_fingerprint_is_upstreams() -> None:
    assert fingerprint([("namespace1", "pod1")]) == "pfp0v0019e0420efb37746c6"
    assert fingerprint([]) == "pfp0v001ef46db3751d8e999"
    pods = [("default", "web-0"), ("kube-system", "dns-1")]
    assert fingerprint(pods) == fingerprint(reversed(pods)) == "pfp0v0019805bf71d02b2536"


def test_nfd_writes_its_attributes_and_the_old_policy() -> None:
    kubelet = make_kubelet()
    assert attributes_of(build_report("n", kubelet, NFD)) == [
        ("topologyManagerPolicy", "single-numa-node"),
        ("topologyManagerScope", "container"),
    ]
    admit(kubelet, "shared", cpu="500m", memory="1Gi")

    report = build_report("n", kubelet, NFD)

    assert report["topologyPolicies"] == ["SingleNUMANodeContainerLevel"]
    assert attributes_of(report)[2:] == [
        ("nodeTopologyPodsFingerprint", fingerprint([("ns", "shared")]))
    ]
    assert "annotations" not in report["metadata"]
    assert build_report("n", make_kubelet("none"), NFD)["topologyPolicies"] == ["None"]


def test_rte_writes_its_own() -> None:
    kubelet = make_kubelet(memory_manager_policy="None")
    admit(kubelet, "shared", cpu="500m", memory="1Gi")
    admit(kubelet, "key", key="1")
    admit(kubelet, "card", nic="1")

    report = build_report("n", kubelet, RTE)

    text = fingerprint([("ns", "card")])
    assert attributes_of(report) == [
        ("nodeTopologyPodsFingerprint", text),
        ("nodeTopologyPodsFingerprintMethod", "with-exclusive-resources"),
        ("topologyManagerScope", "container"),
        ("topologyManagerPolicy", "single-numa-node"),
    ]
    assert report["metadata"]["annotations"]["topology.node.k8s.io/fingerprint"] == text
    assert "topologyPolicies" not in report
    whole = build_report("n", kubelet, ReportHabits(dialect=Dialect.RTE, method=ALL_PODS))
    everybody = [("ns", name) for name in ("shared", "key", "card")]
    assert attributes_of(whole)[0][1] == fingerprint(everybody)
    silent = build_report("n", kubelet, ReportHabits(dialect=Dialect.RTE, has_fingerprint=False))
    assert len(attributes_of(silent)) == 2


def test_zones_say_what_there_is_and_what_is_left() -> None:
    kubelet = make_kubelet()
    admit(kubelet, "a", cpu="3", memory="4Gi")

    for habits in (NFD, RTE):
        zone = build_report("n", kubelet, habits)["zones"][0]

        assert (zone["name"], zone["type"]) == ("node-0", "Node")
        assert zone["costs"] == [{"name": "node-0", "value": 10}, {"name": "node-1", "value": 21}]
        assert {it.pop("name"): it for it in zone["resources"]} == {
            "cpu": {"capacity": "5", "allocatable": "4", "available": "1"},
            "memory": {
                "capacity": str(13 * GI),
                "allocatable": str(10 * GI),
                "available": str(6 * GI),
            },
            "hugepages-1Gi": dict.fromkeys(("capacity", "allocatable", "available"), str(2 * GI)),
            NIC: {"capacity": "1", "allocatable": "1", "available": "1"},
        }


def test_without_managers_a_zone_has_devices_only() -> None:
    options = {"cpu_manager_policy": "none", "memory_manager_policy": "None"}
    kubelet = make_kubelet(**options)
    assert amounts_of(build_report("n", kubelet, NFD))["node-1"] == {NIC: 1}

    bare = Machine(zones=(Zone(id=0, cpus=2, memory=GI),))
    resources = build_report("n", NumaKubelet(bare), RTE)["zones"][0]["resources"]
    assert resources == [{"name": "cpu", "capacity": "2", "allocatable": "0", "available": "0"}]


def test_what_is_of_several_zones_is_charged_differently() -> None:
    kubelet = make_kubelet("best-effort")
    admit(kubelet, "wide", cpu="1", memory="14Gi", nic="1")

    nfd = amounts_of(build_report("n", kubelet, NFD))
    rte = amounts_of(build_report("n", kubelet, RTE))

    assert [nfd[it]["memory"] for it in ("node-0", "node-1")] == [0, 6 * GI]
    assert [rte[it]["memory"] for it in ("node-0", "node-1")] == [0, 0]
    assert [nfd[it][NIC] for it in ("node-0", "node-1")] == [1, 0]
    assert [rte[it][NIC] for it in ("node-0", "node-1")] == [0, 0]


def test_init_containers_are_not_shown_though_they_hold() -> None:
    kubelet = make_kubelet()
    admit(kubelet, "a", cpu="1", memory="1Gi", init={"cpu": "3", "memory": "3Gi"})

    shown = amounts_of(build_report("n", kubelet, NFD))["node-0"]

    assert (shown["cpu"], shown["memory"]) == (3, 9 * GI)
    assert (kubelet.free_cpus(0), kubelet.free_memory(0)["memory"]) == (1, 7 * GI)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_fresh_reports_are_the_kubelets_books(seed: int) -> None:
    traits = Traits(
        policies=["single-numa-node"],
        managers=[("static", "Static")],
        init_containers=0,
        spanning_devices=0,
    )
    case = build_case(seed, traits)

    for habits in (NFD, RTE):
        found = amounts_of(case.report(habits))
        for zone in case.machine.zones:
            amounts = found[f"node-{zone.id}"]
            assert amounts["cpu"] == case.kubelet.free_cpus(zone.id)
            assert case.kubelet.free_memory(zone.id).items() <= amounts.items()


def test_cases_are_reproducible_and_of_every_outcome() -> None:
    cases = [build_case(seed) for seed in range(300)]

    again = build_case(7)
    assert (again.running, again.next_pod) == (cases[7].running, cases[7].next_pod)
    assert again.report(NFD) == cases[7].report(NFD)
    outcomes = {kubelet_admits(case) for case in cases}
    assert {why for _, why in outcomes} >= {
        "",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
        "OutOfcpu",
    }
    assert {node_has_room(case) for case in cases} == {True, False}
    # Asking does not change the case.
    assert [kubelet_admits(case) for case in cases[:50]] == [
        kubelet_admits(case) for case in cases[:50]
    ]


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_node_without_room_never_takes_a_pod_that_it_has_all_resources_for(seed: int) -> None:
    case = build_case(seed)
    asked = read_pod(case.next_pod).node_request()

    is_admitted, _ = kubelet_admits(case)

    if is_admitted and asked.keys() <= case.machine.allocatable().keys():
        assert node_has_room(case)


def test_upstream_order_is_random() -> None:
    kubelet = make_kubelet()
    orders = {
        tuple(
            it["name"]
            for it in build_report("n", kubelet, NFD, rng=random.Random(seed))["zones"]  # noqa: S311
        )
        for seed in range(20)
    }

    assert orders == {("node-0", "node-1"), ("node-1", "node-0")}
