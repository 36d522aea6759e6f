"""Bad topologies and odd pods on the real cluster: told in words, and everybody else is placed.

Topologies are written here by hand, onto nodes without a kubelet of their own. The pods of the second
half meet simulated kubelets, which are the judge of what was sent to them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import GIB, GPU, aligned
from berthmaster_sandbox.world.numa import REPORTS, NumaWorld
from berthmaster_sandbox.world.numa_machines import Device, KubeletSettings, Machine, Zone
from support.harbour import (
    INVENTORIES,
    create,
    inventory_of,
    make_pod,
    new_namespace,
    program_pids,
    until,
    until_bound,
    until_reason,
    until_waiting,
)
from support.numa import READY, add_node, numa_world, until_phase

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "numa-bad-input"
HUGE = "hugepages-2Mi"
CANNOT = "cannot align container"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def namespace(harbour: Sandbox) -> AsyncIterator[str]:
    """A namespace; afterwards the operator must be the one that it was, never restarted."""
    await new_namespace(harbour, NAMESPACE)
    before = await program_pids(harbour, "berthmaster-operator")
    yield NAMESPACE
    assert await program_pids(harbour, "berthmaster-operator") == before


# What updaters publish.


def resource(name: str = "cpu", **amounts: str) -> dict[str, Any]:
    return {"name": name, "capacity": "8", "allocatable": "8", "available": "8", **amounts}


def zone(name: str = "node-0", *resources: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "Node", "resources": list(resources) or [resource()], **fields}


def topology(
    node: str, zones: list[dict[str, Any]], policy: str = "single-numa-node"
) -> dict[str, Any]:
    return {
        "apiVersion": "topology.node.k8s.io/v1alpha2",
        "kind": "NodeResourceTopology",
        "metadata": {"name": node},
        "attributes": [{"name": "topologyManagerPolicy", "value": policy}],
        "zones": zones,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Zones, what is said of them, and why a pod that asks 6 CPUs waits (empty: it does not)."""

    zones: list[dict[str, Any]] = field(default_factory=lambda: [zone()])
    policy: str = "single-numa-node"
    reason: str = "Reported"
    condition: str = ""
    waits: str = ""


def cost(name: str, value: int) -> dict[str, Any]:
    return {"name": name, "value": value}


# In each of 64 zones: more than a megabyte in all, in which each name stands once.
LONG = [resource(f"vendor.example/{at:02d}-{'x' * 80}") for at in range(110)]
FAULTS = {
    "numa-odd-policy": Fault(
        policy="SingleNUMANode",
        condition="attributes[topologyManagerPolicy]: expected one of none, best-effort, restricted, "
        'single-numa-node, found "SingleNUMANode"; none is used',
    ),
    "numa-odd-negative": Fault(
        zones=[zone("node-0", resource(available="-6"))],
        condition='zones[0].resources[cpu].available: "-6" is negative; taken as 0',
        waits=CANNOT,
    ),
    "numa-odd-above": Fault(
        zones=[zone("node-0", resource(available="9"))],
        condition="zones[0].resources[cpu]: available 9 is above allocatable 8",
    ),
    "numa-odd-twice": Fault(
        zones=[zone("node-0", resource(available="5")), zone("node-0")],
        condition="zones[1].name: node-0 is there already; only the first is read",
        waits=CANNOT,
    ),
    "numa-odd-many": Fault(
        zones=[
            zone(f"node-{at}", resource(available="6" if at == 63 else "1")) for at in range(65)
        ],
        condition='zones[64].name: expected node-<0..63>, found "node-64"; the zone is ignored',
    ),
    "numa-odd-none": Fault(
        zones=[],
        reason="NoZones",
        condition="has no zone of type Node named node-<number>",
        waits=CANNOT,
    ),
    "numa-odd-named": Fault(
        zones=[zone("numa-node-0")],
        reason="NoZones",
        condition='zones[0].name: expected node-<0..63>, found "numa-node-0"; the zone is ignored',
        waits=CANNOT,
    ),
    "numa-odd-costless": Fault(zones=[zone(), zone("node-1")], condition="2 zones"),
    "numa-odd-costs": Fault(
        zones=[
            zone(costs=[cost("node-0", 10), cost("node-1", 40), cost("elsewhere", 1)]),
            zone("node-1", costs=[cost("node-0", -12)]),
        ],
        condition="zones[1].costs[0].value: expected 0..2147483647, found -12",
    ),
}


async def write(harbour: Sandbox, obj: dict[str, Any]) -> None:
    """Create a topology, or put it in place of the one that is there."""
    try:
        await harbour.client.create(REPORTS, obj, timeout_s=30)
    except ApiError as error:
        if not error.is_already_exists:
            raise
        path = f"{REPORTS}/{obj['metadata']['name']}"
        known = await harbour.client.get(path)
        await harbour.client.replace(path, {**obj, "metadata": known["metadata"]})


async def check(harbour: Sandbox, node: str, fault: Fault) -> None:
    await write(harbour, topology(node, fault.zones, fault.policy))
    assert fault.condition in await until_reason(harbour, node, fault.reason, condition=READY)
    limits = aligned(6)
    await create(harbour, NAMESPACE, make_pod(node, on=node, limits=limits))
    if fault.waits:
        reason, message = await until_waiting(harbour, NAMESPACE, node)
        assert (reason, fault.waits in message) == ("NoNodeFits", True), message
        await write(harbour, topology(node, [zone()]))
    assert await until_bound(harbour, NAMESPACE, node) == node


async def test_bad_topologies_are_told_and_mended(harbour: Sandbox, namespace: str) -> None:
    for node in (*FAULTS, "numa-odd-sound"):
        await harbour.create_nodes(1, name=node, wait=False)
    async with asyncio.TaskGroup() as tasks:
        for node, fault in FAULTS.items():
            tasks.create_task(check(harbour, node, fault), name=node)
        tasks.create_task(check(harbour, "numa-odd-sound", Fault()))


async def test_topology_of_a_megabyte_leaves_an_inventory_that_can_be_stored(
    harbour: Sandbox, namespace: str
) -> None:
    await harbour.create_nodes(1, name="numa-odd-huge")
    huge = json.dumps(
        topology("numa-odd-huge", [zone(f"node-{at}", *LONG, resource()) for at in range(64)])
    )
    assert len(huge) > 2**20
    await harbour.kubectl("create", "-f", "-", stdin=huge)

    message = await until_reason(harbour, "numa-odd-huge", "Reported", condition=READY)
    assert "zones[0].resources: more than 8192 bytes of names and amounts" in message
    zones = (await inventory_of(harbour, "numa-odd-huge"))["zones"]
    assert [it["available"]["cpu"] for it in zones] == ["8"] * 64
    await create(harbour, NAMESPACE, make_pod("huge", on="numa-odd-huge", limits=aligned(6)))
    assert await until_bound(harbour, NAMESPACE, "huge") == "numa-odd-huge"


@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        ({"name": "cpu", "capacity": "8", "allocatable": "8"}, "available: Required value"),
        ({"name": "cpu", "capacity": "8", "available": "8"}, "allocatable: Required value"),
        (resource(available="much"), "available"),
    ],
    ids=["no-available", "no-allocatable", "no-number"],
)
async def test_api_server_refuses_what_is_no_topology(
    harbour: Sandbox, namespace: str, amounts: dict[str, Any], words: str
) -> None:
    with pytest.raises(ApiError) as caught:
        await harbour.client.create(
            REPORTS, topology("numa-odd-refused", [zone("node-0", amounts)])
        )

    assert caught.value.status == 422
    assert words in caught.value.message


async def test_topology_of_no_node_is_kept_for_the_node_that_comes(
    harbour: Sandbox, namespace: str
) -> None:
    await write(harbour, topology("numa-odd-unborn", [zone()]))
    # Another one that is written later is in: so the first has been seen, too.
    await write(harbour, topology("numa-odd-sound", [zone("node-3")]))
    await until(
        lambda: inventory_of(harbour, "numa-odd-sound"), lambda it: it["zones"][0]["id"] == 3, 30
    )
    assert await inventory_of(harbour, "numa-odd-unborn") == {}

    await harbour.create_nodes(1, name="numa-odd-unborn")
    await until_reason(harbour, "numa-odd-unborn", "Reported", condition=READY)
    found = await harbour.client.get(f"{INVENTORIES}/numa-odd-unborn")
    assert found["metadata"]["ownerReferences"][0]["kind"] == "Node"


# What pods ask.

MACHINE = Machine(
    zones=(
        Zone(id=0, cpus=9, memory=33 * GIB, reserved_cpus=1, reserved_memory={"memory": GIB}),
        Zone(
            id=1,
            cpus=9,
            memory=33 * GIB,
            hugepages={HUGE: GIB},
            reserved_cpus=1,
            reserved_memory={"memory": GIB},
        ),
    ),
    devices=(Device(resource=GPU, id="gpu-0", zones=(0,)),),
    settings=KubeletSettings(
        topology_manager_policy="single-numa-node",
        cpu_manager_policy="static",
        memory_manager_policy="Static",
    ),
)
NODE = "numa-numa-odd-pods"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox, namespace: str) -> AsyncIterator[NumaWorld]:
    """A node with a kubelet; huge pages are in zone 1 alone, the GPU in zone 0."""
    async with numa_world(harbour) as running:
        await add_node(harbour, running, NODE, MACHINE)
        yield running


def odd_pod(name: str, limits: dict[str, str], *, init: dict[str, str] | None = None) -> Any:
    pod = make_pod(name, on=NODE, limits=limits)
    if init is not None:
        container = {"name": "before", "image": "any", "resources": {"limits": init}}
        pod["spec"]["initContainers"] = [container]
    return pod


@pytest.mark.parametrize(
    ("limits", "init", "words"),
    [
        (aligned(9), None, CANNOT),
        ({**aligned(1), "memory": "40Gi"}, None, CANNOT),
        ({**aligned(2), HUGE: "2Gi"}, None, f"Insufficient {HUGE}"),
        # Each zone has one of the two.
        ({**aligned(2, gpu=1), HUGE: "512Mi"}, None, CANNOT),
        ({**aligned(1), "vendor.example/unheard": "1"}, None, "vendor.example/unheard"),
        (aligned(1), aligned(9), "cannot align init container"),
        ({"cpu": "9E", "memory": "1Gi"}, None, "Insufficient cpu"),
    ],
    ids=["cpu", "memory", "hugepages", "torn", "unheard", "init", "absurd"],
)
async def test_pod_that_no_zone_can_hold_waits_with_words(
    harbour: Sandbox,
    world: NumaWorld,
    limits: dict[str, str],
    init: dict[str, str] | None,
    words: str,
    request: pytest.FixtureRequest,
) -> None:
    name = f"waits-{request.node.callspec.id}"
    await create(harbour, NAMESPACE, odd_pod(name, limits, init=init))

    reason, message = await until_waiting(harbour, NAMESPACE, name)
    assert (reason, words in message) == ("NoNodeFits", True), message


@pytest.mark.parametrize(
    ("limits", "init"),
    [
        # Nobody's own CPUs, so that nothing is aligned but its memory.
        ({"cpu": "1500m", "memory": "1Gi"}, None),
        ({"cpu": "500m", "memory": "1Gi", GPU: "1"}, None),
        ({**aligned(2), HUGE: "512Mi"}, None),
        (aligned(1), aligned(7)),
        ({"cpu": "0", "memory": "0"}, None),
    ],
    ids=["fraction", "fraction-with-device", "hugepages", "init", "nothing"],
)
async def test_odd_pod_that_a_zone_can_hold_is_taken_by_its_kubelet(
    harbour: Sandbox,
    world: NumaWorld,
    limits: dict[str, str],
    init: dict[str, str] | None,
    request: pytest.FixtureRequest,
) -> None:
    name = f"runs-{request.node.callspec.id}"
    await create(harbour, NAMESPACE, odd_pod(name, limits, init=init))

    await until_phase(harbour, NAMESPACE, name, "Running")
    await harbour.client.delete(
        f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", query={"gracePeriodSeconds": 0}
    )
    assert world.rejections == []
    assert await world.judge() == []


async def test_odd_mode_is_refused_with_the_way_out(harbour: Sandbox, namespace: str) -> None:
    pod = make_pod("numa-odd-mode", limits=aligned(1))
    pod["metadata"]["annotations"]["berthmaster.io/numa"] = "stricter"

    with pytest.raises(ApiError) as caught:
        await create(harbour, NAMESPACE, pod)

    assert caught.value.status == 422
    for part in ('found "stricter"', "strict, prefer, ignore", "berthmaster.io/placement: off"):
        assert part in caught.value.message
