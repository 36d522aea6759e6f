"""Reasons, strategies and scores of the XPU concern, and what it does beside others."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.allocation import write_allocation
from berthmaster.api.inventory import Topology, Zone
from berthmaster.concerns import numa
from support.xpu_worlds import (
    CARDS,
    MEM,
    SLICE_MEM,
    SLICES,
    XPUWorld,
    make_xpu_node,
    make_xpu_pod,
    registered_cards,
    share_marks,
)


def share(mib: int, label: str | None = None, **fields: Any) -> dict[str, Any]:
    return make_xpu_pod("new", {MEM: mib}, label=label, **fields)


def put_share(world: XPUWorld, name: str, idx: str, mib: int, node: str = "n1") -> None:
    marks = share_marks(idx, mib)
    world.see(make_xpu_pod(name, {MEM: mib}, annotations=marks, node=node, phase="Running"))


def agent(*devices: dict[str, Any]) -> dict[str, Any]:
    filled = [
        {"index": at, "id": f"d-{at}", "memoryMiB": 100, **it} for at, it in enumerate(devices)
    ]
    return {"metadata": {"name": "n1"}, "spec": {"devices": filled}}


def test_reason_tells_what_is_needed_and_what_is_free() -> None:
    world = XPUWorld()
    cordoned = agent({}, {}, {"cordoned": True}, {})
    world.put_node(make_xpu_node(mem=400, count=4), node_xpu=cordoned, unhealthy=[1])
    put_share(world, "a", "0", 60)

    assert world.why(share(200, "2"))["n1"] == (
        "Insufficient XPU Memory in 2 devices: "
        "need 100 MiB on 2 devices, free per device 40,100(unhealthy),100(cordoned),100"
    )
    assert world.why(share(101))["n1"].startswith("Insufficient XPU Memory in one device: ")
    assert world.why(share(50, "99"))["n1"].startswith("Insufficient XPU Memory in 99 devices")


def test_pods_without_a_known_device_keep_as_much_free() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    world.see(make_xpu_pod("lost", {MEM: 90}, node="n1", phase="Running"))

    assert world.why(share(100))["n1"] == ""
    put_share(world, "a", "0", 50)
    assert "60 MiB are left beside 90 MiB" in world.why(share(70))["n1"]
    assert world.why(share(60))["n1"] == ""


def test_device_that_a_pod_names_and_nobody_knows_counts_as_pending() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    put_share(world, "a", "7", 150)

    assert world.why(share(51))["n1"] != ""
    assert world.why(share(50))["n1"] == ""


def test_device_that_is_past_its_memory_takes_nothing_from_what_others_have_free() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    put_share(world, "over", "0", 150)
    world.see(make_xpu_pod("lost", {MEM: 40}, node="n1", phase="Running"))

    assert world.given(share(60)) == [(1, 60)]
    assert world.why(share(60))["n1"] == ""
    assert "60 MiB are left beside 40 MiB" in world.why(share(61))["n1"]


def test_device_that_is_named_twice_is_none_that_is_known() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    put_share(world, "odd", "0,0", 150)

    assert "50 MiB are left beside 150 MiB" in world.why(share(60))["n1"]


def test_several_reasons_of_cards_stand_in_order() -> None:
    world = XPUWorld()
    marks = {"hami.io/device-cordon": "n1-kunlun-1"}
    world.put_node(make_xpu_node(cards=2, annotations=marks))
    only = {"hami.io/use-xpu-uuid": "n1-kunlun-1"}
    pod = make_xpu_pod("new", {CARDS: 1}, annotations=only)

    assert world.why(pod)["n1"] == "1/2 CardCordoned, 1/2 CardUuidMismatch, 1/2 NumaNotFit"
    assert world.why(make_xpu_pod("new", {CARDS: 4}))["n1"] == "NodeInsufficientDevice"
    assert world.why(make_xpu_pod("new", {SLICES: 1}))["n1"] == "NodeInsufficientDevice"


def test_handles_of_the_driver_may_be_counted() -> None:
    world = XPUWorld(maxHandles=3)
    world.put_node(make_xpu_node(registered=registered_cards(2)))
    pod = make_xpu_pod("a", {SLICES: 1, SLICE_MEM: 24576})
    marks = {"hami.io/xpu-devices-allocated": "xpu-0,XPU,24576,25:;"}

    assert world.why(pod)["n1"] == ""
    world.see(make_xpu_pod("a", {SLICES: 1}, annotations=marks, node="n1", phase="Running"))
    assert "no handles left" in world.why(pod)["n1"]
    world.take_settings(maxHandles=0)
    assert world.why(pod)["n1"] == ""


@pytest.mark.parametrize(
    ("strategy", "devices"),
    [("Binpack", [0, 3]), ("Spread", [1, 2]), ("NUMANode", [2, 3]), ("Board", [0, 1])],
)
def test_device_strategies(strategy: str, devices: list[int]) -> None:
    world = XPUWorld(deviceStrategy=strategy)
    boards = agent(
        {"numaNode": 0, "serialNumber": "a"},
        {"numaNode": -1, "serialNumber": "a"},
        {"numaNode": 1, "serialNumber": "b"},
        {"numaNode": 1},
    )
    world.put_node(make_xpu_node(mem=400, count=4), node_xpu=boards)
    put_share(world, "a", "0", 60)
    put_share(world, "b", "3", 50)
    world.put_node(make_xpu_node("n2", mem=400, count=4))

    assert [it for it, _ in world.given(share(60, "2"))] == devices
    assert world.scores(share(60, "2"))["n1"] <= 100


def test_strategy_that_cannot_have_its_wish_falls_back() -> None:
    world = XPUWorld(deviceStrategy="NUMANode")
    world.put_node(
        make_xpu_node(mem=200, count=2), node_xpu=agent({"numaNode": 0}, {"numaNode": 1})
    )

    assert [it for it, _ in world.given(share(60, "2"))] == [0, 1]


@pytest.mark.parametrize("strategy", ["NUMANode", "Board"])
def test_one_device_lies_together_with_itself(strategy: str) -> None:
    world = XPUWorld(deviceStrategy=strategy)
    known = {"numaNode": 0, "serialNumber": "a"}
    world.put_node(make_xpu_node(mem=300, count=3), node_xpu=agent(known, {}, known))
    put_share(world, "a", "1", 10)

    assert world.given(share(60)) == [(1, 60)]


def test_init_container_beside_a_sidecar_needs_what_both_have() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(registered=registered_cards(1)))
    sidecar: dict[str, int | str] = {SLICES: 1, SLICE_MEM: 24576, "restartPolicy": "Always"}
    marks = {"hami.io/xpu-devices-allocated": "xpu-0,XPU,24576,25:;xpu-0,XPU,24576,25:;;"}
    pod = make_xpu_pod(
        "p",
        {"cpu": 1},
        inits=[sidecar, {SLICES: 1, SLICE_MEM: 24576}],
        annotations=marks,
        node="n1",
        phase="Running",
    )
    world.see(pod)

    assert world.engine.table.columns["xpu"].used[0, 0] == 2 * 24576


@pytest.mark.parametrize(
    ("strategy", "empty", "half"),
    [("LeastFragment", 100.0, 100.0), ("Binpack", 10.0, 35.0), ("Spread", 90.0, 65.0)],
)
def test_node_strategies(strategy: str, empty: float, half: float) -> None:
    """20 MiB on two devices of 100, one of which has 50 taken on the second node."""
    world = XPUWorld(nodeStrategy=strategy)
    world.put_node(make_xpu_node("n1", mem=200, count=2))
    world.put_node(make_xpu_node("n2", mem=200, count=2))
    put_share(world, "a", "0", 50, node="n2")

    assert world.scores(share(20)) == {"n1": pytest.approx(empty), "n2": pytest.approx(half)}


def test_least_fragment_keeps_the_largest_hole() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node("n1", mem=100, count=1))
    world.put_node(make_xpu_node("n2", mem=200, count=2))

    assert world.scores(share(20)) == {"n1": 80.0, "n2": 100.0}


def whole(world: XPUWorld, node: str, *indices: int) -> None:
    for index in indices:
        marks = {"hami.io/kunlun-allocated": f"{node}-kunlun-{index},kunlun,98304,100:;"}
        name = f"{node}-{index}"
        world.see(make_xpu_pod(name, {CARDS: 1}, annotations=marks, node=node, phase="Running"))


def test_whole_cards_go_where_they_fill_a_host() -> None:
    """Further jobs to a full host: one of eight cards for an empty one; 2 before and 1 after for n2."""
    world = XPUWorld()
    for name in ("n1", "n2"):
        world.put_node(make_xpu_node(name, cards=8))
    whole(world, "n2", 3, 4, 5, 6, 7)
    pod = make_xpu_pod("new", {CARDS: 1})

    assert world.scores(pod) == {"n1": 0.0, "n2": 100.0}
    spread = make_xpu_pod(
        "new", {CARDS: 1}, annotations={"hami.io/node-scheduler-policy": "spread"}
    )
    assert world.scores(spread) == {"n1": 100.0, "n2": 0.0}
    world.take_settings(topologyScore="Upstream")
    # As HAMi's code: of the new pod's cards alone, 3 jobs after in both cases.
    assert world.scores(pod) == {"n1": 0.0, "n2": pytest.approx(100 / 3, abs=1e-3)}


def test_more_than_eight_cards_have_no_wings() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(cards=12))
    whole(world, "n1", 0, 2)

    assert [it for it, _ in world.given(make_xpu_pod("new", {CARDS: 4}))] == [1, 3, 4, 5]


def test_nodes_wish_for_no_topology_is_followed() -> None:
    world = XPUWorld()
    wish = {"metadata": {"name": "n1"}, "spec": {"source": "Capacity", "topology": "None"}}
    world.put_node(make_xpu_node(cards=8), node_xpu=wish)
    whole(world, "n1", 1, 2, 3, 4, 6, 7)

    assert [it for it, _ in world.given(make_xpu_pod("new", {CARDS: 2}))] == [0, 5]


def zoned(world: XPUWorld, manifest: dict[str, Any], *free: str, **fields: Any) -> None:
    zones = tuple(
        Zone(id=at, capacity={"cpu": "8"}, allocatable={"cpu": "8"}, available={"cpu": it})
        for at, it in enumerate(free)
    )
    topology = Topology(policy="single-numa-node")
    world.put_node(manifest, topology=topology, zones=zones, **fields)


@pytest.mark.parametrize(("free", "device"), [(("8", "8"), 1), (("0", "8"), 2)])
def test_devices_near_the_pods_cpus_go_first(free: tuple[str, str], device: int) -> None:
    world = XPUWorld(numa.CONCERN)
    near = agent({"numaNode": 1}, {"numaNode": 0}, {"numaNode": 1})
    zoned(world, make_xpu_node(mem=300, count=3), *free, node_xpu=near)
    put_share(world, "a", "0", 60)
    cpus: dict[str, int | str] = {MEM: 50, "cpu": 4, "memory": "1Gi"}

    assert world.given(make_xpu_pod("new", cpus)) == [(device, 50)]
    assert world.given(share(40)) == [(0, 40)], "nobody asked for CPUs"


def test_devices_elsewhere_serve_where_those_near_cannot() -> None:
    world = XPUWorld(numa.CONCERN)
    manifest = make_xpu_node(cards=8)
    zoned(world, manifest, "8", "0")
    whole(world, "n1", 0, 1)
    cpus: dict[str, int | str] = {"cpu": 4, "memory": "1Gi"}

    two = make_xpu_pod("new", {**cpus, CARDS: 2})
    four = make_xpu_pod("new", {**cpus, CARDS: 4})
    assert [it for it, _ in world.given(two)] == [2, 3]
    assert [it for it, _ in world.given(four)] == [4, 5, 6, 7]


def test_names_that_change_are_read_anew_in_pods_that_are_there() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    put_share(world, "a", "0", 50)
    assert world.given(share(50)) == [(0, 50)]

    world.take_settings(names={"shareIndex": "OTHER_IDX"})
    columns = world.engine.table.columns["xpu"]
    row = world.engine.table.row_of("n1")
    assert row is not None
    assert columns.pending[row] == 50
    world.take_settings()
    assert columns.pending[row] == 0
    assert columns.used[row, 0] == 50


def test_allocation_of_ours_counts_before_what_stands_beside_it() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    pod = share(50)
    decision = world.engine.decide(world.request(pod), "1")
    text = write_allocation(decision.allocation("required"))
    marks = {**share_marks("1", 1), "berthmaster.io/allocation": text}
    world.see(make_xpu_pod("placed", {MEM: 50}, annotations=marks, node="n1", phase="Running"))

    assert world.engine.table.columns["xpu"].used[0].tolist()[:2] == [50, 0]


def test_gpushares_own_allocation_is_read() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=200, count=2))
    marks = {"scheduler.framework.gpushare.allocation": '{"0":{"1":30},"1":{"1":20,"0":5}}'}
    world.see(make_xpu_pod("old", {MEM: 55}, annotations=marks, node="n1", phase="Running"))

    assert world.engine.table.columns["xpu"].used[0].tolist()[:2] == [5, 50]


def test_pod_that_was_meant_for_another_node_has_nothing_here() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(cards=2))
    marks = {
        "hami.io/vgpu-node": "n9",
        "hami.io/kunlun-allocated": "n9-kunlun-0,kunlun,98304,100:;",
        "BAIDU_COM_DEVICE_IDX": "0",
    }
    world.see(make_xpu_pod("moved", {CARDS: 1}, annotations=marks, node="n1", phase="Running"))

    assert world.engine.table.columns["xpu"].used[0].sum() == 0
    assert world.engine.table.columns["xpu"].pending[0] == 98304


def test_cards_of_all_containers_are_written() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(cards=8))
    pod = make_xpu_pod("new", {CARDS: 2}, {"cpu": 1}, {CARDS: 1}, inits=[{CARDS: 1}])

    marks = world.marks(pod, at_ns=1_700_000_000_123_456_789)

    one = "n1-kunlun-{},kunlun,98304,100:"
    assert marks["hami.io/kunlun-allocated"] == (
        f"{one.format(0)};{one.format(0)}{one.format(1)};;{one.format(2)};"
    )
    assert marks["BAIDU_COM_DEVICE_IDX"] == "0,0,1,2"
    assert marks["hami.io/bind-time"] == marks["hami.io/vgpu-time"] == "1700000000"
    assert marks["hami.io/bind-phase"] == "allocating"
