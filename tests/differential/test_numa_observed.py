"""Zones that an updater tells, read by the operator, against the kubelet's own books.

And what the webhook's books give back when such a pod ends, against what the updater sees afterwards.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus, Topology
from berthmaster.api.objects import Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.topology import topology_from_manifest
from berthmaster.concerns.numa import CONCERN
from berthmaster.concerns.numa.columns import NumaColumns
from berthmaster.concerns.numa.inventory import PodOnNode, TopologyInventory, build_topology
from berthmaster.concerns.numa.zones import read_observed
from berthmaster.concerns.shape import Holder
from berthmaster_operator.sightings import decode_pod
from berthmaster_sandbox.world.numa_pods import Role, read_pod
from berthmaster_sandbox.world.numa_random import (
    NumaCase,
    Traits,
    build_case,
    build_pod,
    kubelet_admits,
    node_has_room,
)
from berthmaster_sandbox.world.numa_reports import (
    ALL_PODS,
    EXCLUSIVE_PODS,
    Dialect,
    ReportHabits,
    amounts_of,
)

WORLDS = 1500
POLICY = PlacementPolicySpec()
TRAITS = Traits(policies=("single-numa-node",), gaps=0.0, spanning_devices=0.0)
HABITS = {
    method: ReportHabits(dialect=Dialect.RTE, method=method)
    for method in (ALL_PODS, EXCLUSIVE_PODS)
}


def stored(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The pod as the API server shows it once it runs."""
    status = {"phase": "Running", "qosClass": read_pod(manifest).qos.value}
    return {**manifest, "status": status}


def build(case: NumaCase, habits: ReportHabits) -> TopologyInventory:
    seen = [decode_pod(msgspec.json.encode(stored(it))) for it in case.running]
    pods = [
        PodOnNode(
            uid=it.uid,
            namespace=it.namespace,
            name=it.name,
            is_exclusive=it.is_guaranteed,
            devices=it.devices,
            held=it.held,
        )
        for it in seen
    ]
    return build_topology(topology_from_manifest(case.report(habits)), pods)


def really(case: NumaCase, uid: str) -> tuple[int, ...]:
    """The zone of each container that has anything of one, by the kubelet's books."""
    running = case.kubelet.pods[uid]
    staying = (it for it in running.pod.containers if it.role is not Role.INIT)
    return tuple(zone for it in staying for zone in running.verdict.zones[it.name])


def topology_of(built: TopologyInventory) -> Topology:
    assert built.topology is not None
    return built.topology


@pytest.mark.parametrize("method", HABITS)
def test_operator_reads_the_zones_that_kubelets_gave(method: str) -> None:
    found: Counter[str] = Counter()
    for seed in range(WORLDS):
        case = build_case(seed, TRAITS)
        topology = topology_of(build(case, HABITS[method]))
        observed = read_observed(topology)
        for uid in topology.reported_pods:
            zones = really(case, uid)
            if uid in observed:
                assert tuple(it for it in observed[uid] if it >= 0) == zones, seed
                found["told"] += 1
            # Updaters of nodes with one zone do not tell, and some pods hold nothing of any.
            elif zones and len(case.machine.zones) > 1:
                found["untold"] += 1

    assert found["told"] > 1000
    assert found["untold"] == 0


def books_of(case: NumaCase, built: TopologyInventory) -> NumaColumns:
    """The webhook's books of the node: what was reported, and the pods that somebody else placed."""
    columns = NumaColumns()
    columns.resize(1)
    status = NodeInventoryStatus(topology=built.topology, zones=built.zones)
    node = node_from_manifest(case.node_manifest())
    columns.write_node(0, node, NodeInventory(name="n", status=status))
    for manifest in case.running:
        pod = pod_from_manifest(stored(manifest))
        usage = CONCERN.usage(pod, None)
        if usage is not None:
            CONCERN.charge(columns, 0, holder(pod), usage)
    return columns


def test_what_ends_is_given_back_as_the_updater_sees_it_later() -> None:
    exact = total = 0
    for seed in range(WORLDS):
        case = build_case(seed, TRAITS)
        built = build(case, HABITS[EXCLUSIVE_PODS])
        observed = read_observed(topology_of(built))
        if not observed:
            continue
        columns = books_of(case, built)
        gone = sorted(observed)[seed % len(observed)]
        (manifest,) = (it for it in case.running if it["metadata"]["uid"] == gone)
        pod = pod_from_manifest(stored(manifest))
        usage = CONCERN.usage(pod, None)
        assert usage is not None
        CONCERN.release(columns, 0, holder(pod), usage)
        case.kubelet.remove(gone)

        later = amounts_of(case.report(HABITS[EXCLUSIVE_PODS]))
        for zone, free in zip(later.values(), columns.free(0), strict=True):
            for name, amount in zone.items():
                scale = 10**9 if name == "cpu" else 1000
                assert free[name] <= amount * scale, (seed, name)
                exact += free[name] == amount * scale
                total += 1

    assert total > WORLDS
    # Less where init containers of other pods still hold what no updater shows.
    assert exact > 0.95 * total, (exact, total)


def test_kubelets_take_what_fits_where_init_containers_still_hold_something() -> None:
    """Where a pod was seen is where its init containers' leavings are, whoever placed it."""
    there = replace(TRAITS, init_containers=0.8, guaranteed=1.0)
    # An init container of the next pod may go elsewhere, and bind the rest, with any amount between the
    # least and the most that may be left.
    coming = replace(there, init_containers=0.0)
    found: Counter[tuple[bool, bool]] = Counter()
    for seed in range(WORLDS):
        case = build_case(seed, there)
        built = build(case, HABITS[EXCLUSIVE_PODS])
        pod = build_pod(random.Random(seed), coming, "next", node="")  # noqa: S311 - no secret
        if not read_observed(topology_of(built)) or not node_has_room(case, pod):
            continue
        request = CONCERN.request(pod_from_manifest(pod), POLICY)
        if request is None:
            continue
        fits = CONCERN.filter(books_of(case, built), np.array([0]), request)[0] == 0
        takes, reason = kubelet_admits(case, pod)
        # Devices without zones, of which init containers may hold some as well, are no concern of ours.
        assert not fits or reason != "TopologyAffinityError", seed
        found[fits, takes] += 1

    assert found[True, True] > 100
    # Refused although the kubelet would take it: what is left may be in any zone of several.
    assert found[False, True] < 0.1 * found[True, True], found


def holder(pod: Pod) -> Holder:
    return Holder(key=pod.metadata.uid, namespace="default", name=pod.metadata.name)
