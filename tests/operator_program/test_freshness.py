"""Drivers that fall silent and come back, numbers that flip, reports late, doubled and out of order."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster.api.inventory import Bandwidth, Disk, NodeInventoryStatus
from berthmaster.cluster.errors import ApiError, UnreachableError
from berthmaster_operator.settling import HOLD_S, SLACK_DIVISOR, Rises, settle
from operator_program.worlds import (
    DEVICE,
    INVENTORY,
    NODE,
    STATS,
    World,
    make_device,
    make_pod,
    make_policy,
)

DRIVER = "iodriver"


@pytest.fixture
async def world() -> World:
    """A node whose driver has reported 900Mi."""
    made = World()
    made.store.put(DEVICE, make_device())
    made.start()
    await made.settle()
    made.report(read=900)
    await made.settle()
    return made


async def fall_silent(world: World, seconds: float = 60) -> None:
    world.now_s += seconds
    await world.settle()


# Silence, and what ends it.


async def test_steady_driver_without_heartbeat_is_said_to_be_unknown(world: World) -> None:
    await fall_silent(world)

    assert (world.condition["status"], world.condition["reason"]) == ("Unknown", "Stale")
    assert names.HEARTBEAT in world.condition["message"]


async def test_heartbeat_that_stops_is_a_fault(world: World) -> None:
    world.write_as(DRIVER, **{names.HEARTBEAT: "1"})
    await fall_silent(world)

    assert (world.condition["status"], world.condition["reason"]) == ("False", "Stale")
    assert "heartbeat has stopped" in world.condition["message"]


async def test_heartbeat_keeps_equal_numbers_fresh_and_costs_no_write(world: World) -> None:
    world.write_as(DRIVER, **{names.HEARTBEAT: "0"})
    await world.settle()
    writes = len(world.store.writes)

    for beat in range(1, 12):
        world.now_s += 10
        world.dirty.clear()
        world.write_as(DRIVER, **{names.HEARTBEAT: str(beat)})
        assert world.dirty == set(), "a heartbeat has no work done"
        await world.step()

    assert world.condition["reason"] == "Reported"
    assert len(world.store.writes) == writes


@pytest.mark.parametrize(
    "sign",
    [{names.HEARTBEAT: "2"}, {"other": "annotation"}, {}],
    ids=["heartbeat", "annotation", "write"],
)
async def test_first_sign_of_life_brings_equal_numbers_back(
    world: World, sign: dict[str, str]
) -> None:
    await fall_silent(world)
    world.dirty.clear()

    world.write_as(DRIVER, **sign)
    assert world.dirty == {NODE}
    await world.settle()

    assert (world.condition["status"], world.condition["reason"]) == ("True", "Reported")
    assert world.disk["allocable"]["read"] == "900Mi"


async def test_answer_to_a_new_list_is_a_sign_of_life(world: World) -> None:
    world.now_s += 50
    world.add_pod(make_pod("a"))
    await world.settle()
    world.report(read=900)
    await world.settle()

    world.now_s += 40
    await world.settle()

    assert world.condition["reason"] == "Reported"


async def test_our_own_writes_are_no_sign_of_life(world: World) -> None:
    await fall_silent(world)

    world.add_pod(make_pod("a"))
    world.write_as(names.OPERATOR_MANAGER)
    await world.settle()

    assert world.condition["reason"] == "Stale"


async def test_other_writes_are_none_for_a_driver_with_a_heartbeat(world: World) -> None:
    world.write_as(DRIVER, **{names.HEARTBEAT: "1"})
    await fall_silent(world)

    world.write_as("kubectl", note="somebody looked")
    await world.settle()

    assert world.condition["reason"] == "Stale"


async def test_restart_does_not_make_a_dead_drivers_report_fresh(world: World) -> None:
    world.write_as(DRIVER)
    await fall_silent(world)
    writes = len(world.store.writes)

    world.start()
    await world.settle()

    assert world.condition["reason"] == "Stale"
    assert len(world.store.writes) == writes


@pytest.mark.parametrize(("step_s", "reason"), [(-86400, "Reported"), (86400, "Stale")])
async def test_wrong_wall_clock_matters_at_most_until_the_next_sign(
    world: World, step_s: float, reason: str
) -> None:
    world.write_as(DRIVER)
    world.wall_step_s = step_s

    world.start()
    await world.settle()
    assert world.condition["reason"] == reason
    world.write_as(DRIVER, **{names.HEARTBEAT: "1"})
    await world.settle()
    assert world.condition["reason"] == "Reported"
    # A step later than that does nothing.
    world.wall_step_s = 10 * step_s
    world.now_s += 30
    await world.settle()
    assert world.condition["reason"] == "Reported"


async def test_stale_disk_keeps_back_what_the_policy_wants(world: World) -> None:
    world.policies["p"] = make_policy(staleSafetyPercent=25)
    world.policies["q"] = make_policy("q", staleSafetyPercent=10)
    world.start()
    world.add_pod(make_pod("a"))
    await world.settle()
    await fall_silent(world)

    assert world.condition["reason"] == "Stale"
    assert world.disk["allocable"] == {"read": "750Mi", "write": "750Mi", "total": "1500Mi"}
    assert world.disk["reportedPods"] == [], "every pod is subtracted from it"
    world.report(read=900)
    await world.settle()
    assert world.disk["reportedPods"] == ["a"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.integers(0, 5), st.floats(-1e5, 1e5)),
        min_size=1,
        max_size=30,
    )
)
def test_late_doubled_and_reordered_reports_never_make_a_driver_younger(
    deliveries: list[tuple[float, int, float]],
) -> None:
    """Six versions of an object arrive in any order, any number of times, whatever the clock shows."""
    world = World()
    world.store.put(DEVICE, make_device())
    world.start()
    versions: list[dict[str, Any]] = []
    for number in range(6):
        # Among the driver's writes two of ours, which change the list only.
        status: Any = {"allocableBandwidth": {"disk": {"read": number}}}
        if number in (2, 4):
            status = versions[-1]["status"]
        metadata = {"namespace": "ioi-system", "uid": "one"}
        versions.append(
            world.store.put(
                STATS,
                {
                    "metadata": metadata,
                    "spec": {"nodeName": NODE, "reservedPods": [str(number // 2)]},
                    "status": status,
                },
            )
        )
    newest, alive_s = -1, 0.0

    for wait_s, number, step_s in deliveries:
        world.now_s += wait_s
        world.wall_step_s = step_s
        world.show(STATS, copy.deepcopy(versions[number]))
        if number > newest:
            if newest < 0 or any(it not in (2, 4) for it in range(newest + 1, number + 1)):
                alive_s = world.now_s
            newest = number
        state = world.fleet.find(NODE)
        assert state is not None
        seen = world.fleet.stats_of(state)
        assert seen is not None
        assert seen.alive_s == alive_s


# Numbers that rise and fall.


async def test_numbers_that_flip_by_much_cost_one_write(world: World) -> None:
    world.now_s += 10
    world.report(read=700)
    await world.settle()
    writes = len(world.store.writes)

    for read in (900, 700, 800, 700, 900, 700):
        world.now_s += 5
        world.report(read=read)
        await world.step()
        assert world.disk["allocable"]["read"] == "700Mi"

    assert len(world.store.writes) == writes


async def test_numbers_that_fall_act_at_once(world: World) -> None:
    world.now_s += 10
    world.report(read=500)
    await world.step()

    assert world.disk["allocable"]["read"] == "500Mi"


async def test_rise_that_lasts_is_published_without_another_report(world: World) -> None:
    world.now_s += 10
    world.report(read=950)

    again_s = await world.step()

    assert world.disk["allocable"]["read"] == "900Mi"
    assert again_s == HOLD_S
    world.now_s += again_s
    await world.step()
    assert world.disk["allocable"]["read"] == "950Mi"
    assert world.store.objects[INVENTORY]["status"]["freeDisk"] == "95%/90%"


async def test_rise_that_comes_with_another_list_is_published_at_once(world: World) -> None:
    world.add_pod(make_pod("a"))
    await world.settle()
    world.now_s += 10
    world.report(read=990)
    await world.step()

    assert (world.disk["allocable"]["read"], world.disk["reportedPods"]) == ("990Mi", ["a"])


def status_of(read: int, write: int) -> NodeInventoryStatus:
    disk = Disk(
        id="d",
        type="emptyDir",
        capacity=Bandwidth(read=1000, write=1000, total=2000),
        allocable=Bandwidth(read=read, write=write, total=read + write),
        reported_pods=("a",),
    )
    return NodeInventoryStatus(disks=(disk,))


def numbers(status: NodeInventoryStatus) -> tuple[int, int, int]:
    assert status.disks is not None
    found = status.disks[0].allocable
    assert found is not None
    return found.read, found.write, found.total


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(-50, 1000), st.integers(-50, 1000)),
        min_size=1,
        max_size=40,
    )
)
def test_never_more_than_there_is_and_all_of_it_in_the_end(
    reports: list[tuple[float, int, int]],
) -> None:
    now_s, rises = 0.0, dict[str, Any]()
    going_on: Rises = rises
    published = status_of(0, 0)
    computed = published
    for wait_s, read, write in reports:
        now_s += wait_s
        computed = status_of(read, write)
        published, going_on, _ = settle(computed, published, going_on, now_s=now_s)
        assert all(a <= b for a, b in zip(numbers(published), numbers(computed), strict=True))
        again, _, _ = settle(computed, published, going_on, now_s=now_s)
        assert again == published, "what is published is published once"

    # The driver says no more; only the wishes to look again are followed.
    for _ in range(5):
        published, going_on, again_s = settle(computed, published, going_on, now_s=now_s)
        now_s += again_s or 0.0
    for shown, there, whole in zip(
        numbers(published), numbers(computed), (1000, 1000, 2000), strict=True
    ):
        assert there - shown <= whole // SLACK_DIVISOR


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0.1, HOLD_S - 0.1))
def test_flipping_faster_than_the_hold_is_never_published_again(
    one: int, other: int, period_s: float
) -> None:
    low, high = sorted((one, other))
    published, going_on, now_s = status_of(low, low), dict[str, Any](), 0.0
    rises: Rises = going_on
    for turn in range(20):
        now_s += period_s
        read = high if turn % 2 else low
        settled, rises, _ = settle(status_of(read, read), published, rises, now_s=now_s)
        assert numbers(settled) == numbers(published)


# Faults of the driver's objects.


@pytest.mark.parametrize(
    "failure",
    [ApiError(403, "Forbidden", "a webhook says no"), UnreachableError("cut")],
    ids=["refused", "cut"],
)
async def test_list_that_cannot_be_written_keeps_nothing_back(
    world: World, failure: Exception
) -> None:
    world.add_pod(make_pod("a"))
    world.now_s += 10
    world.report(read=300)
    world.store.fail_next = [failure]

    with pytest.raises(type(failure)):
        await world.step()

    assert world.disk["allocable"]["read"] == "300Mi"
    told = [line for line in world.notes.lines if line[1] == "ReserveFailed"]
    assert bool(told) == isinstance(failure, ApiError)
    await world.settle()
    assert world.reserved == ["a"]
