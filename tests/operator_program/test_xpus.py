"""A node's accelerators: into the inventory, onto the Node, and back as a picture in NodeXPU."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from berthmaster.api import names
from berthmaster.api.policy import policy_from_manifest
from berthmaster.cluster.client import ApiError
from berthmaster.concerns.xpu.inventory import XPUInventory, build_xpus
from berthmaster_operator import plans
from berthmaster_operator.handlers import node_xpus
from berthmaster_operator.sightings import decode_config_map, decode_node, decode_pod
from operator_program.worlds import BEGIN, INVENTORY, NODE, NODE_PATH, World
from support.xpu_worlds import (
    MEM,
    SLICE_MEM,
    SLICES,
    make_xpu_node,
    make_xpu_pod,
    registered_cards,
    share_marks,
)

NODE_XPU = f"{node_xpus.PATH}/{NODE}"


class XPUs(World):
    """The world of the node n1 with accelerators."""

    def __init__(self, **node: Any) -> None:
        super().__init__()
        manifest = make_xpu_node(NODE, **node)
        manifest["metadata"]["uid"] = self.store.objects[NODE_PATH]["metadata"]["uid"]
        self.store.put(NODE_PATH, manifest)
        self.start()

    def show_xpus(self) -> None:
        found = copy.deepcopy(self.store.objects.get(NODE_XPU))
        gone = {"metadata": {"name": NODE, "uid": "gone"}}
        node_xpus.take(self.fleet, found or gone, is_gone=not found)

    def change_node(self, **capacity: str) -> None:
        node = copy.deepcopy(self.store.objects[NODE_PATH])
        node["status"]["capacity"].update({f"baidu.com/{key}": it for key, it in capacity.items()})
        self.store.put(NODE_PATH, node)
        self.show(NODE_PATH)

    def list_unhealthy(self, text: str) -> None:
        manifest = {
            "metadata": {"name": f"unhealthy-xpu-{NODE}", "namespace": "kube-system"},
            "data": {"xpus": text},
        }
        self.fleet.see_config_map(decode_config_map(msgspec.json.encode(manifest)))

    def put_share(self, name: str, idx: str, mib: int, **pod: Any) -> None:
        marks = share_marks(idx, mib, assigned=pod.pop("assigned", "true"))
        pod = {"node": NODE, "phase": "Running", **pod}
        self.add_pod(make_xpu_pod(name, {MEM: mib}, annotations=marks, **pod))

    @property
    def xpus(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.store.objects[INVENTORY]["status"]["xpus"]
        return found

    @property
    def node_xpu(self) -> dict[str, Any]:
        found: dict[str, Any] = self.store.objects[NODE_XPU]
        return found

    def holds(self, type_: str) -> tuple[str, str]:
        conditions = {it["type"]: it for it in self.node_xpu["status"]["conditions"]}
        return conditions[type_]["status"], conditions[type_]["reason"]


async def test_devices_go_into_the_inventory_and_onto_the_node() -> None:
    world = XPUs(mem=16128, count=2)
    await world.settle()

    assert [(it["index"], it["memoryMiB"]) for it in world.xpus] == [(0, 8064), (1, 8064)]
    status = world.store.objects[INVENTORY]["status"]
    assert status["xpu"]["shared"] is True
    assert status["xpuSummary"] == "2/2 8064Mi"
    (condition,) = world.node_conditions
    assert (condition["type"], condition["reason"]) == (names.XPU_READY_ON_NODE, "Known")


async def test_devices_are_made_anew_only_when_what_they_are_made_of_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = XPUs(mem=16128, count=2)
    await world.settle()
    made = []

    def counted(*sources: Any, **options: Any) -> XPUInventory:
        made.append(sources)
        return build_xpus(*sources, **options)

    monkeypatch.setattr(plans, "build_xpus", counted)
    world.put_share("a", "0", 10)
    await world.step()
    for_a_pod = len(made)
    world.change_node(**{"xpu-mem": "8064", "xpu-count": "1"})
    await world.settle()

    assert for_a_pod == 0
    assert made
    assert len(world.xpus) == 1


async def test_node_xpu_shows_who_has_how_much() -> None:
    world = XPUs(mem=16128, count=2)
    world.put_share("b", "0,1", 3001)
    world.put_share("a", "1", 500, assigned="false", phase="Pending")
    world.add_pod(make_xpu_pod("lost", {MEM: 700}, node=NODE, phase="Running"))
    await world.settle()

    assert world.node_xpu["spec"]["source"] == "Capacity"
    assert world.node_xpu["metadata"]["ownerReferences"][0]["kind"] == "Node"
    status = world.node_xpu["status"]
    first, second = status["devices"]
    assert first["allocatedMiB"] == 1501
    assert [(it["name"], it["memoryMiB"], it["phase"]) for it in second["allocations"]] == [
        ("a", 500, "Bound"),
        ("b", 1500, "Assigned"),
    ]
    assert status["totals"] == {
        "devices": 2,
        "healthy": 2,
        "memoryMiB": 16128,
        "allocatedMiB": 3501,
        "freeMiB": 12627,
        "largestFreeMiB": 6563,
        "pendingMiB": 700,
    }
    assert [it["name"] for it in status["pending"]] == ["lost"]
    assert world.holds("Ready") == ("True", "Known")
    assert world.holds("OverCommitted") == ("False", "Enough")
    assert ("Pod", "XPUAllocationMissing") in [it[:2] for it in world.notes.lines]


async def test_nothing_is_written_twice_and_events_are_told_once() -> None:
    world = XPUs(mem=16128, count=2)
    world.put_share("a", "1", 500)
    world.add_pod(make_xpu_pod("lost", {MEM: 700}, node=NODE, phase="Running"))
    await world.settle()
    writes, lines = len(world.store.writes), len(world.notes.lines)

    world.start()
    world.show_xpus()
    await world.settle()
    world.show_xpus()
    await world.settle()

    assert len(world.store.writes) == writes
    assert len(world.notes.lines) == 1 == lines


async def test_status_is_written_at_most_once_per_pause() -> None:
    world = XPUs(mem=16128, count=2)
    await world.settle()
    writes = world.store.writes.count(("patch", f"{NODE_XPU}/status"))
    for number in range(5):
        world.put_share(f"p{number}", "0", 10)
        await world.step()
    within = world.store.writes.count(("patch", f"{NODE_XPU}/status"))
    world.now_s += 10
    await world.settle()

    assert within - writes <= 1
    assert world.node_xpu["status"]["totals"]["allocatedMiB"] == 50


async def test_pod_and_its_plugins_answer_are_one_picture() -> None:
    world = XPUs(mem=16128, count=2)
    await world.settle()
    writes = world.store.writes.count(("patch", f"{NODE_XPU}/status"))
    world.put_share("a", "0", 10, assigned="false", phase="Pending")
    again_s = await world.step()
    world.now_s += 2
    world.put_share("a", "0", 10)
    await world.settle()

    assert again_s == 5
    assert world.store.writes.count(("patch", f"{NODE_XPU}/status")) == writes + 1
    (allocation,) = world.node_xpu["status"]["devices"][0]["allocations"]
    assert allocation["phase"] == "Assigned"


async def test_more_than_there_is_is_kept_and_flagged() -> None:
    world = XPUs(mem=16128, count=2)
    world.put_share("a", "1", 8000)
    world.put_share("b", "1", 8000)
    world.put_share("c", "0", 1)
    await world.settle()

    assert world.holds("OverCommitted") == ("True", "MoreThanThereIs")
    assert world.node_xpu["status"]["devices"][1]["allocatedMiB"] == 16000
    assert [it[1] for it in world.notes.lines] == ["XPUOverCommitted"] * 2


async def test_pod_that_its_device_plugin_forgets_is_told_of_and_keeps_its_devices() -> None:
    world = XPUs(mem=16128, count=2)
    begin_s = world.now_s
    bound_at = (BEGIN + timedelta(seconds=begin_s)).isoformat()
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": bound_at}
    for name, assigned in (("forgotten", "false"), ("served", "true")):
        marks = share_marks("1", 500, assigned=assigned)
        pod = make_xpu_pod(name, {MEM: 500}, annotations=marks, node=NODE, phase="Pending")
        pod["status"]["conditions"] = [condition]
        world.add_pod(pod)

    await world.settle()
    world.now_s = begin_s + 299
    assert await world.step() == 1
    assert "XPUNotAssigned" not in [it[1] for it in world.notes.lines]

    world.now_s = begin_s + 300
    assert await world.step() is None
    await world.step()

    told = [it for it in world.notes.lines if it[1] == "XPUNotAssigned"]
    assert [it[0] for it in told] == ["Pod"]
    assert world.node_xpu["status"]["totals"]["allocatedMiB"] == 1000
    text = world.metrics.render().decode()
    assert "berthmaster_xpu_assign_timeouts_total 1.0" in text


async def test_shortest_patience_with_device_plugins_counts() -> None:
    world = XPUs(mem=16128, count=2)
    for name, patience in (("a", "600s"), ("b", "120s")):
        policy = {
            "metadata": {"name": name, "uid": name},
            "spec": {"concerns": {"xpu": {"assignTimeout": patience}}},
        }
        world.fleet.see_policy(policy_from_manifest(policy))

    assert world.fleet.xpu_assign_timeout_s == 120


async def test_conditions_that_cannot_be_read_are_written_anew_and_others_keep_their_time() -> None:
    world = XPUs(mem=16128, count=2)
    await world.settle()
    stored = world.node_xpu["status"]["conditions"]
    stored[0] = {"type": "Ready"}
    times = {it["type"]: it["lastTransitionTime"] for it in stored[1:]}
    world.now_s += 60
    world.start()
    world.show_xpus()
    await world.settle()

    found = {it["type"]: it["lastTransitionTime"] for it in world.node_xpu["status"]["conditions"]}
    assert world.holds("Ready") == ("True", "Known")
    assert found.pop("Ready") not in times.values()
    assert found == times


async def test_list_of_devices_that_shrinks_keeps_what_pods_have() -> None:
    world = XPUs(mem=16128, count=2)
    world.put_share("a", "1", 8000)
    await world.settle()

    world.change_node(**{"xpu-mem": "8064", "xpu-count": "1"})
    world.now_s += 10
    await world.settle()

    assert len(world.xpus) == 1
    assert world.node_xpu["status"]["totals"]["pendingMiB"] == 8000
    assert [it["index"] for it in world.node_xpu["spec"]["devices"]] == [0]


async def test_unhealthy_lists_and_wishes_reach_the_inventory() -> None:
    world = XPUs(mem=24192, count=3)
    await world.settle()
    wish = copy.deepcopy(world.node_xpu)
    wish["spec"]["devices"][0]["cordoned"] = True
    world.store.put(NODE_XPU, wish)
    world.show_xpus()
    world.list_unhealthy("1, x")
    world.now_s += 10
    await world.settle()

    assert [(it["healthy"], it["cordoned"]) for it in world.xpus] == [
        (True, True),
        (False, False),
        (True, False),
    ]
    message = world.store.objects[INVENTORY]["status"]["conditions"][0]["message"]
    assert 'found "x"' in message
    assert world.node_xpu["spec"]["devices"][0]["cordoned"] is True

    world.change_node(**{"xpu-mem": "32256", "xpu-count": "4"})
    world.now_s += 10
    await world.settle()

    assert [it["cordoned"] for it in world.node_xpu["spec"]["devices"]] == [
        True,
        False,
        False,
        False,
    ]

    world.fleet.lose_config_map(f"unhealthy-xpu-{NODE}")
    await world.settle()
    assert all(it["healthy"] for it in world.xpus)


def agents(world: XPUs, *, beaten_s: float) -> dict[str, Any]:
    beaten = (BEGIN + timedelta(seconds=world.now_s + beaten_s)).isoformat()
    return {
        "metadata": {"name": NODE},
        "spec": {
            "source": "Agent",
            "devices": [
                {"index": 0, "id": "a-0", "memoryMiB": 9000, "serialNumber": "a"},
                {"index": 1, "id": "a-1", "memoryMiB": 7000, "serialNumber": "a"},
            ],
        },
        "status": {
            "heartbeatTime": beaten,
            "devices": [{"index": 0, "health": "Unhealthy", "usedMiB": 12}],
        },
    }


async def test_agents_word_counts_while_it_is_fresh_and_its_spec_is_left_alone() -> None:
    world = XPUs(mem=16000, count=2)
    world.store.put(NODE_XPU, agents(world, beaten_s=0))
    world.show_xpus()
    world.put_share("a", "1", 500)
    again_s = await world.settle()

    assert [it["memoryMiB"] for it in world.xpus] == [9000, 7000]
    assert [it["healthy"] for it in world.xpus] == [False, True]
    assert world.node_xpu["spec"] == agents(world, beaten_s=0)["spec"]
    assert world.node_xpu["status"]["devices"][1]["allocatedMiB"] == 500
    assert "health" not in world.node_xpu["status"]["devices"][1]
    assert again_s is not None
    assert again_s <= 90

    world.now_s += again_s
    await world.settle()

    assert [it["memoryMiB"] for it in world.xpus] == [8000, 8000]
    assert world.holds("Stale") == ("True", "Stale")


async def test_memory_of_sliced_cards_is_advertised_for_kube_scheduler() -> None:
    world = XPUs(registered=registered_cards(2))
    marks = {
        "hami.io/vgpu-node": NODE,
        "hami.io/xpu-devices-allocated": "xpu-1,XPU,24576,25:;",
    }
    limits = {SLICES: 1, SLICE_MEM: 24576}
    world.add_pod(make_xpu_pod("s", limits, annotations=marks, node=NODE, phase="Running"))
    await world.settle()

    status = world.store.objects[NODE_PATH]["status"]
    assert status["capacity"][SLICE_MEM] == status["allocatable"][SLICE_MEM] == str(2 * 98304)
    assert world.node_xpu["status"]["devices"][1]["sliceMiB"] == 24576
    assert world.node_xpu["spec"]["source"] == "HAMiAnnotation"


async def test_a_faster_agent_is_left_alone() -> None:
    world = XPUs(mem=16000, count=2)
    world.store.put(NODE_XPU, agents(world, beaten_s=0))
    await world.step()
    await world.settle()

    assert world.node_xpu["spec"]["source"] == "Agent"


async def test_what_the_cluster_calls_things_is_followed() -> None:
    world = XPUs(mem=16000, count=2)
    world.change_node()
    names_ = {"shareMemory": "aliyun.com/gpu-mem", "shareCount": "aliyun.com/gpu-count"}
    spec = {"concerns": {"xpu": {"names": names_}}}
    world.fleet.see_policy(policy_from_manifest({"metadata": {"name": "p"}, "spec": spec}))
    node = copy.deepcopy(world.store.objects[NODE_PATH])
    node["status"]["capacity"].update({"aliyun.com/gpu-mem": "400", "aliyun.com/gpu-count": "4"})
    world.fleet.see_node(decode_node(msgspec.json.encode(node)))
    await world.settle()

    assert [it["memoryMiB"] for it in world.xpus] == [100] * 4


async def test_a_refused_write_is_repeated() -> None:
    world = XPUs(mem=16000, count=2)
    await world.settle()
    world.put_share("a", "1", 500)
    await world.step()
    world.now_s += 10
    world.store.fail_next = [ApiError(503, "Unavailable", "")]
    with pytest.raises(ApiError):
        await world.step()
    await world.settle()

    assert world.node_xpu["status"]["totals"]["allocatedMiB"] == 500


async def test_deleted_node_xpu_is_made_anew() -> None:
    world = XPUs(mem=16000, count=2)
    await world.settle()
    uid = world.store.objects.pop(NODE_XPU)["metadata"]["uid"]
    world.fleet.lose_node_xpu(NODE, uid)
    await world.settle()

    assert world.node_xpu["status"]["totals"]["devices"] == 2


async def test_node_xpu_of_a_node_that_comes_later_is_kept() -> None:
    world = XPUs()
    early = {"metadata": {"name": "later", "uid": "u", "resourceVersion": "1"}, "spec": {}}
    node_xpus.take(world.fleet, early)

    # Somebody bound a pod there, and it is gone again: nothing else is known of this node.
    pod = decode_pod(msgspec.json.encode(make_xpu_pod("p", node="later")))
    world.fleet.see_pod(pod)
    world.fleet.lose_pod(pod.uid)

    assert world.fleet.known_objects("node_xpu")["", "later"] == "u"
