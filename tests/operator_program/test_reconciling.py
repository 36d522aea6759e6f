from __future__ import annotations

import json

import pytest

from berthmaster.api import names
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError
from operator_program.worlds import (
    DEVICE,
    INVENTORY,
    NODE,
    NODE_PATH,
    STATS,
    World,
    make_device,
    make_pod,
    make_policy,
)


@pytest.fixture
def world() -> World:
    made = World()
    made.store.put(DEVICE, make_device())
    made.start()
    return made


def allocation(node: str, mode: str = "required") -> dict[str, str]:
    return {names.ALLOCATION: json.dumps({"v": 1, "id": "d1", "node": node, "mode": mode})}


async def test_first_device_makes_stats_and_inventory(world: World) -> None:
    await world.settle()

    stats = world.store.objects[STATS]
    assert stats["spec"] == {"nodeName": NODE, "reservedPods": []}
    uid = world.store.objects[NODE_PATH]["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": uid}
    assert stats["metadata"]["ownerReferences"] == [owner]
    assert world.store.objects[INVENTORY]["metadata"]["ownerReferences"] == [owner]
    assert world.disk["capacity"] == {"read": "1000Mi", "write": "1000Mi", "total": "2000Mi"}
    assert world.condition["reason"] == "OwnBooks"
    assert world.node_conditions[0]["type"] == names.DISK_IO_READY_ON_NODE


async def test_nothing_is_written_before_all_was_seen(world: World) -> None:
    world.pods = {"a": make_pod("a")}
    world.start(is_complete=False)

    await world.step()
    assert world.store.writes == []

    world.fleet.is_complete = True
    await world.settle()
    assert world.reserved == ["a"]


async def test_a_bystander_writes_nothing(world: World) -> None:
    world.is_leader = False

    assert await world.step() is None

    assert world.store.writes == []


async def test_restart_keeps_list_and_accepted_report(world: World) -> None:
    world.add_pod(make_pod("a"))
    await world.settle()
    world.report(read=980)
    await world.settle()
    world.add_pod(make_pod("b"))
    await world.settle()
    writes = len(world.store.writes)

    world.start()
    await world.settle()

    assert len(world.store.writes) == writes
    assert world.reserved == ["a", "b"]
    assert (world.disk["allocable"]["read"], world.disk["reportedPods"]) == ("980Mi", ["a"])


async def test_list_holds_bound_and_sent_pods_only(world: World) -> None:
    world.policies["p"] = make_policy(nsWhiteList=["spared"])
    world.start()
    world.add_pod(make_pod("bound"))
    world.add_pod(make_pod("sent", node=""))
    for uid, node, mode in (("sent", NODE, "required"), ("seen", NODE, "observe")):
        pod = make_pod(uid, node="")
        pod["metadata"]["annotations"] = allocation(node, mode)
        world.add_pod(pod)
    moved = make_pod("moved", node="n2")
    moved["metadata"]["annotations"] = allocation(NODE)
    world.add_pod(moved)
    world.add_pod(make_pod("done", status={"phase": "Succeeded"}))
    world.add_pod(make_pod("spared", namespace="spared"))

    await world.settle()

    assert world.reserved == ["bound", "sent"]


async def test_finished_and_vanished_pods_are_released(world: World) -> None:
    """Upstream's D15: Succeeded pods and deletions seen late keep their bandwidth."""
    for uid in ("a", "b", "c"):
        world.add_pod(make_pod(uid))
    await world.settle()

    world.add_pod(make_pod("a", status={"phase": "Failed"}))
    del world.pods["b"]
    world.show_pod("b")
    await world.settle()

    assert world.reserved == ["c"]


async def test_equal_list_in_other_order_is_left(world: World) -> None:
    for uid in ("b", "a"):
        world.add_pod(make_pod(uid))
    spec = {"nodeName": NODE, "reservedPods": ["b", "a"]}
    world.store.put(STATS, {"metadata": {"namespace": "ioi-system"}, "spec": spec})
    world.show(STATS)

    await world.settle()

    assert world.reserved == ["b", "a"]


async def test_absent_list_equals_an_empty_one(world: World) -> None:
    world.store.put(STATS, {"metadata": {"namespace": "ioi-system"}, "spec": {"nodeName": NODE}})
    world.show(STATS)

    await world.settle()

    assert "reservedPods" not in world.store.objects[STATS]["spec"]


async def test_report_for_the_present_list_is_taken(world: World) -> None:
    world.add_pod(make_pod("a"))
    await world.settle()

    world.report(read=900)
    await world.settle()

    assert world.disk["allocable"]["read"] == "900Mi"
    assert world.disk["reportedPods"] == ["a"]
    assert world.condition["reason"] == "Reported"


@pytest.mark.parametrize("generation", [1, 9], ids=["behind", "ahead"])
async def test_report_for_another_list_is_ignored(world: World, generation: int) -> None:
    await world.settle()
    world.add_pod(make_pod("a"))
    await world.settle()

    world.report(read=1000, generation=generation)
    await world.settle()

    assert "allocable" not in world.disk
    assert b"berthmaster_diskio_reports_ignored_total 1.0" in world.metrics.render()


async def test_report_in_the_gap_names_what_it_counts(world: World) -> None:
    """Upstream's D7: a pod reserved here but not in the list yet must not vanish in a report."""
    world.add_pod(make_pod("a"))
    await world.settle()

    world.add_pod(make_pod("b"))
    world.report(read=995)
    await world.settle()

    assert world.reserved == ["a", "b"]
    assert world.disk["allocable"]["read"] == "995Mi"
    assert world.disk["reportedPods"] == ["a"], "readers subtract b themselves"


async def test_lagging_report_leaves_the_last_one(world: World) -> None:
    world.add_pod(make_pod("a"))
    await world.settle()
    world.report(read=900)
    await world.settle()
    generation = world.store.objects[STATS]["metadata"]["generation"]
    world.add_pod(make_pod("b"))
    await world.settle()

    world.report(read=1000, generation=generation)
    await world.settle()

    assert (world.disk["allocable"]["read"], world.disk["reportedPods"]) == ("900Mi", ["a"])


async def test_status_without_generation_is_no_report(world: World) -> None:
    """Upstream's D8: an absent observedGeneration, or an unknown device, ends the process."""
    await world.settle()
    stats = world.store.objects[STATS]
    bandwidth = {"disk": {"read": "1"}, "unheard-of": {"read": "oops"}}
    world.store.put(STATS, {**stats, "status": {"allocableBandwidth": bandwidth}})
    world.show(STATS)

    await world.settle()

    assert "allocable" not in world.disk
    assert world.condition["reason"] == "OwnBooks"


async def test_unknown_device_in_a_report_is_counted(world: World) -> None:
    await world.settle()

    world.report(read=5, device="unheard-of")
    await world.settle()

    assert "allocable" not in world.disk
    assert b"berthmaster_diskio_unknown_devices 1.0" in world.metrics.render()


async def test_equal_numbers_without_generation_stay_safe(world: World) -> None:
    """Upstream's D13: a driver whose numbers do not change does not answer the new list."""
    world.add_pod(make_pod("a"))
    await world.settle()
    world.report(read=900)
    await world.settle()

    del world.pods["a"]
    world.show_pod("a")
    world.add_pod(make_pod("b"))
    await world.settle()

    assert world.reserved == ["b"]
    assert (world.disk["allocable"]["read"], world.disk["reportedPods"]) == ("900Mi", ["a"])
    assert b"berthmaster_diskio_lagging_nodes 1.0" in world.metrics.render()


async def test_silent_driver_becomes_stale_and_returns(world: World) -> None:
    await world.settle()
    world.report(read=900)
    again_s = await world.settle()
    assert again_s == pytest.approx(60, abs=10)

    world.now_s += 60
    await world.settle()
    assert world.condition["reason"] == "Stale"
    assert "allocable" not in world.disk
    assert world.node_conditions[0]["status"] == "Unknown"
    assert b"berthmaster_diskio_stale_drivers 1.0" in world.metrics.render()

    world.report(read=800)
    await world.settle()
    assert world.condition["reason"] == "Reported"
    assert world.disk["allocable"]["read"] == "800Mi"


async def test_own_write_does_not_freshen_a_report(world: World) -> None:
    await world.settle()
    world.report(read=900)
    await world.settle()

    world.now_s += 50
    world.add_pod(make_pod("a"))
    await world.settle()
    world.now_s += 10
    await world.settle()

    assert world.condition["reason"] == "Stale"


async def test_policy_shortens_the_freshness(world: World) -> None:
    world.policies["p"] = make_policy(staleAfter="20s")
    world.start()
    await world.settle()
    world.report(read=900)
    await world.settle()

    world.now_s += 20
    await world.settle()

    assert world.condition["reason"] == "Stale"


async def test_flipping_numbers_cost_one_write(world: World) -> None:
    await world.settle()
    world.report(read=900)
    await world.settle()
    world.report(read=895)
    await world.settle()
    writes = len(world.store.writes)

    for read in (900, 895, 900, 895):
        world.now_s += 5
        world.report(read=read)
        await world.settle()

    assert len(world.store.writes) == writes
    assert world.disk["allocable"]["read"] == "895Mi", "the lower one: never more than there is"


async def test_inventory_waits_between_writes(world: World) -> None:
    await world.settle()
    world.report(read=900)
    world.now_s += 60
    world.report(read=800)
    await world.step()
    world.report(read=500)

    again_s = await world.step()

    assert again_s == pytest.approx(5)
    assert world.disk["allocable"]["read"] == "800Mi"
    await world.settle()
    assert world.disk["allocable"]["read"] == "500Mi"


async def test_missing_model_is_told_and_cured(world: World) -> None:
    world.models = "[]"
    world.start()
    await world.settle()
    assert world.condition["reason"] == "ModelNotFound"
    assert [(kind, reason) for kind, reason, _ in world.notes.lines] == [
        ("NodeDiskDevice", "DiskIONotReady")
    ]

    world.models = World().models
    world.show_models()
    await world.settle()

    assert world.disk["function"]["readRatio"] == {"32k": "1"}
    assert world.condition["reason"] == "OwnBooks"


async def test_bad_field_of_a_device_is_told(world: World) -> None:
    world.store.put(DEVICE, make_device(capacity={"read": "lots"}))
    world.start()

    await world.settle()

    assert "spec.devices[disk].capacity.read" in world.notes.lines[0][2]


async def test_changed_device_is_taken_over(world: World) -> None:
    await world.settle()
    world.store.put(DEVICE, make_device(capacity={"read": "2000Mi"}))
    world.show(DEVICE)

    await world.settle()

    assert world.disk["capacity"]["read"] == "2000Mi"


async def test_lost_device_unregisters_the_node(world: World) -> None:
    await world.settle()
    del world.store.objects[DEVICE]
    world.show(DEVICE)

    await world.settle()

    assert "disks" not in world.store.objects[INVENTORY]["status"]
    assert world.node_conditions == []


async def test_stats_made_by_another_are_adopted(world: World) -> None:
    world.add_pod(make_pod("a"))
    world.store.put(STATS, {"metadata": {"namespace": "ioi-system"}, "spec": {"nodeName": NODE}})

    with pytest.raises(ApiError, match="AlreadyExists"):
        await world.step()
    await world.settle()

    assert world.reserved == ["a"]


async def test_inventory_made_by_another_is_adopted(world: World) -> None:
    others = world.store.put(INVENTORY, {"status": {}})

    await world.settle()

    stored = world.store.objects[INVENTORY]
    assert stored["metadata"]["uid"] == others["metadata"]["uid"]
    assert stored["status"]["disks"]


async def test_deleted_inventory_is_made_again(world: World) -> None:
    await world.settle()
    uid = world.store.objects.pop(INVENTORY)["metadata"]["uid"]
    world.fleet.lose_inventory(NODE, uid)

    await world.settle()

    assert world.disk["id"] == "disk"


async def test_inventory_of_an_older_node_is_waited_for(world: World) -> None:
    await world.settle()
    del world.store.objects[NODE_PATH]
    world.store.put(NODE_PATH, {"metadata": {"name": NODE}, "status": {}})
    world.start()
    world.store.put(DEVICE, make_device(capacity={"read": "1"}))
    world.show(DEVICE)

    with pytest.raises(ApiError, match="older Node"):
        await world.step()


async def test_report_of_an_older_node_is_not_continued(world: World) -> None:
    """Its NodeDiskIOStats may outlive it, with a list that the new machine's driver has not seen."""
    world.add_pod(make_pod("a"))
    await world.settle()
    world.report(read=980)
    await world.settle()
    world.add_pod(make_pod("b"))
    await world.settle()
    assert world.disk["reportedPods"] == ["a"]
    del world.store.objects[NODE_PATH]
    world.show(NODE_PATH)
    world.store.put(NODE_PATH, {"metadata": {"name": NODE}, "status": {}})
    world.show(NODE_PATH)
    world.now_s += 10

    for _ in range(2):
        with pytest.raises(ApiError, match="older Node"):
            await world.step()

    state = world.fleet.find(NODE)
    assert state is not None
    assert state.computed is not None
    (disk,) = state.computed.disks or ()
    assert disk.allocable is None


async def test_lost_answer_is_repeated(world: World) -> None:
    world.store.fail_next = [OutcomeUnknownError("gone")]

    with pytest.raises(OutcomeUnknownError):
        await world.step()
    await world.settle()

    assert world.disk["id"] == "disk"


async def test_refused_inventory_keeps_the_rest_from_nobody(world: World) -> None:
    """And it is tried again: the failure is raised after all."""
    world.add_pod(make_pod("a"))
    world.store.refused = {INVENTORY}

    for _ in range(2):
        with pytest.raises(ApiError, match="is refused"):
            await world.step()

    assert world.reserved == ["a"]
    assert [it["type"] for it in world.node_conditions] == ["berthmaster.io/DiskIOReady"]
    assert INVENTORY not in world.store.objects


async def test_flooded_api_server_is_left_alone(world: World) -> None:
    world.store.fail_next = [ApiError(429, "TooManyRequests", "later")]

    with pytest.raises(ApiError, match="later"):
        await world.step()

    assert world.store.writes == []


async def test_unknown_node_gets_nothing(world: World) -> None:
    del world.store.objects[NODE_PATH]
    world.start()

    await world.step()

    assert world.store.writes == []
