"""Three may tell of a node's devices; they end in one list, and what is wrong is said."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.objects import node_from_manifest
from berthmaster.concerns.xpu.inventory import XPUInventory, read_unhealthy
from support.xpu_worlds import inventory_of, make_xpu_node, registered_cards


def build(node: dict[str, Any], node_xpu: dict[str, Any] | None = None, **how: Any) -> XPUInventory:
    return inventory_of(node_from_manifest(node), node_xpu=node_xpu, **how)


def make_node_xpu(*sizes: int, source: str = "Agent", **device: Any) -> dict[str, Any]:
    devices = [
        {"index": at, "id": f"sn-{at}", "memoryMiB": mib, "serialNumber": "sn", **device}
        for at, mib in enumerate(sizes)
    ]
    return {
        "metadata": {"name": "n1", "generation": 3},
        "spec": {"source": source, "devices": devices},
    }


def sizes(found: XPUInventory) -> list[int]:
    return [it.memory_mib for it in found.xpus or ()]


def why(found: XPUInventory) -> tuple[str, str]:
    assert found.condition is not None
    return found.condition.status, found.condition.reason


def test_node_without_devices_has_no_part() -> None:
    assert build(make_xpu_node()) == XPUInventory()


def test_capacity_is_shared_out_evenly() -> None:
    found = build(make_xpu_node(mem=32257, count=4))

    assert sizes(found) == [8064] * 4
    assert [it.id for it in found.xpus or ()] == [f"n1-xpu-{it}" for it in range(4)]
    assert found.xpu is not None
    assert (found.xpu.source, found.xpu.shared) == ("Capacity", True)
    assert found.summary == "4/4 8064Mi"
    assert why(found) == ("True", "Known")


@pytest.mark.parametrize("count", [None, 0])
def test_memory_without_devices_is_no_device(count: int | None) -> None:
    found = build(make_xpu_node(mem=8064, count=count))

    assert sizes(found) == []
    assert why(found) == ("False", "NoDevices")


def test_whole_cards_are_made_up_on_two_numa_nodes() -> None:
    found = build(make_xpu_node(cards=4))

    assert sizes(found) == [98304] * 4
    assert [it.numa_node for it in found.xpus or ()] == [0, 0, 1, 1]


def test_a_card_that_is_told_twice_is_one_device() -> None:
    found = build(make_xpu_node(cards=3, registered=registered_cards(2, 50000)))

    assert sizes(found) == [50000, 50000, 98304]
    assert [it.registered_id for it in found.xpus or ()] == ["xpu-0", "xpu-1", ""]
    assert found.xpu is not None
    assert found.xpu.source == "HAMiAnnotation"


def test_an_agent_knows_true_sizes() -> None:
    found = build(make_xpu_node(mem=30000, count=2), make_node_xpu(10000, 20000))

    assert sizes(found) == [10000, 20000]
    assert [it.board for it in found.xpus or ()] == ["sn", "sn"]
    assert found.xpu is not None
    assert found.xpu.source == "Agent"
    assert why(found) == ("True", "Known")


def test_of_two_sums_the_smaller_counts() -> None:
    more = build(make_xpu_node(mem=20000, count=2), make_node_xpu(10000, 20000))
    less = build(make_xpu_node(mem=90000, count=2), make_node_xpu(10000, 70000))

    assert sizes(more) == [10000, 10000]
    assert why(more) == ("True", "InventoryMismatch")
    assert sizes(less) == [10000, 70000]
    assert why(less) == ("True", "InventoryMismatch")


def test_stale_agent_is_set_aside_for_the_plugins_word() -> None:
    node = make_xpu_node(mem=16000, count=2)
    agent = make_node_xpu(8000, 8000, cordoned=True)
    agent["status"] = {"devices": [{"index": 1, "health": "Unhealthy"}]}
    found = build(node, agent, is_stale=True)

    assert found.xpu is not None
    assert found.xpu.source == "Capacity"
    assert [it.cordoned for it in found.xpus or ()] == [True, True]
    assert [it.healthy for it in found.xpus or ()] == [True, False]
    assert why(found) == ("False", "Stale")


def test_what_is_unhealthy_or_cordoned_by_any_word_is_so() -> None:
    marks = {"hami.io/device-cordon": "n1-kunlun-2, xpu-3"}
    registered = registered_cards(4)
    registered[0]["health"] = False
    found = build(make_xpu_node(cards=4, registered=registered, annotations=marks), unhealthy=[1])

    assert [it.healthy for it in found.xpus or ()] == [False, False, True, True]
    assert [it.cordoned for it in found.xpus or ()] == [False, False, True, True]
    assert found.summary == "0/4 98304Mi"
    assert why(found) == ("True", "Degraded")


def test_wishes_in_our_own_node_xpu_count_and_its_devices_do_not() -> None:
    ours = make_node_xpu(1, 1, 1, source="Capacity")
    ours["spec"]["topology"] = "None"
    ours["spec"]["devices"][1]["cordoned"] = True
    found = build(make_xpu_node(mem=16000, count=2), ours)

    assert sizes(found) == [8000, 8000]
    assert [it.cordoned for it in found.xpus or ()] == [False, True]
    assert found.xpu is not None
    assert found.xpu.topology == "None"


@pytest.mark.parametrize("said", ["Requesting", "Deleted"])
def test_plugin_that_is_gone_takes_its_registration_along(said: str) -> None:
    marks = {"hami.io/node-handshake-xpu": f"{said}_2026-01-01 00:00:00"}
    node = make_xpu_node(registered=registered_cards(2), annotations=marks)
    assert sizes(build(node)) == [98304] * 2

    node["status"]["allocatable"]["kunlunxin.com/vxpu"] = "0"

    assert build(node).xpus is None


def test_faults_are_told_and_do_not_stop_the_rest() -> None:
    agent = make_node_xpu(8000, 8000)
    agent["spec"]["devices"] += [{"index": 1, "id": "x", "memoryMiB": 5}, {"index": 2}, "odd"]
    found = build(make_xpu_node(mem="many", count="-1", registered="[oops"), agent)

    assert sizes(found) == [8000, 8000]
    assert found.condition is not None
    told = found.condition.message
    assert "spec.devices[3].id: Field required; it is ignored" in told
    assert "index 1 or id x is there already" in told
    assert len(found.problems) == 6


def test_numbers_beyond_reason_are_bounded() -> None:
    found = build(make_xpu_node(mem=10**18, count=10**9, cards=10**9))

    assert len(found.xpus or ()) == 64
    assert any("above 64" in it for it in found.problems)


@pytest.mark.parametrize(
    ("text", "indices", "strange"),
    [
        ("0,2", {0, 2}, 0),
        (" 1 , 3,", {1, 3}, 0),
        ("", set(), 0),
        ("1,two,-3,1e3", {1}, 3),
    ],
)
def test_unhealthy_lists_mark_no_device_that_they_do_not_name(
    text: str, indices: set[int], strange: int
) -> None:
    found, problems = read_unhealthy(text)

    assert found == indices
    assert len(problems) == strange
