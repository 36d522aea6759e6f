"""The zones' books: whatever the updater knows already, nothing is given twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus, Sources
from berthmaster.api.objects import (
    Container,
    Pod,
    PodStatus,
    ResourceRequirements,
    Resources,
    node_from_manifest,
    pod_from_manifest,
)
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.topology import Amounts, NodeResourceTopology, topology_from_manifest
from berthmaster.concerns.numa import CONCERN, reasons
from berthmaster.concerns.numa.columns import NumaColumns, View
from berthmaster.concerns.numa.fingerprint import fingerprint
from berthmaster.concerns.numa.inventory import PodOnNode, TopologyInventory, build_topology
from berthmaster.concerns.numa.request import holds_exclusive
from berthmaster.concerns.shape import Holder
from berthmaster_sandbox.world.numa_placements import METADATA, VECTOR, encode

GPU = "vendor.com/gpu"
CPUS, GPUS = 8, 2
ROW = np.array([0])
NODE = node_from_manifest(
    {"metadata": {"name": "n", "uid": "n"}, "status": {"allocatable": {GPU: "4"}}}
)
POLICY = PlacementPolicySpec()


def make_pod(name: str, cpus: int, gpus: int = 0, *, uid: str = "", mode: str = "") -> Pod:
    asked = {"cpu": str(cpus), "memory": "1Gi", **({GPU: str(gpus)} if gpus else {})}
    return pod_from_manifest(
        {
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": uid or f"uid-{name}",
                "annotations": {"berthmaster.io/numa": mode} if mode else {},
            },
            "spec": {
                "containers": [{"name": "c", "resources": {"requests": asked, "limits": asked}}]
            },
        }
    )


def make_topology(
    free: list[tuple[int, int]],
    *,
    written_s: int | None = None,
    pods: list[str] | None = None,
    method: str = "",
    placed: Mapping[str, int] | None = None,
    **fields: Any,
) -> NodeResourceTopology:
    """Return a topology; `placed` are the zones of pods, where the updater tells them."""
    attributes = [{"name": "topologyManagerPolicy", "value": "single-numa-node"}]
    if pods is not None:
        text = fingerprint(("default", name) for name in pods)
        attributes.append({"name": "nodeTopologyPodsFingerprint", "value": text})
    if method:
        attributes.append({"name": "nodeTopologyPodsFingerprintMethod", "value": method})
    vectors: dict[int, str] = {}
    if placed is not None:
        zone_of = {("default", name, "c"): zone for name, zone in placed.items()}
        text, vectors = encode(zone_of, len(free))
        attributes.append({"name": METADATA, "value": text})
    metadata: dict[str, Any] = {"name": "n", "uid": "nrt"}
    if written_s is not None:
        time = f"2026-01-01T{written_s // 3600:02}:{written_s // 60 % 60:02}:{written_s % 60:02}Z"
        metadata["managedFields"] = [
            {"manager": "kubectl", "time": "2026-01-02T00:00:00Z", "fieldsV1": {"f:metadata": {}}},
            {"manager": "updater", "time": time, "fieldsV1": {"f:zones": {}}},
        ]
    zones = [
        {
            "name": f"node-{at}",
            "type": "Node",
            "attributes": [{"name": VECTOR, "value": vectors[at]}] if at in vectors else [],
            "resources": [
                {"name": "cpu", "capacity": CPUS, "allocatable": CPUS, "available": cpus},
                {"name": GPU, "capacity": GPUS, "allocatable": GPUS, "available": gpus},
            ],
        }
        for at, (cpus, gpus) in enumerate(free)
    ]
    return topology_from_manifest(
        {"metadata": metadata, "attributes": attributes, "zones": zones, **fields}
    )


T0 = 1767225600.0  # 2026-01-01T00:00:00Z


def on_node(pod: Pod, created: float | None = 0, started: float | None = None) -> PodOnNode:
    native, devices = holds_exclusive(pod)
    return PodOnNode(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        created_s=None if created is None else T0 + created,
        started_s=None if started is None else T0 + started,
        is_exclusive=native,
        devices=devices,
        held=(("c", ("cpu", "memory", *devices)),),
    )


def to_status(built: TopologyInventory) -> NodeInventoryStatus:
    status = NodeInventoryStatus(
        topology=built.topology, zones=built.zones, sources=Sources(topology=built.source)
    )
    return NodeInventoryStatus.model_validate(status.to_wire())


def write(columns: NumaColumns, built: TopologyInventory) -> None:
    columns.write_node(0, NODE, NodeInventory(name="n", status=to_status(built)))


def holder(pod: Pod) -> Holder:
    return Holder(key=pod.metadata.uid, namespace="default", name=pod.metadata.name)


def new_columns() -> NumaColumns:
    columns = NumaColumns()
    columns.resize(1)
    return columns


def free_cpus(columns: NumaColumns, view: View = View.FREE) -> list[float]:
    return [zone["cpu"] / 10**9 for zone in columns.free(0, view)]


def charge(columns: NumaColumns, pod: Pod, *, ours: bool = True) -> None:
    allocated = None
    if ours:
        request = CONCERN.request(pod, POLICY)
        assert request is not None
        allocated = CONCERN.allocate(columns, 0, request, {})
    usage = CONCERN.usage(pod, allocated)
    assert usage is not None
    CONCERN.charge(columns, 0, holder(pod), usage)


def start(pod: Pod) -> Pod:
    """Return a pod that its kubelet has taken, as the watch shows it."""
    return msgspec.structs.replace(pod, status=PodStatus(start_time="2026-01-01T00:00:00Z"))


def reported(built: TopologyInventory) -> set[str]:
    assert built.topology is not None
    return set(built.topology.reported_pods)


def test_pod_is_taken_off_the_zone_that_its_kubelet_will_choose() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(3, 0), (8, 2)])))

    charge(columns, make_pod("p", 4))

    assert free_cpus(columns) == [3, 4]
    # The other zone could hold it as well, were its pods gone by then.
    assert free_cpus(columns, View.DOUBTFUL) == [0, 4]


def test_pods_admitted_in_another_order_find_no_less_than_strict_ones_are_promised() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    kubelet = Kubelet([[8, 2], [8, 2]])

    charge(columns, make_pod("first", 6))
    charge(columns, make_pod("second", 4))
    assert kubelet.admit("second", 4, 0)
    assert kubelet.admit("first", 6, 0)

    # The prediction has them the other way round, and is not what strict pods go by.
    assert free_cpus(columns) == [2, 4]
    assert [zone[0] for zone in kubelet.zones] == [4, 2]
    assert free_cpus(columns, View.DOUBTFUL) == [0, 0]


def test_pod_that_another_scheduler_placed_is_taken_off_just_so() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(3, 0), (8, 2)])))

    charge(columns, make_pod("p", 4), ours=False)

    assert free_cpus(columns) == [3, 4]


def test_pod_that_fits_no_zone_lies_across_them() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(3, 0), (8, 2)])))

    charge(columns, make_pod("p", 10), ours=False)

    assert free_cpus(columns) == [0, 1]


def test_pod_with_a_device_is_never_in_doubt_where_no_such_device_is() -> None:
    columns = new_columns()
    topology = make_topology([(8, 0), (8, 2)])
    del topology.zones[0].resources[GPU]  # type: ignore[attr-defined]
    write(columns, build_topology(topology))
    pod = make_pod("p", 2, 1)

    charge(columns, pod)

    # While it is on its way, nobody may count on the zone that it cannot go to.
    assert free_cpus(columns, View.DOUBTFUL) == [0, 6]

    take(columns, pod)

    assert free_cpus(columns, View.DOUBTFUL) == [8, 6]


def test_fractions_of_a_cpu_are_nobody_s_alone() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2)])))
    asked = {"cpu": "1500m", "memory": "1Gi"}
    pod = pod_from_manifest(
        {"metadata": {"name": "p", "uid": "p"},
         "spec": {"containers": [{"name": "c", "resources": {"limits": asked}}]}}
    )  # fmt: skip

    charge(columns, pod)

    assert free_cpus(columns) == [8]


def test_report_that_counts_a_pod_takes_it_out_of_our_books() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    charge(columns, pod)

    write(columns, build_topology(make_topology([(4, 2), (8, 2)], pods=["p"]), [on_node(pod)]))

    assert free_cpus(columns) == [4, 8]


def test_numbers_that_fell_by_what_a_pod_asks_prove_nothing() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    first = build_topology(make_topology([(8, 2), (8, 2)], written_s=10))
    write(columns, first)
    charge(columns, pod)

    second = build_topology(
        make_topology([(4, 2), (8, 2)], written_s=20),
        [on_node(pod, 12, 20)],
        previous=to_status(first),
    )
    write(columns, second)

    # It is charged where it fits: the lowest zone still has 4.
    assert free_cpus(columns) == [0, 8]
    assert second.unreflected == {"uid-p"}


@pytest.mark.parametrize(
    # Both times are whole seconds: written at 20.0 and started at 19.9 are stored as 20 and 19.
    ("started", "is_counted"),
    [(18, True), (19, False), (20, False), (None, False)],
)
def test_time_proves_it_when_a_second_lies_between(started: int | None, is_counted: bool) -> None:
    built = build_topology(
        make_topology([(4, 2)], written_s=20), [on_node(make_pod("p", 4), 5, started)]
    )

    assert reported(built) == ({"uid-p"} if is_counted else set())


def test_what_touches_only_labels_proves_nothing() -> None:
    topology = make_topology([(4, 2)], written_s=20)

    assert topology.written_s == T0 + 20


def test_fingerprint_of_the_pods_without_the_last_to_start_counts_the_others() -> None:
    early, late = make_pod("early", 2), make_pod("late", 2)

    built = build_topology(
        make_topology([(6, 2)], written_s=20, pods=["early"]),
        [on_node(late, 5, 21), on_node(early, 5, 20)],
    )

    assert reported(built) == {"uid-early"}


def test_fingerprint_counts_nobody_whom_it_does_not_name_however_late_it_was_written() -> None:
    early, late = make_pod("early", 2), make_pod("late", 2)
    pods = [on_node(late, 5, 11), on_node(early, 5, 10)]

    # The updater looked at second 10, and wrote at second 20.
    assert reported(
        build_topology(make_topology([(6, 2)], written_s=20, pods=["early"]), pods)
    ) == {"uid-early"}
    # Of a set that we cannot make it says nothing.
    unknown = make_topology([(6, 2)], written_s=20, pods=["nobody"])
    assert reported(build_topology(unknown, pods)) == {"uid-early", "uid-late"}


def test_fingerprint_over_pods_with_exclusive_resources_leaves_the_others_out() -> None:
    plain = PodOnNode(uid="plain", namespace="default", name="plain")
    pod = make_pod("p", 4)

    built = build_topology(
        make_topology([(4, 2)], pods=["p"], method="with-exclusive-resources"),
        [on_node(pod), plain],
    )

    assert reported(built) == {"uid-p"}


def test_fingerprint_with_the_name_of_a_predecessor_does_not_count_the_successor() -> None:
    successor = make_pod("web-0", 6, uid="second")

    built = build_topology(
        make_topology([(6, 2)], written_s=20, pods=["web-0"]), [on_node(successor, 20)]
    )

    assert reported(built) == set()


@pytest.mark.parametrize(("is_first", "counted"), [(True, {"uid-p"}), (False, set())])
def test_name_of_a_pod_as_old_as_the_report_counts_if_it_means_no_other(
    is_first: bool, counted: set[str]
) -> None:
    pod = replace(on_node(make_pod("p", 4), 20), is_first=is_first)

    built = build_topology(make_topology([(4, 2)], written_s=20, pods=["p"]), [pod])

    assert reported(built) == counted


def test_what_was_counted_stays_counted() -> None:
    pod = make_pod("p", 4)
    first = build_topology(make_topology([(4, 2)], pods=["p"]), [on_node(pod)])

    second = build_topology(
        make_topology([(3, 2)], pods=["p", "stranger"]), [on_node(pod)], previous=to_status(first)
    )

    assert reported(second) == {"uid-p"}


def test_topology_made_anew_counts_nobody_of_before() -> None:
    pod = make_pod("p", 4)
    first = build_topology(make_topology([(4, 2)], pods=["p"]), [on_node(pod)])
    other = topology_from_manifest({"metadata": {"name": "n", "uid": "another"}, "zones": []})

    second = build_topology(other, [on_node(pod)], previous=to_status(first))

    assert reported(second) == set()


def test_pod_that_is_gone_gives_nothing_back_before_the_report_says_so() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    built = build_topology(make_topology([(4, 2)], pods=["p"]), [on_node(pod)])
    write(columns, built)
    charge(columns, pod)

    release(columns, pod)
    assert free_cpus(columns) == [4]

    write(columns, build_topology(make_topology([(8, 2)], pods=[]), previous=to_status(built)))
    assert free_cpus(columns) == [8]


def release(columns: NumaColumns, pod: Pod) -> None:
    usage = CONCERN.usage(pod, None)
    assert usage is not None
    CONCERN.release(columns, 0, holder(pod), usage)


def test_pod_that_is_gone_leaves_the_zone_in_which_its_updater_saw_it() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    here = [on_node(pod)]
    topology = make_topology([(8, 2), (4, 2)], pods=["p"], placed={"p": 1})
    built = build_topology(topology, here)
    write(columns, built)
    charge(columns, pod)
    assert free_cpus(columns) == [8, 4]

    release(columns, pod)
    assert free_cpus(columns) == free_cpus(columns, View.DOUBTFUL) == [8, 8]

    # The operator has seen its end, too; the numbers are still those that count it.
    gone = build_topology(topology, previous=to_status(built))
    write(columns, gone)
    assert free_cpus(columns) == [8, 8]

    # Numbers that do not count it any more give nothing twice.
    newer = make_topology([(8, 2), (8, 2)], pods=[], placed={})
    write(columns, build_topology(newer, previous=to_status(gone)))
    assert free_cpus(columns) == [8, 8]


def test_newer_numbers_that_do_not_tell_zones_give_nothing_back() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    built = build_topology(
        make_topology([(8, 2), (4, 2)], pods=["p"], placed={"p": 1}), [on_node(pod)]
    )
    write(columns, built)
    charge(columns, pod)
    release(columns, pod)

    # The operator has not seen its end, so the pod is taken for counted as before.
    newer = build_topology(
        make_topology([(8, 2), (8, 2)], written_s=9, pods=[], placed={}),
        [on_node(pod)],
        previous=to_status(built),
    )
    write(columns, newer)

    assert reported(newer) == {"uid-p"}
    assert free_cpus(columns) == [8, 8]


def test_what_init_containers_left_is_where_the_pod_was_seen() -> None:
    columns = new_columns()
    asked = {"cpu": "2", "memory": "1Gi"}
    pod = make_pod("p", 2)
    init = {
        "name": "i",
        "resources": {"requests": {**asked, "cpu": "4"}, "limits": {**asked, "cpu": "4"}},
    }
    manifest = msgspec.to_builtins(pod)
    manifest["spec"]["initContainers"] = [init]
    pod = pod_from_manifest(manifest)
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    charge(columns, pod)
    assert free_cpus(columns) == [4, 8]

    built = build_topology(
        make_topology([(8, 2), (6, 2)], pods=["p"], placed={"p": 1}), [on_node(pod)]
    )
    write(columns, built)

    # Predicted in the other zone; it has 2 of its own and holds 2 more than its updater shows.
    assert free_cpus(columns) == free_cpus(columns, View.DOUBTFUL) == [8, 4]
    release(columns, pod)
    assert free_cpus(columns) == [8, 8]


def test_pod_that_was_taken_for_gone_holds_its_zone_again() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    topology = make_topology([(8, 2), (4, 2)], pods=["p"], placed={"p": 1})
    write(columns, build_topology(topology, [on_node(pod)]))
    for _ in range(2):
        charge(columns, pod)
        assert free_cpus(columns) == [8, 4]
        release(columns, pod)
        assert free_cpus(columns) == [8, 8]


def test_who_asks_what_would_help_presumes_the_predicted_zone() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    charge(columns, pod)
    write(columns, build_topology(make_topology([(4, 2), (8, 2)], pods=["p"]), [on_node(pod)]))
    assert free_cpus(columns) == [4, 8]

    columns.presumes = True
    release(columns, pod)

    assert free_cpus(columns) == [8, 8]


def test_zones_come_back_up_to_what_they_have() -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    write(
        columns,
        build_topology(
            make_topology([(8, 2), (7, 2)], pods=["p"], placed={"p": 1}), [on_node(pod)]
        ),
    )
    charge(columns, pod)

    release(columns, pod)

    assert free_cpus(columns) == [8, 8]


@pytest.mark.parametrize(
    ("change", "zones"),
    [
        ({}, ("1",)),
        ({"placed": {"p": 1, "other": 0}}, ()),
        ({"placed": {"p": 5}}, ()),
        ({"pods": ["stranger"]}, ()),
    ],
)
def test_zones_are_told_where_all_agrees(change: dict[str, Any], zones: tuple[str, ...]) -> None:
    asked = {"pods": ["p"], "placed": {"p": 1}, **change}

    built = build_topology(make_topology([(8, 2), (4, 2)], **asked), [on_node(make_pod("p", 4))])

    assert built.topology is not None
    assert built.topology.reported_zones == zones


def test_zones_of_kubelets_that_may_use_several_are_not_read() -> None:
    topology = make_topology([(8, 2), (4, 2)], pods=["p"], placed={"p": 1})

    built = build_topology(replace(topology, policy="restricted"), [on_node(make_pod("p", 4))])

    assert built.topology is not None
    assert built.topology.reported_zones == ()


def test_predictions_are_compared_once_with_what_updaters_saw() -> None:
    columns = new_columns()
    pods = [make_pod("hit", 4), make_pod("miss", 4)]
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    for pod in pods:
        charge(columns, pod)
    stranger = make_pod("stranger", 2)
    charge(columns, stranger, ours=False)

    built = build_topology(
        make_topology(
            [(4, 2), (2, 2)],
            pods=["hit", "miss", "stranger"],
            placed={"hit": 0, "miss": 1, "stranger": 1},
        ),
        [on_node(it) for it in (*pods, stranger)],
    )
    write(columns, built)
    write(columns, built)

    assert (columns.hits, columns.misses) == (1, 1)
    # Who starts anew reads the pods after the numbers, and comes to the same.
    fresh = new_columns()
    write(fresh, build_topology(make_topology([(8, 2), (8, 2)])))
    usages = [CONCERN.usage(it, {"zones": {"0": {"cpu": "4"}}}) for it in pods]
    write(fresh, built)
    for pod, usage in zip(pods, usages, strict=True):
        assert usage is not None
        CONCERN.charge(fresh, 0, holder(pod), usage)
    assert (fresh.hits, fresh.misses) == (1, 1)


def take(columns: NumaColumns, pod: Pod) -> None:
    """Let the watch show that the kubelet has taken a pod of ours."""
    for state in (pod, start(pod)):
        usage = CONCERN.usage(state, {"zones": {"0": {"cpu": "1"}}})
        assert usage is not None
        if state is pod:
            CONCERN.release(columns, 0, holder(pod), usage)
        else:
            CONCERN.charge(columns, 0, holder(pod), usage)


def bind(pod: Pod) -> Pod:
    """Bind a pod: from then on its kubelet may take it before we hear of that."""
    return msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, node_name="n"))


def fits(columns: NumaColumns, cpus: int) -> bool:
    request = CONCERN.request(make_pod("next", cpus), POLICY)
    assert request is not None
    return bool(CONCERN.filter(columns, ROW, request)[0] == 0)


def fits_all(columns: NumaColumns, cpus: list[int], *, init: int = 0) -> bool:
    """Return whether a pod with so many CPUs per container fits, with an init container before them or without."""
    pod = make_pod("next", 1)
    assert pod.spec.containers is not None
    first = pod.spec.containers[0]

    def ask(name: str, count: int) -> Container:
        asked: Resources = {"cpu": str(count), "memory": "1Gi"}
        return msgspec.structs.replace(
            first, name=name, resources=ResourceRequirements(requests=asked, limits=asked)
        )

    spec = msgspec.structs.replace(
        pod.spec,
        containers=[ask(f"c{at}", count) for at, count in enumerate(cpus)],
        init_containers=[ask("i", init)] if init else None,
    )
    request = CONCERN.request(msgspec.structs.replace(pod, spec=spec), POLICY)
    assert request is not None
    return bool(CONCERN.filter(columns, ROW, request)[0] == 0)


def test_equal_pods_need_not_wait_for_each_other() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    for name in "abcd":
        assert fits(columns, 4)
        charge(columns, make_pod(name, 4))

    assert not fits(columns, 4)


def test_another_shape_waits_for_those_on_their_way_or_needs_a_zone_beside_them() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    pod = make_pod("a", 5)
    charge(columns, pod)
    assert (fits(columns, 3), fits(columns, 6)) == (True, False)
    request = CONCERN.request(make_pod("next", 6), POLICY)
    assert request is not None
    assert CONCERN.filter(columns, ROW, request)[0] == reasons.CROWDED
    told = CONCERN.explain(columns, 0, reasons.CROWDED, request, "n")
    assert told.text.startswith(
        "zones are not certain yet: pods that ask otherwise are on their way"
    )

    take(columns, pod)

    assert (fits(columns, 3), fits(columns, 6)) == (True, True)
    assert free_cpus(columns) == [3, 8]


def test_nobody_crowds_a_pod_out_of_the_only_zone_that_it_can_go_to() -> None:
    columns = new_columns()
    topology = make_topology([(8, 2), (8, 0)])
    del topology.zones[1].resources[GPU]  # type: ignore[attr-defined]
    write(columns, build_topology(topology))
    pod = make_pod("a", 3, 1)
    charge(columns, pod)

    # 6 would lie in zone 1, unless they arrive first.
    assert (fits(columns, 5), fits(columns, 6)) == (True, False)

    take(columns, pod)

    assert fits(columns, 6)


def test_nobody_waits_for_pods_that_have_nothing_of_any_zone() -> None:
    columns = new_columns()
    topology = make_topology([(8, 0), (8, 0)])
    for zone in topology.zones:
        del zone.resources[GPU]  # type: ignore[attr-defined]
    write(columns, build_topology(topology))
    pod = make_pod("devices", 0, 1)

    # No report will ever count it: the device belongs to no zone, and no zone lists memory.
    charge(columns, pod)

    assert columns.coming[0] == 0
    assert fits_all(columns, [8], init=1)


def test_containers_count_on_one_zone_together_while_others_are_on_their_way() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    pod = make_pod("a", 6)
    charge(columns, pod)

    # If these arrive first, 4 and 2 lie in zone 0, 4 in zone 1, and 6 find no room.
    assert not fits_all(columns, [4, 2, 4])
    assert fits_all(columns, [1, 1])
    assert not fits_all(columns, [1], init=1)

    take(columns, pod)

    assert fits_all(columns, [4, 2, 4])
    assert fits_all(columns, [1], init=1)


def test_zones_of_pods_that_came_together_are_uncertain_until_a_report_counts_them() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    pods = [make_pod("a", 3), make_pod("b", 4)]
    for pod in pods:
        charge(columns, pod)
    for pod in reversed(pods):
        take(columns, pod)
    assert not fits(columns, 5)

    counted = make_topology([(1, 2), (8, 2)], pods=["a", "b"])
    write(columns, build_topology(counted, [on_node(it) for it in pods]))

    assert fits(columns, 5)


def test_zone_is_uncertain_where_the_kubelet_knows_of_room_that_the_report_does_not() -> None:
    columns = new_columns()
    gone, pod = make_pod("gone", 6), make_pod("a", 3)
    charge(columns, gone)
    built = build_topology(make_topology([(2, 2), (8, 2)], pods=["gone"]), [on_node(gone)])
    write(columns, built)
    columns.release(0, holder(gone))
    charge(columns, pod)
    take(columns, pod)
    # By the report it lies in zone 1; in truth in zone 0, from which the other one is gone.
    assert free_cpus(columns) == [2, 5]
    assert not fits(columns, 6)

    write(
        columns,
        build_topology(
            make_topology([(5, 2), (8, 2)], written_s=9, pods=["a"]),
            [on_node(pod)],
            previous=to_status(built),
        ),
    )
    assert fits(columns, 6)


def test_zone_is_uncertain_if_somebody_left_while_its_pod_was_on_its_way() -> None:
    columns = new_columns()
    gone, other, pod = (bind(make_pod(name, 3)) for name in ("gone", "other", "a"))
    for it in (gone, other):
        charge(columns, it)
    counted = make_topology(
        [(2, 2), (3, 2)], pods=["gone", "other"], placed={"gone": 0, "other": 1}
    )
    built = build_topology(counted, [on_node(gone), on_node(other)])
    write(columns, built)
    charge(columns, pod)
    # Its kubelet has taken the pod, into zone 1; then the others go, and we hear of one of them first.
    release(columns, gone)
    take(columns, pod)
    release(columns, other)
    # In truth they are 5 and 3; by the order of what was heard 2 and 6.
    assert (fits(columns, 6), fits(columns, 3)) == (False, True)

    later = make_topology([(5, 2), (3, 2)], written_s=9, pods=["a"])
    write(columns, build_topology(later, [on_node(pod)], previous=to_status(built)))
    assert (fits(columns, 6), fits(columns, 5)) == (False, True)


def take_two_alike() -> tuple[NumaColumns, list[Pod]]:
    """Return zones of 3 and 8 CPUs, and two pods of 3 that came together; the kubelet has taken both."""
    columns = new_columns()
    write(columns, build_topology(make_topology([(3, 2), (8, 2)])))
    pods = [bind(make_pod(name, 3)) for name in "ab"]
    for pod in pods:
        charge(columns, pod)
    for pod in pods:
        take(columns, pod)
    return columns, pods


def test_zone_is_uncertain_once_somebody_leaves_before_a_report_counts_its_pod() -> None:
    columns, pods = take_two_alike()
    assert fits(columns, 5)

    # Perhaps b came first, and lies in zone 0.
    release(columns, pods[0])

    assert (fits(columns, 6), fits(columns, 5)) == (False, True)


def test_zone_is_uncertain_though_nobody_knows_which_zone_was_left() -> None:
    columns = new_columns()
    gone, pod = bind(make_pod("gone", 3)), bind(make_pod("a", 3))
    charge(columns, gone)
    counted = make_topology([(2, 2), (8, 2)], pods=["gone"])
    write(columns, build_topology(counted, [on_node(gone)]))
    charge(columns, pod)
    take(columns, pod)
    assert fits(columns, 5)

    # Perhaps it was gone before the pod came, from zone 0, where the pod is now.
    release(columns, gone)

    assert (fits(columns, 6), fits(columns, 5)) == (False, True)


def test_pod_that_a_report_counts_before_it_is_shown_to_be_taken_has_not_left() -> None:
    columns = new_columns()
    pods = [bind(make_pod("a", 3)), bind(make_pod("b", 3))]
    charge(columns, pods[0])
    built = build_topology(make_topology([(5, 2), (8, 2)], pods=["a"]), [on_node(pods[0])])
    write(columns, built)
    charge(columns, pods[1])
    take(columns, pods[1])

    take(columns, pods[0])

    assert fits(columns, 8)


def test_of_pods_that_are_alike_the_later_one_may_be_counted_first() -> None:
    columns, pods = take_two_alike()

    write(columns, build_topology(make_topology([(0, 2), (8, 2)], pods=["b"]), [on_node(pods[1])]))

    assert free_cpus(columns) == [0, 5]
    assert (fits(columns, 6), fits(columns, 5)) == (False, True)


def test_answer_that_becomes_a_pod_is_nobody_who_left() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    first, second = bind(make_pod("a", 3)), make_pod("b", 3)
    charge(columns, first)
    charge(columns, second)

    release(columns, second)
    charge(columns, bind(make_pod("b", 3)))
    for name in "ab":
        take(columns, bind(make_pod(name, 3)))

    assert fits(columns, 8)


def test_topology_that_comes_after_its_pods_leaves_their_zones_uncertain() -> None:
    columns = new_columns()
    pod = make_pod("a", 5)
    charge(columns, pod)
    take(columns, pod)

    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    assert (fits(columns, 6), fits(columns, 3)) == (False, True)

    counted = make_topology([(3, 2), (8, 2)], pods=["a"])
    write(columns, build_topology(counted, [on_node(pod)]))
    assert fits(columns, 6)


def test_pod_that_was_there_before_us_is_uncertain_until_a_report_counts_it() -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology([(8, 2), (8, 2)])))
    usage = CONCERN.usage(start(make_pod("a", 5)), {"zones": {"0": {"cpu": "5"}}})
    assert usage is not None

    CONCERN.charge(columns, 0, holder(make_pod("a", 5)), usage)

    assert (fits(columns, 6), fits(columns, 3)) == (False, True)


@pytest.mark.parametrize("zones", [("0", "1"), ("x",), ("0,",), ("0,1",)])
def test_zones_of_another_form_are_left_alone(zones: tuple[str, ...]) -> None:
    columns = new_columns()
    pod = make_pod("p", 4)
    built = build_topology(make_topology([(4, 2)], pods=["p"]), [on_node(pod)])
    assert built.topology is not None
    changed = built.topology.model_copy(update={"reported_zones": zones})
    write(columns, replace(built, topology=changed))
    charge(columns, pod)

    release(columns, pod)

    assert free_cpus(columns) == [4]


@settings(max_examples=60, deadline=None)
@given(
    free=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=4),
    asked=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=6),
    ours=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_releasing_undoes_charging_in_any_order(
    free: list[tuple[int, int]], asked: list[tuple[int, int]], ours: bool, order: Any
) -> None:
    columns = new_columns()
    write(columns, build_topology(make_topology(free)))
    before = [dict(zone) for zone in columns.free(0)]
    pods = [make_pod(f"p{at}", *it) for at, it in enumerate(asked)]
    for pod in pods:
        charge(columns, pod, ours=ours)
    cells = {name: columns.cells(columns.block(0), name) for name in ("cpu", GPU)}
    order.shuffle(pods)
    for pod in pods:
        usage = CONCERN.usage(pod, None)
        assert usage is not None
        CONCERN.release(columns, 0, holder(pod), usage)
        CONCERN.release(columns, 0, holder(pod), usage)

    assert columns.free(0) == columns.free(0, View.DOUBTFUL) == before
    for name, it in cells.items():
        index = columns.indices[0]
        assert it.amounts[index].tolist() == [zone[name] for zone in before]


@dataclass
class Kubelet:
    """A kubelet with policy single-numa-node, which is never told what we predict."""

    zones: list[list[int]] = field(default_factory=list)
    pods: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def admit(self, name: str, cpus: int, gpus: int) -> bool:
        for at, zone in enumerate(self.zones):
            if zone[0] >= cpus and zone[1] >= gpus:
                zone[0] -= cpus
                zone[1] -= gpus
                self.pods[name] = (at, cpus, gpus)
                return True
        return False

    def remove(self, name: str) -> None:
        at, cpus, gpus = self.pods.pop(name)
        self.zones[at][0] += cpus
        self.zones[at][1] += gpus


@dataclass
class Live:
    pod: Pod
    cpus: int
    gpus: int
    created: int
    allocated: Mapping[str, Any]
    started: int | None = None
    # The watch has shown that the kubelet has taken it.
    is_shown: bool = False


class StrictPods(RuleBasedStateMachine):
    """Pods labelled strict are never refused by their kubelet.

    They are admitted in any order, reports are made at any time and come late, and names come again.
    Nor do we hear of what kubelets do when they do it.
    """

    mode = "strict"

    @initialize(zones=st.integers(1, 2))
    def begin(self, zones: int) -> None:
        self.kubelet = Kubelet([[CPUS, GPUS] for _ in range(zones)])
        self.live: dict[str, Live] = {}
        self.clock = 10
        self.count = 0
        self.reports: list[NodeResourceTopology] = []
        self.previous: NodeInventoryStatus | None = None
        self.columns = new_columns()
        self.report()
        self.deliver()

    @rule(
        asked=st.lists(
            st.tuples(st.sampled_from("abcdef"), st.integers(2, 6), st.integers(0, 1)),
            min_size=1,
            max_size=3,
        )
    )
    def place(self, asked: list[tuple[str, int, int]]) -> None:
        for name, cpus, gpus in asked:
            if any(it.pod.metadata.name == name for it in self.live.values()):
                continue
            self.clock += 1
            self.count += 1
            pod = make_pod(name, cpus, gpus, uid=f"{name}{self.count}", mode=self.mode)
            request = CONCERN.request(pod, POLICY)
            assert request is not None
            if CONCERN.filter(self.columns, ROW, request)[0] == 0:
                allocated = CONCERN.allocate(self.columns, 0, request, {})
                pod = bind(pod)
                charge(self.columns, pod)
                self.live[pod.metadata.uid] = Live(pod, cpus, gpus, self.clock, allocated)

    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        waiting = sorted(uid for uid, it in self.live.items() if it.started is None)
        if waiting:
            self.clock += 1
            it = self.live[data.draw(st.sampled_from(waiting))]
            assert self.kubelet.admit(it.pod.metadata.name, it.cpus, it.gpus), (
                "TopologyAffinityError"
            )
            it.started = self.clock

    @rule(data=st.data())
    def show(self, data: st.DataObject) -> None:
        """Hear that a pod was taken."""
        taken = sorted(
            uid for uid, it in self.live.items() if it.started is not None and not it.is_shown
        )
        if taken:
            it = self.live[data.draw(st.sampled_from(taken))]
            it.is_shown = True
            before = CONCERN.usage(it.pod, it.allocated)
            it.pod = start(it.pod)
            usage = CONCERN.usage(it.pod, it.allocated)
            assert before is not None
            assert usage is not None
            # As the ledger does.
            CONCERN.release(self.columns, 0, holder(it.pod), before)
            CONCERN.charge(self.columns, 0, holder(it.pod), usage)

    @rule(data=st.data(), is_heard_of=st.booleans())
    def finish(self, data: st.DataObject, is_heard_of: bool) -> None:
        running = sorted(
            uid
            for uid, it in self.live.items()
            if it.started is not None and it.pod.metadata.name in self.kubelet.pods
        )
        if running:
            uid = data.draw(st.sampled_from(running))
            self.kubelet.remove(self.live[uid].pod.metadata.name)
            if is_heard_of:
                self.hear_of_end(uid)

    @rule()
    def hear_of_ends(self) -> None:
        for uid, it in list(self.live.items()):
            if it.started is not None and it.pod.metadata.name not in self.kubelet.pods:
                self.hear_of_end(uid)

    def hear_of_end(self, uid: str) -> None:
        it = self.live.pop(uid)
        usage = CONCERN.usage(it.pod, it.allocated)
        assert usage is not None
        CONCERN.release(self.columns, 0, holder(it.pod), usage)

    @rule(with_fingerprint=st.booleans(), with_placement=st.booleans())
    def report(self, with_fingerprint: bool = True, with_placement: bool = False) -> None:
        self.clock += 1
        self.reports.append(
            make_topology(
                [(zone[0], zone[1]) for zone in self.kubelet.zones],
                written_s=self.clock,
                pods=list(self.kubelet.pods) if with_fingerprint else None,
                placed={name: zone for name, (zone, *_) in self.kubelet.pods.items()}
                if with_placement
                else None,
            )
        )

    @precondition(lambda self: self.reports)
    @rule()
    def deliver(self) -> None:
        # Of reports that come late only the newest is read, as an informer has it.
        nrt = self.reports.pop(0)
        pods = [on_node(it.pod, it.created, it.started) for it in self.live.values()]
        built = build_topology(nrt, pods, previous=self.previous)
        self.previous = to_status(built)
        write(self.columns, built)

    @invariant()
    def doubtful_room_is_there(self) -> None:
        if not hasattr(self, "columns"):
            return
        for zone, real in zip(self.columns.free(0, View.DOUBTFUL), self.kubelet.zones, strict=True):
            assert zone["cpu"] / 10**9 <= real[0]
            assert zone[GPU] / 1000 <= real[1]


class AnyPods(StrictPods):
    """Nor are others, whichever zones were foreseen for them."""

    mode = ""


TestStrictPods = StrictPods.TestCase
TestStrictPods.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyPods = AnyPods.TestCase
TestAnyPods.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def make_pod_with_init(name: str, init: int, app: int) -> Pod:
    pod = make_pod(name, app)
    first = make_pod(name, init).spec.containers
    return msgspec.structs.replace(
        pod, spec=msgspec.structs.replace(pod.spec, init_containers=first)
    )


@pytest.mark.parametrize(
    ("init", "app", "held"), [(6, 2, 4), (2, 6, 0), (4, 4, 0), (1, 4, 1), (5, 2, 4)]
)
def test_what_init_containers_hold_is_taken_off_though_no_report_counts_it(
    init: int, app: int, held: int
) -> None:
    columns, pod = new_columns(), make_pod_with_init("a", init, app)
    write(columns, build_topology(make_topology([(CPUS, 0), (CPUS, 0)]), []))
    charge(columns, pod)
    assert free_cpus(columns) == [CPUS - app - held, CPUS]

    # The report counts the pod, and of it what runs.
    counted = make_topology([(CPUS - app, 0), (CPUS, 0)], written_s=9)
    write(columns, build_topology(counted, [on_node(pod, 0, 1)]))

    assert reported(build_topology(counted, [on_node(pod, 0, 1)])) == {pod.metadata.uid}
    assert free_cpus(columns) == [CPUS - app - held, CPUS]
    columns.release(0, holder(pod))
    assert free_cpus(columns) == [CPUS - app, CPUS]


def test_what_a_stranger_s_init_containers_hold_is_where_its_other_containers_may_be() -> None:
    columns, pod = new_columns(), make_pod_with_init("a", 4, 2)
    charge(columns, pod, ours=False)
    pods = [on_node(pod, 0, 1)]

    write(columns, build_topology(make_topology([(8, 0), (6, 0), (7, 0)], written_s=9), pods))
    assert free_cpus(columns) == [8, 4, 7]
    write(columns, build_topology(make_topology([(5, 0), (6, 0), (7, 0)], written_s=9), pods))
    assert free_cpus(columns) == [3, 4, 7]
    assert free_cpus(columns, View.MOST) == [5, 6, 7]


def test_pod_has_to_fit_whether_or_not_init_containers_still_hold_something() -> None:
    columns, other = new_columns(), make_pod_with_init("other", 1, 2)
    charge(columns, other, ours=False)
    topology = make_topology([(2, 1), (8, 0)], written_s=9)
    write(columns, build_topology(topology, [on_node(other, 0, 1)]))
    first, second = make_pod("a", 2), make_pod("b", 1, 1)
    containers = (*(first.spec.containers or ()), *(second.spec.containers or ()))
    pod = msgspec.structs.replace(
        first, spec=msgspec.structs.replace(first.spec, containers=containers)
    )
    request = CONCERN.request(pod, POLICY)
    assert request is not None

    # If zone 0 has two CPUs free the first container takes them, and the second one has none beside its device.
    assert free_cpus(columns) == [1, 8]
    assert CONCERN.filter(columns, ROW, request).tolist() == [reasons.CONTAINER]
    columns.release(0, holder(other))
    write(columns, build_topology(make_topology([(1, 1), (8, 0)]), []))
    assert CONCERN.filter(columns, ROW, request).tolist() == [0]


def test_zones_in_use_are_left_alone_where_somebody_s_memory_lies_across_zones() -> None:
    def on_zones(*free: int) -> NodeResourceTopology:
        topology = make_topology([(CPUS, 0) for _ in free], written_s=9)
        memory = [Amounts(capacity="4Gi", allocatable="4Gi", available=f"{it}Gi") for it in free]
        zones = tuple(
            replace(zone, resources={**zone.resources, "memory": it})
            for zone, it in zip(topology.zones, memory, strict=True)
        )
        return replace(topology, policy="restricted", zones=zones)

    def refuses(pod: Pod) -> bool:
        request = CONCERN.request(pod, POLICY)
        assert request is not None
        return bool(CONCERN.filter(columns, ROW, request)[0])

    columns, small = new_columns(), make_pod("small", 1)
    asked = {"cpu": "1", "memory": "6Gi"}
    wide = pod_from_manifest(
        {
            "metadata": {"name": "wide", "namespace": "default", "uid": "uid-wide"},
            "spec": {"containers": [{"resources": {"requests": asked, "limits": asked}}]},
        }
    )
    write(columns, build_topology(on_zones(0, 2, 3), []))
    assert not refuses(small)

    charge(columns, wide, ours=False)
    write(columns, build_topology(on_zones(0, 2, 3), [on_node(wide, 0, 1)]))
    assert refuses(small)
    write(columns, build_topology(on_zones(0, 2, 4), [on_node(wide, 0, 1)]))
    assert not refuses(small)
    columns.release(0, holder(wide))
    write(columns, build_topology(on_zones(0, 2, 3), []))
    assert not refuses(small)
