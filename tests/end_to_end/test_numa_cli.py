"""NUMA as users hold it in their hands: kubectl's columns and warnings, and what the commands say."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import aligned, machine
from berthmaster_sandbox.world.numa import NumaWorld
from support.commands import BERTH, ask, ask_for_data, run
from support.harbour import create, inventory_of, make_pod, new_namespace, until
from support.numa import RTE, add_node, numa_world, until_phase, until_zones

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "numa-cli"
# Times of the API server are whole seconds: the updater writes in a later one than the pod came in.
LATER = replace(RTE, delay_s=1.2)
NODE = "numa-cli"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[NumaWorld]:
    """A node of two zones of 8 CPUs, told of with its containers' zones, and a pod of 6 there."""
    await new_namespace(harbour, NAMESPACE)
    async with numa_world(harbour) as running:
        await add_node(harbour, running, NODE, machine("single-numa-node"), LATER)
        await create(harbour, NAMESPACE, sized("placed", 6))
        await until_phase(harbour, NAMESPACE, "placed", "Running")
        await until_zones(harbour, NODE, lambda zones: zones[0]["cpu"] == "2")
        yield running


def sized(name: str, cpus: int) -> dict[str, Any]:
    return make_pod(name, on=NODE, limits=aligned(cpus))


async def topology(harbour: Sandbox) -> dict[str, Any]:
    found: dict[str, Any] = (await inventory_of(harbour, NODE)).get("topology", {})
    return found


async def test_columns_show_free_cpus_and_how_zones_are_used(
    harbour: Sandbox, world: NumaWorld
) -> None:
    code, output, errors = await run(
        harbour, str(harbour.binaries.kubectl), "get", "nodeinventories", NODE, "-o", "wide"
    )

    assert (code, errors) == (0, "")
    head, row = (line.split() for line in output.splitlines())
    assert {"FREE-CPUS", "TOPOLOGY", "NUMA-POLICY", "NUMA-SCOPE"} <= set(head)
    assert "0: 2/8, 1: 8/8" in output
    assert row[-2:] == ["single-numa-node", "container"]


async def test_why_compares_prediction_and_sight(harbour: Sandbox, world: NumaWorld) -> None:
    await until(lambda: topology(harbour), lambda it: it.get("reportedZones") == ["0"], 30)

    output = await ask(harbour, "why", "placed", "-n", NAMESPACE)
    data = await ask_for_data(harbour, "why", "placed", "-n", NAMESPACE)

    assert "NUMA zone: 0 predicted; 0 seen, as predicted" in " ".join(output.split())
    assert data["zones"] == {"predicted": [0], "seen": [0]}


async def test_capacity_and_simulate_know_zones(
    harbour: Sandbox, world: NumaWorld, tmp_path: Path
) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(sized("three", 3)))
    found = await ask_for_data(harbour, "capacity", "-f", str(file), "-n", NAMESPACE)
    (node,) = (it for it in found["nodes"] if it["node"] == NODE)

    # 2 and 8 CPUs are 10, and hold two of 3 and not three.
    assert (found["count"], node["fit"]) == (2, 2)
    assert [(it["zone"], it["free"]["cpu"], it["fit"]) for it in node["zones"]] == [
        (0, "2", 0),
        (1, "8", 2),
    ]

    file.write_text(json.dumps(sized("nine", 9)))
    code, output, _ = await run(harbour, BERTH, "simulate", "-f", str(file), "-n", NAMESPACE)
    assert code == 3
    assert "c asks 9 cpu, best zone node-1 has 8; fits if the limit were 8" in output


async def test_doctor_finds_the_topology_and_the_node_that_has_none(
    harbour: Sandbox, world: NumaWorld
) -> None:
    _, output, _ = await run(harbour, BERTH, "doctor", "-o", "json")
    told = [it["found"] for it in json.loads(output)["findings"] if it["part"] == "NUMA"]

    assert any(re.search(r"\d single-numa-node, scope container", it) for it in told)
    assert any("with topologies to rely upon" in it for it in told)


async def test_creator_is_warned_of_what_will_not_be_aligned(
    harbour: Sandbox, world: NumaWorld, tmp_path: Path
) -> None:
    pod = make_pod("half", on=NODE, limits={"cpu": "1500m", "memory": "1Gi"})
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(pod))
    create_dry = ("create", "--dry-run=server", "-n", NAMESPACE, "-f", str(file))
    code, _, errors = await run(harbour, str(harbour.binaries.kubectl), *create_dry)

    assert code == 0
    assert errors == (
        "Warning: NUMA: CPUs and memory will not be aligned: container c asks 1.5, no whole number\n"
    )


async def test_room_of_a_pod_that_ends_is_given_away_at_once(
    harbour: Sandbox, world: NumaWorld
) -> None:
    """The updater does not look any more; it had told where the pod lay."""
    await until(lambda: topology(harbour), lambda it: it.get("reportedZones") == ["0"], 30)
    world.stop_updater(NODE)
    await harbour.client.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/placed")

    await create(harbour, NAMESPACE, sized("heir-a", 8))
    await create(harbour, NAMESPACE, sized("heir-b", 8))

    for name in ("heir-a", "heir-b"):
        await until_phase(harbour, NAMESPACE, name, "Running")
    assert dict(world.rejected) == {}
