"""How full nodes are: what the books say as amounts, kept in step with them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from berthmaster.api import names
from berthmaster.api.inventory import inventory_from_manifest
from berthmaster.cluster.informers import EventKind
from berthmaster.concerns import power
from berthmaster.concerns.resources import ResourcesConcern
from berthmaster.concerns.resources.columns import ResourcesColumns
from berthmaster.concerns.shape import Fill, Rows
from berthmaster.placement.filling import Filling, Level
from support.builders import make_node, make_pod_manifest
from support.webhook_world import Manifest, World
from support.xpu_worlds import MEM

MIB = 2**20
LIMITS = {"cpu": "2", "memory": "1Gi"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


def levels_of(filling: Filling, node: str) -> dict[tuple[str, str], Level]:
    filling.refresh()
    return {(it.concern, it.resource): level for it, level in filling.of_node(node)}


def bound(name: str, node: str = "n1", **annotations: str) -> Manifest:
    """Return a pod that somebody bound past us."""
    return make_pod_manifest(
        name,
        node=node,
        annotations={names.PLACEMENT: "required", **annotations},
        containers=[{"name": "c", "resources": {"limits": LIMITS, "requests": LIMITS}}],
    )


def with_disk(name: str, size: str) -> Manifest:
    request = f'{{"rbps": "{size}", "wbps": "{size}", "blocksize": "4k"}}'
    return bound(name, **{"blockio.kubernetes.io/resources": request})


def test_nodes_show_what_they_have_and_what_is_used(world: World) -> None:
    filling = Filling(world.state.engine.table)
    world.add_node("n1", cpu="4", memory="8Gi")
    world.add_zones("n1", "3", "1", total="4")
    world.show(bound("a"))

    found = levels_of(filling, "n1")

    assert found["resources", "cpu"] == Level(4, 2)
    assert found["resources", "memory"] == Level(8 * 1024 * MIB, 1024 * MIB)
    assert found["resources", "pods"] == Level(110, 1)
    # Of 8 CPUs in two zones 4 were taken by the report, and the pod is not in it.
    assert found["numa", "cpu"] == Level(8, 6)
    assert ("numa", "memory") not in found


def test_only_rows_that_changed_are_measured_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling = Filling(world.state.engine.table)
    for name in ("n1", "n2"):
        world.add_node(name)
    filling.refresh()
    measured: list[int] = []
    measure = ResourcesConcern.fills

    def fills(self: ResourcesConcern, columns: ResourcesColumns, rows: Rows) -> Sequence[Fill]:
        measured.append(len(rows))
        return measure(self, columns, rows)

    monkeypatch.setattr(ResourcesConcern, "fills", fills)
    world.show(bound("a", "n2"))

    assert levels_of(filling, "n2")["resources", "cpu"].used == 2
    assert levels_of(filling, "n1")["resources", "cpu"].used == 0
    assert measured == [1]


def test_disks_past_their_line_are_seen_though_nothing_is_free(world: World) -> None:
    filling = Filling(world.state.engine.table)
    world.add_node("n1")
    world.add_disk("n1", "1000Mi")
    world.show(with_disk("a", "800Mi"))

    assert levels_of(filling, "n1")["diskio", "read"] == Level(1000 * MIB, 800 * MIB)

    world.show(with_disk("b", "800Mi"))
    over = levels_of(filling, "n1")["diskio", "read"]
    assert over == Level(1000 * MIB, 1600 * MIB)
    assert over.is_over
    past = {it.resource: count for it, _, count in filling.totals() if it.concern == "diskio"}
    assert past == {"read": 1, "write": 1}

    world.show_gone("uid-b")
    assert levels_of(filling, "n1")["diskio", "read"] == Level(1000 * MIB, 800 * MIB)


def test_accelerators_and_power(world: World) -> None:
    filling = Filling(world.state.engine.table)
    world.add_xpus(mem=16, count=1)
    pod = bound("a")
    pod["spec"]["containers"][0]["resources"] = {"limits": {MEM: "4"}, "requests": {MEM: "4"}}
    world.show(pod)
    drawn = {"usage": "1", "curve": {"cores": [0, 4], "watts": [100, 140]}}
    world.add_node("n2")
    inventory = inventory_from_manifest({"metadata": {"name": "n2"}, "status": {"power": drawn}})
    world.state.inventories._put(EventKind.ADDED, "n2", inventory)

    memory = levels_of(filling, "n1")["xpu", "memory"]
    assert memory.capacity > 0
    assert memory.used == memory.capacity / 4
    assert levels_of(filling, "n2")["power", "power"] == Level(140, 110)


def test_what_holders_take_adds_up_to_what_is_used(world: World) -> None:
    filling = Filling(world.state.engine.table)
    world.add_node("n1", cpu="32", memory="64Gi")
    world.add_disk("n1", "1000Mi")
    for name, size in (("a", "100Mi"), ("b", "250Mi"), ("c", "300Mi")):
        world.show(with_disk(name, size))
    filling.refresh()

    sums: dict[tuple[str, str], float] = {}
    for entry in world.state.ledger.on_node("n1"):
        for it, amount in filling.taken(entry).items():
            sums[it.concern, it.resource] = sums.get((it.concern, it.resource), 0) + amount

    used = {key: level.used for key, level in levels_of(filling, "n1").items() if level.used}
    assert sums == used
    assert used["diskio", "write"] == 650 * MIB


def test_totals_leave_out_nodes_that_are_gone_and_follow_a_table_that_grows(world: World) -> None:
    filling = Filling(world.state.engine.table)
    for number in range(200):
        world.add_node(f"n{number}", cpu="4")
    world.show(bound("a", "n7"))
    filling.refresh()
    totals = {(it.concern, it.resource): level for it, level, _ in filling.totals()}
    assert totals["resources", "cpu"] == Level(800, 2)

    world.state.nodes._drop("n7", world.state.nodes.store["n7"])
    filling.refresh()
    totals = {(it.concern, it.resource): level for it, level, _ in filling.totals()}
    assert totals["resources", "cpu"] == Level(796, 0)
    assert filling.of_node("n7") == []
    (entry,) = world.state.ledger
    assert filling.taken(entry) == {}


def test_curves_are_measured_for_all_rows_at_once() -> None:
    """Every node draws something else at each scrape, and meanwhile nobody is answered."""
    columns = power.CONCERN.new_columns()
    columns.resize(50_000)
    curve = {"cores": [0, 1, 2], "watts": [100, 180, 150], "gaps": [0.5]}
    inventory = inventory_from_manifest(
        {"metadata": {"name": "n"}, "status": {"power": {"curve": curve}}}
    )
    for row in (0, 7):
        columns.write_node(row, make_node("n"), inventory)
    rows = np.arange(50_000)

    def measure() -> float:
        began_s = time.thread_time()
        (fill,) = power.CONCERN.fills(columns, rows)
        assert np.flatnonzero(fill.capacity).tolist() == [0, 7]
        assert fill.capacity[7] == 180.0
        return time.thread_time() - began_s

    assert min(measure() for _ in range(3)) < 0.1
