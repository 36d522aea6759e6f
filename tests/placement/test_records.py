"""The last decisions: their whole tables, as they were, within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from berthmaster.api.objects import pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.placement.records import Records, summarise, tabulate
from berthmaster_webhook import deciding
from support.webhook_world import World, gated_manifest


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


def decide(world: World, name: str = "pod", *, cpu: str = "1") -> str:
    """Decide about a pod, and return the decision's id."""
    pod = pod_from_manifest(gated_manifest(name, cpu=cpu))
    request = world.state.engine.read_request(pod, PlacementPolicySpec())
    return deciding.decide(world.tools, pod, request).id


def test_table_has_every_node_with_its_scores_or_its_reason(world: World) -> None:
    world.add_node("full", cpu="1")
    world.add_node("big", cpu="8")
    world.add_node("cordoned", cpu="8", unschedulable=True)
    world.add_node("small", cpu="4")

    record = world.tools.records.find(decision_id=decide(world, cpu="2"))

    assert record is not None
    table = tabulate(record)
    assert table is not None
    assert [it["node"] for it in table] == ["big", "small", "cordoned", "full"]
    assert table[0]["scores"]["resources"] > table[1]["scores"]["resources"] > 0
    assert table[2] == {"node": "cordoned", "refused": "node(s) were unschedulable"}
    assert table[3]["refused"] == "Insufficient cpu"
    summary = summarise(record)
    assert (summary["node"], summary["nodes"], summary["feasible"]) == ("big", 4, 2)
    assert {it["reason"]: it["nodes"] for it in summary["refused"]} == {
        "Insufficient cpu": 1,
        "node(s) were unschedulable": 1,
    }


def test_table_stays_as_it_was_whatever_comes_after(world: World) -> None:
    world.add_node("a", cpu="4")
    world.add_node("b", cpu="8")
    record = world.tools.records.find(decision_id=decide(world))
    assert record is not None
    before = tabulate(record)

    world.add_node("c", cpu="64")
    world.state.nodes._drop("a", world.state.nodes.store["a"])
    decide(world, "later")

    assert tabulate(record) == before
    assert [it["node"] for it in before or ()] == ["a", "b"]


def test_last_decision_about_a_pod_is_found_by_its_name(world: World) -> None:
    world.add_node("a")
    first, second = decide(world, "p"), decide(world, "p", cpu="100")
    other = decide(world, "q")

    records = world.tools.records
    found = records.find(pod="default/p")
    assert found is not None
    assert (found.decision.id, found.decision.node) == (second, None)
    assert [it.decision.id for it in records.latest(2)] == [other, second]
    assert records.find(decision_id=first) is not None
    assert records.find(pod="default/absent") is None
    assert records.find() is None


def test_oldest_tables_go_first_then_the_oldest_decisions(world: World) -> None:
    for number in range(40):
        world.add_node(f"n{number}")
    whole = Records.of(world.state.engine)
    object.__setattr__(world.tools, "records", whole)
    decide(world, "one")
    size = whole.bytes
    records = Records(world.state.engine.table, most=3, most_bytes=2 * size + 1)
    world.state.engine.witness = records.witness
    object.__setattr__(world.tools, "records", records)

    ids = [decide(world, f"p{number}") for number in range(4)]

    assert len(records) == 3
    assert records.bytes <= 2 * size + 1
    assert records.find(decision_id=ids[0]) is None
    assert records.find(pod="default/p0") is None
    kept = [records.find(decision_id=it) for it in ids[1:]]
    assert [it is not None and it.table is not None for it in kept] == [False, True, True]
    assert kept[0] is not None
    assert tabulate(kept[0]) is None
    assert summarise(kept[0])["pod"] == "default/p1"


def test_table_larger_than_the_bound_is_not_kept(world: World) -> None:
    world.add_node("a")
    records = Records(world.state.engine.table, most_bytes=10)
    world.state.engine.witness = records.witness
    object.__setattr__(world.tools, "records", records)

    record = records.find(decision_id=decide(world))

    assert record is not None
    assert (record.table, records.bytes) == (None, 0)
