"""From a NodeResourceTopology to the node's inventory: zones, counted pods, conditions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from berthmaster.api import names
from berthmaster.concerns.numa.fingerprint import fingerprint
from berthmaster_operator.handlers import node_resource_topologies
from berthmaster_operator.sightings import decode_failure
from berthmaster_sandbox.world.numa_placements import METADATA, VECTOR, encode
from operator_program.worlds import BEGIN, INVENTORY, NODE, World, make_pod, make_policy
from support.pages import scrape

GPU = "vendor.com/gpu"


@pytest.fixture
def world() -> World:
    world = World()
    world.start()
    return world


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat()


def make_topology(
    cpus: int = 8,
    *,
    written_s: float = 0,
    version: int = 1,
    pods: list[str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    attributes = [{"name": "topologyManagerPolicy", "value": "single-numa-node"}]
    if pods is not None:
        text = fingerprint(("team", name) for name in pods)
        attributes.append({"name": "nodeTopologyPodsFingerprint", "value": text})
    resources = [
        {"name": name, "capacity": "8", "allocatable": "8", "available": free}
        for name, free in (("cpu", cpus), (GPU, 2))
    ]
    return {
        "metadata": {
            "name": NODE,
            "uid": "nrt",
            "resourceVersion": str(version),
            "managedFields": [
                {"manager": "updater", "time": at(written_s), "fieldsV1": {"f:zones": {}}}
            ],
        },
        "attributes": attributes,
        "zones": [{"name": "node-0", "type": "Node", "resources": resources}],
        **fields,
    }


def make_running(name: str, *, created_s: float = 0, shown_s: float = 5, **fields: Any) -> Any:
    pod = make_pod(name)
    pod["metadata"]["creationTimestamp"] = at(created_s)
    pod["metadata"]["managedFields"] = [
        {"manager": "kubelet", "subresource": "status", "time": at(shown_s), "fieldsV1": {}}
    ]
    pod["status"] = {
        "phase": "Running", "startTime": at(shown_s), "qosClass": "Guaranteed", **fields
    }  # fmt: skip
    return pod


def show(world: World, topology: dict[str, Any], *, is_gone: bool = False) -> None:
    node_resource_topologies.take(world.fleet, topology, is_gone=is_gone)


def status(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.store.objects[INVENTORY]["status"]
    return found


def condition(world: World) -> dict[str, Any]:
    found = status(world)["conditions"]
    return next(it for it in found if it["type"] == names.TOPOLOGY_READY)


async def test_zones_are_published_with_settings_and_condition(world: World) -> None:
    show(world, make_topology(6))
    await world.settle()

    zone = status(world)["zones"][0]
    assert (zone["id"], zone["available"]) == (0, {"cpu": "6", GPU: "2"})
    assert status(world)["topology"]["policy"] == "single-numa-node"
    assert status(world)["freeZones"] == "0: 6/8"
    assert (condition(world)["status"], condition(world)["reason"]) == ("True", "Reported")
    assert [it["type"] for it in world.node_conditions] == [names.TOPOLOGY_READY_ON_NODE]


async def test_running_pod_in_the_fingerprint_is_counted(world: World) -> None:
    world.add_pod(make_running("p", created_s=1))
    show(world, make_topology(4, written_s=3, pods=["p"]))
    await world.settle()

    assert status(world)["topology"]["reportedPods"] == ["p"]


async def test_later_writes_to_a_pod_do_not_make_it_start_later(world: World) -> None:
    world.add_pod(make_running("p", shown_s=5))
    world.add_pod(make_running("p", shown_s=50))
    show(world, make_topology(4, written_s=7))
    await world.settle()

    assert status(world)["topology"]["reportedPods"] == ["p"]


async def test_pods_that_share_their_cpus_are_not_listed(world: World) -> None:
    world.add_pod(make_running("p", qosClass="Burstable"))
    show(world, make_topology(8, written_s=20))
    await world.settle()

    assert status(world)["topology"]["reportedPods"] == []


async def test_updater_that_misses_a_pod_for_long_is_stale_until_it_shows_it(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    world.add_pod(make_running("p", shown_s=5))
    await world.settle()
    assert condition(world)["reason"] == "Reported"

    world.now_s += 181
    await world.settle()
    assert (condition(world)["status"], condition(world)["reason"]) == ("False", "Stale")
    assert status(world)["topology"]["freshness"] == "Stale"
    assert world.node_conditions[0]["status"] == "False"

    show(world, make_topology(4, written_s=200, version=2))
    await world.settle()
    assert condition(world)["reason"] == "Reported"
    assert status(world)["topology"]["freshness"] == "Fresh"


async def test_updater_of_an_idle_node_may_be_silent_for_ever(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    await world.settle()

    world.now_s += 100_000

    assert await world.step() is None
    assert condition(world)["reason"] == "Reported"


async def test_shortest_patience_of_any_policy_counts(world: World) -> None:
    policy = make_policy()
    policy["spec"]["concerns"]["numa"] = {"staleAfter": "20s"}
    world.policies["p"] = policy
    world.start()
    show(world, make_topology(8, written_s=1))
    world.add_pod(make_running("p", shown_s=5))
    await world.settle()

    world.now_s += 21
    await world.settle()

    assert condition(world)["reason"] == "Stale"


async def test_topology_that_says_the_same_again_costs_no_write(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    await world.settle()
    before = world.store.objects[INVENTORY]["metadata"]["resourceVersion"]

    show(world, make_topology(8, written_s=61, version=2))
    await world.settle()

    assert world.store.objects[INVENTORY]["metadata"]["resourceVersion"] == before


async def test_topology_that_is_gone_takes_zones_and_conditions_along(world: World) -> None:
    show(world, make_topology())
    await world.settle()

    world.now_s += 10
    show(world, make_topology(), is_gone=True)
    await world.settle()

    assert status(world).get("zones") is None
    assert status(world).get("topology") is None
    assert world.node_conditions == []


async def test_new_leader_keeps_who_was_counted(world: World) -> None:
    world.add_pod(make_running("p", created_s=1))
    show(world, make_topology(4, written_s=3, pods=["p"]))
    await world.settle()

    world.start()
    show(world, make_topology(3, written_s=4, pods=["p", "stranger"], version=2))
    world.now_s += 10
    await world.settle()

    assert status(world)["topology"]["reportedPods"] == ["p"]


async def test_manager_policy_that_is_no_longer_told_is_taken_back(world: World) -> None:
    told = make_topology()
    told["attributes"].append({"name": "cpuManagerPolicy", "value": "static"})
    show(world, told)
    await world.settle()
    assert status(world)["topology"]["cpuManagerPolicy"] == "static"

    world.now_s += 10
    show(world, make_topology(version=2))
    await world.settle()

    assert status(world)["topology"].get("cpuManagerPolicy") is None


async def test_nonsense_becomes_words_in_the_condition(world: World) -> None:
    odd = make_topology(zones=[{"name": "numa-node-0", "type": "Node", "resources": 7}])
    show(world, odd)
    await world.settle()

    assert (condition(world)["status"], condition(world)["reason"]) == ("False", "NoZones")
    assert 'expected node-<0..63>, found "numa-node-0"' in condition(world)["message"]


async def test_older_version_is_not_taken(world: World) -> None:
    show(world, make_topology(4, version=9))
    show(world, make_topology(8, version=8))
    await world.settle()

    assert status(world)["zones"][0]["available"]["cpu"] == "4"


def make_refused(name: str, *, refused_s: float) -> Any:
    return make_running(name, shown_s=refused_s, phase="Failed", reason="TopologyAffinityError")


async def test_pod_that_the_kubelet_turned_away_refutes_the_topology(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    world.add_pod(make_refused("p", refused_s=1000))
    await world.settle()

    assert status(world)["topology"]["freshness"] == "Unreliable"
    assert (condition(world)["status"], condition(world)["reason"]) == ("False", "Refuted")
    assert "the kubelet turned team/p away (TopologyAffinityError)" in condition(world)["message"]
    assert world.node_conditions[0]["reason"] == "Refuted"

    world.now_s += 10
    show(world, make_topology(4, written_s=1005, version=2))
    await world.settle()
    assert status(world)["topology"]["freshness"] == "Fresh"
    assert condition(world)["reason"] == "Reported"


async def test_later_writes_to_a_refused_pod_do_not_refute_a_later_topology(world: World) -> None:
    show(world, make_topology(8, written_s=1005))
    world.add_pod(make_refused("p", refused_s=1000))
    world.add_pod(make_refused("p", refused_s=1009))
    await world.settle()

    assert status(world)["topology"]["freshness"] == "Fresh"


async def test_topology_that_never_changes_is_trusted_again_after_ten_minutes(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    world.add_pod(make_refused("p", refused_s=1000))
    again_s = await world.settle()
    assert again_s is not None
    assert 590 < again_s <= 600

    world.now_s += again_s
    await world.settle()

    assert status(world)["topology"]["freshness"] == "Fresh"
    assert await world.step() is None


async def test_refused_pod_that_is_deleted_refutes_nothing_any_more(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    world.add_pod(make_refused("p", refused_s=1000))
    await world.settle()
    raw = msgspec.json.encode(world.pods.pop("p"))

    world.fleet.lose_failure(decode_failure(raw))
    world.now_s += 10
    await world.settle()

    assert status(world)["topology"]["freshness"] == "Fresh"


async def test_pods_that_end_otherwise_refute_nothing(world: World) -> None:
    show(world, make_topology(8, written_s=1))
    world.add_pod(make_running("p", shown_s=1000, phase="Failed", reason="OutOfcpu"))
    await world.settle()

    assert status(world)["topology"]["freshness"] == "Fresh"


def make_container(name: str, **fields: Any) -> dict[str, Any]:
    limits = {key.replace("gpu", GPU): value for key, value in fields.pop("limits", {}).items()}
    return {"name": name, "resources": {"limits": limits}, **fields}


async def test_zones_of_containers_are_published_where_the_updater_tells_them(world: World) -> None:
    whole = {"cpu": "2", "memory": "1Gi"}
    pod = make_running("p")
    pod["spec"]["initContainers"] = [
        make_container("prepare", limits=whole),
        make_container("side", limits=whole, restartPolicy="Always"),
    ]
    pod["spec"]["containers"] = [
        make_container("app", limits={**whole, "gpu": "1"}),
        # No zone lists memory, so its kubelet has nothing of a zone for it.
        make_container("shared", limits={"cpu": "100m", "memory": "1Gi"}),
    ]
    burstable = make_running("b", qosClass="Burstable")
    burstable["spec"]["containers"] = [make_container("b", limits={"cpu": "2", "gpu": "1"})]
    zone_of = {("team", "p", "side"): 0, ("team", "p", "app"): 1, ("team", "b", "b"): 1}
    metadata, vectors = encode(zone_of, 2)
    topology = make_topology(2, written_s=3, pods=["p", "b"])
    topology["attributes"].append({"name": METADATA, "value": metadata})
    other = {**topology["zones"][0], "name": "node-1"}
    topology["zones"].append(other)
    for zone, vector in vectors.items():
        topology["zones"][zone]["attributes"] = [{"name": VECTOR, "value": vector}]

    world.add_pod(pod)
    world.add_pod(burstable)
    show(world, topology)
    await world.settle()

    found = status(world)["topology"]
    assert (found["reportedPods"], found["reportedZones"]) == (["b", "p"], ["1", "0,1,-"])


async def test_zones_that_are_not_told_any_more_leave_the_inventory(world: World) -> None:
    pod = make_running("p")
    pod["spec"]["containers"] = [make_container("c", limits={"cpu": "2", "memory": "1Gi"})]
    world.add_pod(pod)
    topology = make_topology(6, written_s=3, pods=["p"])
    metadata, _ = encode({("team", "p", "c"): 0}, 1)
    topology["attributes"].append({"name": METADATA, "value": metadata})
    show(world, topology)
    await world.settle()
    assert status(world)["topology"]["reportedZones"] == ["0"]

    world.now_s += 10
    show(world, make_topology(6, written_s=9, pods=["p"], version=2))
    await world.settle()

    assert status(world)["topology"]["reportedZones"] == []


async def test_topologies_are_measured_together(world: World) -> None:
    world.now_s = 1000
    show(world, make_topology(8, written_s=400))
    world.add_pod(make_running("p", shown_s=990))
    await world.settle()
    world.now_s += 30

    figures = world.fleet.measure_topologies()

    assert figures.by_reason == {"Reported": 1}
    assert figures.oldest_s == pytest.approx(630, abs=1)
    # Since it was noticed that the topology does not show the pod.
    assert figures.lag_s == pytest.approx(30, abs=1)

    world.wall_step_s = -10_000
    assert world.fleet.measure_topologies().oldest_s == 0


async def test_inventories_are_counted_by_what_their_conditions_say(world: World) -> None:
    show(world, make_topology(4, written_s=400))
    await world.settle()

    world.metrics.account_inventories(world.fleet.measure_inventories())

    name = 'berthmaster_inventories{condition="TopologyReady",reason="Reported",status="True"}'
    assert scrape(world.metrics)[name] == 1


async def test_figures_of_topologies_are_those_of_the_last_scrape(world: World) -> None:
    world.metrics.account_topologies({"Stale": 2, "Reported": 1}, oldest_s=5, lag_s=3)
    world.metrics.account_topologies({"Reported": 3}, oldest_s=6, lag_s=0)

    page = world.metrics.render().decode()

    assert 'berthmaster_numa_topologies{reason="Reported"} 3.0' in page
    assert "Stale" not in page
    assert "berthmaster_numa_topology_age_max_seconds 6.0" in page


def show_quick(world: World, *, name: str = "p", created_s: float = 1200) -> None:
    """Show a pod, and a topology with its name that was written in the same second."""
    pod = make_running(name, created_s=created_s, shown_s=created_s + 1)
    world.add_pod(pod)
    show(world, make_topology(4, written_s=created_s, pods=[name], version=int(created_s)))


async def test_pod_that_is_created_and_reported_in_one_second_is_counted(world: World) -> None:
    show_quick(world)
    await world.settle()

    assert status(world)["topology"]["reportedPods"] == ["p"]


async def test_such_a_pod_is_not_if_its_name_was_another_s_a_moment_ago(world: World) -> None:
    before = make_running("before", created_s=1000)
    before["metadata"]["name"] = "p"
    world.add_pod(before)
    world.pods.pop("before")
    world.show_pod("before")
    show_quick(world)
    await world.settle()
    assert status(world)["topology"]["reportedPods"] == []

    world.now_s += 31
    world.pods.pop("p")
    world.show_pod("p")
    world.now_s += 31
    show_quick(world, created_s=1400)
    await world.settle()
    assert status(world)["topology"]["reportedPods"] == ["p"]


async def test_such_a_pod_is_not_if_it_is_older_than_what_we_saw(world: World) -> None:
    show_quick(world, created_s=1029)
    await world.settle()

    assert status(world)["topology"]["reportedPods"] == []
