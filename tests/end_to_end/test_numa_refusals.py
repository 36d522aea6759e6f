"""What is learned when a kubelet turns a pod away: topologies that lie, pods bound past us, no runaway."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from berthmaster_sandbox.addresses import bind_address
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import aligned, machine
from berthmaster_sandbox.scraping import make_reader, read_metrics
from berthmaster_sandbox.world.numa import NumaWorld, UpdaterHabits
from berthmaster_sandbox.world.numa_reports import Report
from support.harbour import (
    create,
    make_pod,
    new_namespace,
    program_pods,
    until,
    until_bound,
    until_event,
    until_reason,
    until_waiting,
)
from support.numa import (
    NFD,
    READY,
    add_node,
    make_deployment,
    numa_world,
    pods_of,
    until_phase,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE = "refusals"
SMALL = machine("single-numa-node", cpus=(4, 4))


def boast(report: Report) -> Report:
    """Return a topology that tells of 64 CPUs in each zone."""
    told = copy.deepcopy(report)
    for zone in told["zones"]:
        for resource in zone["resources"]:
            if resource["name"] == "cpu":
                resource.update(capacity="64", allocatable="64", available="64")
    return told


LYING = UpdaterHabits(delay_s=0.2, distort=boast)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[NumaWorld]:
    """A namespace, and kubelets."""
    await new_namespace(harbour, NAMESPACE)
    async with numa_world(harbour) as running:
        yield running


async def refusals_counted(harbour: Sandbox) -> float:
    """Return how many TopologyAffinityErrors the webhook has counted."""
    (pod,) = await program_pods(harbour, "berthmaster-webhook")
    address = bind_address(pod["status"]["podIP"], int(pod["status"]["podIP"].split(".")[1]))
    async with aiohttp.ClientSession() as session:
        text = await read_metrics(session, address, await make_reader(harbour.client))
    name = 'berthmaster_kubelet_refusals_total{reason="TopologyAffinityError"}'
    found = re.search(f"^{re.escape(name)} (.+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def phases(harbour: Sandbox, app: str) -> list[tuple[str, str]]:
    """Return phase and node of each pod of a Deployment."""
    return sorted(
        (pod["status"]["phase"], pod["spec"].get("nodeName", ""))
        for pod in await pods_of(harbour, NAMESPACE)
        if pod["metadata"].get("labels", {}).get("app") == app
    )


async def deploy(harbour: Sandbox, name: str, pod: dict[str, Any], *, replicas: int = 1) -> None:
    await harbour.client.create(
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
        make_deployment(name, pod, replicas=replicas),
    )


async def test_replacement_of_a_pod_that_was_turned_away_lands_elsewhere(
    harbour: Sandbox, world: NumaWorld
) -> None:
    await add_node(harbour, world, "numa-liar", SMALL, LYING, ship="one")
    await add_node(harbour, world, "numa-true", machine("single-numa-node"), NFD, ship="one")
    before = await refusals_counted(harbour)

    # The node as a whole has 8 CPUs, so kube-scheduler sends it; its zones have 4 each.
    await deploy(harbour, "moves", make_pod("", select={"ship": "one"}, limits=aligned(6)))
    await until(lambda: phases(harbour, "moves"), lambda it: ("Running", "numa-true") in it, 60)

    found = await phases(harbour, "moves")
    # Its successor may have been made before anybody had seen the first one fail.
    assert found in (
        [("Failed", "numa-liar")] * count + [("Running", "numa-true")] for count in (1, 2)
    )
    assert world.rejected == {"TopologyAffinityError": len(found) - 1}
    await until(lambda: refusals_counted(harbour), lambda it: it - before == len(found) - 1, 10)
    (failed, *_) = [
        pod["metadata"]["name"]
        for pod in await pods_of(harbour, NAMESPACE)
        if pod["status"]["phase"] == "Failed"
    ]
    await until_event(
        harbour,
        failed,
        "the kubelet of numa-liar turned this pod away (TopologyAffinityError); the next pods of "
        "ReplicaSet moves-",
        namespace=NAMESPACE,
    )


async def test_refuted_topology_takes_no_aligned_pod_before_it_changes(
    harbour: Sandbox, world: NumaWorld
) -> None:
    await add_node(harbour, world, "numa-refuted", SMALL, LYING)
    await create(harbour, NAMESPACE, make_pod("first", on="numa-refuted", limits=aligned(6)))
    await until_phase(harbour, NAMESPACE, "first", "Failed")
    message = await until_reason(harbour, "numa-refuted", "Refuted", condition=READY)
    assert "the kubelet turned refusals/first away" in message

    # Of another owner, and it would fit: but by numbers that were found wrong.
    await create(harbour, NAMESPACE, make_pod("second", on="numa-refuted", limits=aligned(3)))
    _, message = await until_waiting(harbour, NAMESPACE, "second")
    assert "invalid node topology data" in message
    await create(harbour, NAMESPACE, make_pod("shared", on="numa-refuted"))
    assert await until_bound(harbour, NAMESPACE, "shared") == "numa-refuted"

    world.set_habits("numa-refuted", NFD)
    await until_reason(harbour, "numa-refuted", "Reported", condition=READY)
    await until_phase(harbour, NAMESPACE, "second", "Running")


async def test_pod_that_was_bound_past_us_refutes_as_well(
    harbour: Sandbox, world: NumaWorld
) -> None:
    await add_node(harbour, world, "numa-passed", SMALL, NFD)
    stranger = make_pod("stranger", placement=None, limits=aligned(6), nodeName="numa-passed")
    await create(harbour, NAMESPACE, stranger)

    await until_phase(harbour, NAMESPACE, "stranger", "Failed")
    message = await until_reason(harbour, "numa-passed", "Refuted", condition=READY)
    assert "the kubelet turned refusals/stranger away" in message


async def test_controller_does_not_run_away(harbour: Sandbox, world: NumaWorld) -> None:
    for at in range(3):
        await add_node(harbour, world, f"numa-trap-{at}", SMALL, LYING, ship="trap")
    await deploy(
        harbour, "trapped", make_pod("", select={"ship": "trap"}, limits=aligned(6)), replicas=3
    )

    async def waiting() -> list[str]:
        """Return why pods wait that nothing can take any more."""
        return [
            it["message"]
            for pod in await pods_of(harbour, NAMESPACE)
            if pod["metadata"].get("labels", {}).get("app") == "trapped"
            for it in pod["status"].get("conditions", ())
            if it["type"] == "berthmaster.io/Placed" and it["reason"] == "NoNodeFits"
        ]

    reasons = await until(waiting, lambda found: len(found) == 3, 90)
    assert all(
        "invalid node topology data" in it or "given up by an earlier pod" in it for it in reasons
    )
    failed = [node for phase, node in await phases(harbour, "trapped") if phase == "Failed"]
    # Each node turned away what it was sent before that was known, and nothing after.
    assert len(failed) <= 6

    await add_node(
        harbour,
        world,
        "numa-way-out",
        machine("single-numa-node", cpus=(8, 8, 8)),
        NFD,
        ship="trap",
    )
    await until(
        lambda: phases(harbour, "trapped"),
        lambda it: [node for phase, node in it if phase == "Running"] == ["numa-way-out"] * 3,
        60,
    )
    assert await world.judge() == []
