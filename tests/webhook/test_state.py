from __future__ import annotations

import json
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Pod
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns.numa.columns import FRESH, MISSING, UNRELIABLE
from berthmaster_webhook.state import Help
from support.builders import make_pod, make_pod_manifest
from support.pages import scrape
from support.webhook_world import Manifest, World


def show_inventory(world: World, **ratios: Any) -> None:
    size = {"read": "100Mi", "write": "100Mi", "total": "200Mi"}
    function = {"readRatio": {}, "writeRatio": {}, **ratios}
    disk = {"id": "d", "type": "emptyDir", "capacity": size, "function": function}
    inventory = NodeInventory.model_validate({"name": "n1", "status": {"disks": [disk]}})
    world.state.inventories._put(EventKind.MODIFIED, "n1", inventory)


def placed(decision_id: str, *, bound_to: str = "", phase: str = "") -> Manifest:
    """Return a pod that was sent to n1."""
    text = json.dumps({"v": 1, "id": decision_id, "node": "n1"})
    return make_pod_manifest(
        "a", cpu="4", node=bound_to, phase=phase, annotations={names.ALLOCATION: text}
    )


def assume(world: World) -> str:
    """Hold n1's room for a pod that has not been seen."""
    ledger = world.state.ledger
    ledger.assume(
        "d1",
        node="n1",
        usages=ledger.usages_of(make_pod("a", cpu="4"), {}),
        namespace="default",
        name="a",
        owner="o",
        now_s=world.now_s,
    )
    return "d1"


async def test_node_that_cannot_be_read_takes_no_pods(world: World) -> None:
    """Half taken over it would look empty, and its pods would never be charged."""
    world.add_node("n1")
    world.show(make_pod_manifest("held", cpu="4", node="n1"))

    for bad in ("much", "-2", "much"):
        show_inventory(world, readRatio={"4k": bad})
        assert "n1" not in world.state.engine.table

    show_inventory(world, readRatio={"4k": "2"})
    row = world.state.engine.table.row_of("n1")
    assert row is not None
    assert world.state.engine.table.columns["resources"].amounts(row, "cpu") == (4000, 4000)


@pytest.mark.parametrize(
    ("seen", "helped"),
    [
        ({}, []),
        ({"bound_to": "n1"}, []),
        ({"bound_to": "n1", "phase": "Running"}, []),
        ({"bound_to": "n2"}, [Help("n1")]),
        ({"bound_to": "n1", "phase": "Failed"}, [Help("n1")]),
    ],
    ids=["where-sent", "bound-there", "running-there", "bound-elsewhere", "at-its-end"],
)
async def test_room_of_an_answer_that_was_not_used_helps(
    world: World, seen: dict[str, str], helped: list[Help]
) -> None:
    """A relist may show a pod late; nothing else tells of the room that its answer held."""
    world.add_node("n1")
    world.add_node("n2")
    decision = assume(world)
    told: list[Help] = []
    world.state.on_help.append(told.append)

    world.show(placed(decision, **seen))

    assert not world.state.ledger.assumed
    assert told == helped


async def test_only_what_a_node_draws_helps_nobody(world: World) -> None:
    world.add_node("n1")
    told: list[Help] = []
    world.state.on_help.append(told.append)

    for watts in (100, 120, 140):
        curve = {"cores": [0, 8], "watts": [watts, 200]}
        status = {"power": {"curve": curve, "usage": "1"}, "powerNow": f"{watts}W"}
        inventory = NodeInventory.model_validate({"name": "n1", "status": status})
        world.state.inventories._put(EventKind.MODIFIED, "n1", inventory)

    columns = world.state.engine.table.columns["power"]
    assert columns.watts[world.state.engine.table.row_of("n1"), 0] == 140
    assert told == [Help("n1")]


async def test_node_whose_inventory_was_deleted_is_not_one_without_zones(world: World) -> None:
    """Its kubelet aligns as before, and nobody knows what is free; what is on the Node changes nothing."""

    def zones_of_n1() -> int:
        return int(columns.state[world.state.engine.table.row_of("n1")])

    columns = world.state.engine.table.columns["numa"]
    inventories, nodes = world.state.inventories, world.state.nodes
    for _ in range(2):
        world.add_node("n1")
        world.add_zones("n1", "8", "8")
        assert zones_of_n1() == FRESH
        inventories._drop("n1", inventories.store["n1"])
        assert zones_of_n1() == UNRELIABLE
    world.add_node("n1", labels={"shelf": "upper"})
    assert zones_of_n1() == UNRELIABLE

    nodes._drop("n1", nodes.store["n1"])
    world.add_node("n1")
    assert zones_of_n1() == MISSING
    world.add_zones("n1", "8", "8")
    nodes._drop("n1", nodes.store["n1"])
    inventories._drop("n1", inventories.store["n1"])
    world.add_node("n1")
    assert zones_of_n1() == MISSING


async def test_listener_that_trips_over_a_pod_keeps_it_from_nobody(world: World) -> None:
    told: list[str] = []

    def stumble(kind: EventKind, pod: Pod) -> None:
        raise RuntimeError("poison")

    world.state.on_pod += [stumble, lambda _, pod: told.append(pod.metadata.name)]

    world.show(make_pod_manifest("a"))

    assert told == ["a"]
    assert scrape(world.state._metrics)['berthmaster_bad_objects_total{kind="Pod"}'] == 1


async def test_policies_that_a_concern_trips_over_and_listeners_that_trip_end_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def stumble(*_: object) -> None:
        raise RuntimeError("poison")

    state = world.state
    state.on_settings += [stumble, lambda _: told.append("settings")]
    state.on_help += [stumble, lambda _: told.append("help")]
    state.on_pods_current += [stumble, lambda: told.append("current")]
    state._metrics.before_render.insert(0, stumble)
    monkeypatch.setattr(state.engine, "configure", stumble)

    world.add_policy("p")
    state._tell_pods_current()

    assert told == ["settings", "help", "current"]
    assert state.policy("p") is not None
    assert scrape(state._metrics)['berthmaster_bad_objects_total{kind="PlacementPolicy"}'] == 1
