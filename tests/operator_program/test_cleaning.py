from __future__ import annotations

import pytest

from berthmaster_operator.cleaning import Cleaner
from operator_program.worlds import DEVICE, NODE, NODE_PATH, STATS, World, make_device


def make_cleaner(world: World) -> Cleaner:
    return Cleaner(
        world.store,
        world.fleet,
        may_write=lambda: world.is_leader,
        events=world.notes,
        metrics=world.metrics,
        grace_s=60,
        clock=world.clock,
    )


@pytest.fixture
async def world() -> World:
    made = World()
    made.store.put(DEVICE, make_device())
    made.start()
    await made.settle()
    return made


async def test_leftovers_go_after_the_grace_time(world: World) -> None:
    cleaner = make_cleaner(world)
    assert await cleaner.reconcile(NODE) is None
    del world.store.objects[NODE_PATH]
    world.show(NODE_PATH)

    assert await cleaner.reconcile(NODE) == 60
    assert DEVICE in world.store.objects
    world.now_s += 10
    assert await cleaner.reconcile(NODE) == 50
    announced = [line for line in world.notes.lines if line[1] == "NodeNotFound"]
    assert [kind for kind, _, _ in announced] == ["NodeDiskDevice", "NodeDiskIOStats"]
    assert 'there is no Node "n1"; this object is deleted in 60 s unless' in announced[0][2]

    world.now_s += 50
    await cleaner.reconcile(NODE)
    assert DEVICE not in world.store.objects
    assert STATS not in world.store.objects
    assert 'deleted: there has been no Node "n1" for 60 s' in world.notes.lines[-1][2]


async def test_node_that_is_there_after_all_keeps_them(world: World) -> None:
    world.fleet.lose_node(NODE)
    world.now_s += 60

    assert await make_cleaner(world).reconcile(NODE) == 60

    assert DEVICE in world.store.objects


async def test_successor_of_a_leftover_stays(world: World) -> None:
    del world.store.objects[NODE_PATH]
    world.show(NODE_PATH)
    del world.store.objects[DEVICE]
    world.store.put(DEVICE, make_device())
    world.now_s += 60

    await make_cleaner(world).reconcile(NODE)

    assert DEVICE in world.store.objects


async def test_returning_node_ends_the_grace_time(world: World) -> None:
    world.fleet.lose_node(NODE)
    world.now_s += 30
    world.show(NODE_PATH)
    world.now_s += 60

    assert await make_cleaner(world).reconcile(NODE) is None


async def test_each_absence_of_a_node_is_announced(world: World) -> None:
    cleaner = make_cleaner(world)
    for times in (1, 2):
        world.fleet.lose_node(NODE)
        for _ in range(2):
            assert await cleaner.reconcile(NODE) == 60
        told = [kind for kind, reason, _ in world.notes.lines if reason == "NodeNotFound"]
        assert told == ["NodeDiskDevice", "NodeDiskIOStats"] * times
        world.show(NODE_PATH)
        assert await cleaner.reconcile(NODE) is None
