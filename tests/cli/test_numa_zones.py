"""`capacity`, `simulate` and `why` about NUMA zones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from berthmaster.api import names
from berthmaster.cli import words
from cli.harbour import INVENTORIES, NODES, allocation, furnish, manifest
from cli.test_main import run_against
from cli.test_what_if import ask, wanted
from support.builders import make_node_manifest, make_zoned_inventory
from support.fake_api import FakeApi, Json


def guaranteed(name: str, *cpus: str) -> Json:
    containers = [
        {"name": f"c{at}", "resources": {"limits": {"cpu": cpu, "memory": "1Gi"}}}
        for at, cpu in enumerate(cpus)
    ]
    return wanted(name, containers=containers)


def furnish_zones(api: FakeApi, *pods: Json) -> None:
    """wide-a has zones of 10 and 6 free CPUs, wide-b of 4 and 4; narrow nodes have no room."""
    furnish(api, *pods)
    for name, free in {"wide-a": ("10", "6"), "wide-b": ("4", "4")}.items():
        api.put(NODES, make_node_manifest(name, cpu="32", memory="64Gi"))
        api.put(INVENTORIES, make_zoned_inventory(name, *free))


async def test_capacity_is_that_of_the_zones(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish_zones(api)
        code, data, _ = await ask(api, tmp_path, "capacity", guaranteed("new", "5"))

    nodes = {it["node"]: it for it in data["nodes"]}
    # 16 CPUs would hold three; 10 and 6 hold two and one, 4 and 4 none.
    assert (code, data["count"], nodes["wide-a"]["fit"], nodes["wide-b"]["fit"]) == (0, 3, 3, 0)
    assert nodes["wide-a"]["zones"] == [
        {
            "zone": 0,
            "free": {"cpu": "10"},
            "total": {"cpu": "16"},
            "fit": 2,
            "left": {"cpu": "0"},
        },
        {
            "zone": 1,
            "free": {"cpu": "6"},
            "total": {"cpu": "16"},
            "fit": 1,
            "left": {"cpu": "1"},
        },
    ]
    assert nodes["wide-b"]["detail"] == (
        "c0 asks 5 cpu, best zone node-0 has 4; fits if the limit were 4"
    )
    assert "zones" not in nodes["node-a"]
    # 1/5 is left on the one, 4/5 on the other: one more if it were together.
    assert {"reason": "cannot align container", "nodes": 2, "pods": 1} in data["fragments"]


async def test_capacity_shows_zones_to_people(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish_zones(api)
        file = tmp_path / "pod.json"
        file.write_text(json.dumps(guaranteed("new", "5")))
        _, out, _ = await run_against(api, tmp_path, "capacity", "-f", str(file), "-n", "default")

    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "NODE ZONE FREE NOW FIT LEFT THEN" in lines
    assert "wide-a 0 cpu 10 of 16 2 cpu 0 of 16" in lines
    assert "wide-b 1 cpu 4 of 16 0 cpu 4 of 16" in lines


async def test_pods_that_ask_nothing_of_zones_see_none(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish_zones(api)
        _, data, _ = await ask(api, tmp_path, "capacity", wanted(), options=("--max", "5"))

    assert not any("zones" in it for it in data["nodes"])


async def test_simulate_names_the_nearest_zone_and_what_would_help(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish_zones(api)
        code, data, _ = await ask(api, tmp_path, "simulate", guaranteed("new", "12"))

    found = data["workloads"][0]
    assert code == 3
    assert found["sentence"].endswith(
        "nearest is wide-a, c0 asks 12 cpu, best zone node-0 has 10; fits if the limit were 10."
    )
    assert found["help"][0] == {
        "where": "wide-a",
        "what": "more room, or asking for less: c0 asks 12 cpu, best zone node-0 has 10; "
        "fits if the limit were 10",
    }
    assert any(it.endswith("turn the pod away: TopologyAffinityError") for it in data["notes"])
    zones = next(it["zones"] for it in found["nodes"] if it["node"] == "wide-b")
    assert [it["free"] for it in zones] == [{"cpu": "4"}, {"cpu": "4"}]


async def test_simulate_names_the_pod_whose_end_would_make_room_in_a_zone(tmp_path: Path) -> None:
    limits = {"limits": {"cpu": "4", "memory": "1Gi"}}
    there = manifest(
        "there",
        node="wide-b",
        phase="Running",
        containers=[{"name": "c", "resources": limits}],
        decision=allocation(node="wide-b", allocated={"numa": {"zones": {"1": {"cpu": "4"}}}}),
    )
    async with FakeApi() as api:
        furnish_zones(api, there)
        # The updater counts it, and does not tell where it lies.
        api.put(INVENTORIES, make_zoned_inventory("wide-a", "1", "1"))
        told = make_zoned_inventory("wide-b", "4", "8", reportedPods=["uid-there"])
        api.put(INVENTORIES, told)
        _, data, _ = await ask(api, tmp_path, "simulate", guaranteed("new", "12"))

    assert {"where": "wide-b", "what": "the end of default/there"} in data["workloads"][0]["help"]


async def test_simulate_says_which_zone_gives_what(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish_zones(api)
        _, data, _ = await ask(api, tmp_path, "simulate", guaranteed("new", "9", "6"))

    # The first takes the lower zone, so only the other is left for the second.
    given = data["workloads"][0]["decision"]["allocated"]["numa"]
    assert words.allocated(given) == "zone 0: 9 cpu; zone 1: 6 cpu"


async def test_why_shows_the_zones_of_waiting_and_of_placed_pods(tmp_path: Path) -> None:
    limits = {"limits": {"cpu": "12", "memory": "1Gi"}}
    waiting = manifest(gates=(names.GATE,), containers=[{"name": "c0", "resources": limits}])
    given = {"numa": {"zones": {"0": {"cpu": "4", "memory": "8589934592"}}}}
    placed = manifest("placed", node="node-a", decision=allocation(allocated=given))
    async with FakeApi() as api:
        furnish_zones(api, waiting, placed)
        _, told, _ = await run_against(api, tmp_path, "why", "pod1", "-n", "default")
        _, of_placed, _ = await run_against(api, tmp_path, "why", "placed", "-n", "default")

    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "wide-a 0 single-numa-node cpu 10 of 16" in lines
    assert "NUMA zone: 0 predicted; not told where the kubelet put it" in " ".join(
        of_placed.split()
    )
    assert "zone 0: 4 cpu, 8Gi memory" in of_placed


@pytest.mark.parametrize(
    ("predicted", "seen", "words"),
    [
        ("0", "0,-", "NUMA zone: 0 predicted; 0 seen, as predicted"),
        ("0", "1,0", "NUMA zone: 0 predicted; 0 and 1 seen, not as predicted"),
        ("", "1", "NUMA zone: 1 seen"),
    ],
)
async def test_why_shows_where_the_updater_saw_a_pod(
    predicted: str, seen: str, words: str, tmp_path: Path
) -> None:
    given = {"numa": {"zones": {predicted: {"cpu": "4"}}}} if predicted else {}
    placed = manifest("placed", node="wide-a", decision=allocation(allocated=given))
    async with FakeApi() as api:
        furnish_zones(api, placed)
        told = make_zoned_inventory(
            "wide-a", "4", "4", reportedPods=["uid-placed"], reportedZones=[seen]
        )
        api.put(INVENTORIES, told)
        _, out, _ = await run_against(api, tmp_path, "why", "placed", "-n", "default")
        _, data, _ = await run_against(
            api, tmp_path, "why", "placed", "-n", "default", "-o", "json"
        )

    assert words in " ".join(out.split())
    assert json.loads(data)["zones"]["seen"] == sorted({int(it) for it in seen if it.isdigit()})


@pytest.mark.parametrize("given", [{}, {"zones": "all"}, {"zones": {"0": 3}}, {"zones": None}])
def test_allocations_of_any_form_are_shown(given: Json) -> None:
    assert "zone 0:" not in words.allocated(given)


async def test_simulate_warns_of_what_kubelets_will_not_align(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish_zones(api)
        fractional = guaranteed("new", "2500m")
        _, data, _ = await ask(api, tmp_path, "simulate", fractional)
        left = {**fractional, "metadata": {"name": "new"}}
        _, of_others, _ = await ask(api, tmp_path, "simulate", left)

    warning = (
        "default/new: NUMA: CPUs and memory will not be aligned: container c0 asks 2.5, "
        "no whole number"
    )
    assert warning in data["notes"]
    assert warning not in of_others["notes"]
