"""Manifests for the topology aware scheduler run unchanged, under a policy that takes its pods over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import aligned, machine
from berthmaster_sandbox.world.numa import NumaWorld
from support.harbour import (
    POLICIES,
    apply_policy,
    create,
    is_taken_over,
    make_pod,
    new_namespace,
    program_pods,
    scale_program,
    until,
    until_bound,
    until_waiting,
)
from support.numa import (
    NFD,
    RTE,
    add_nodes,
    make_deployment,
    numa_world,
    pod_of,
    pods_of,
    until_phase,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

SAMPLE = Path(__file__).parents[2] / "config/samples/placement-policy-old-topology-scheduler.yaml"
OLD, RENAMED = "topo-aware-scheduler", "our-numa-scheduler"
NAMESPACE = "old-manifests"
GATES = [{"name": "berthmaster.io/placement"}]


def old_pod(name: str, cpu: int, scheduler: str = OLD) -> dict[str, Any]:
    """Return a pod as it was written for the old scheduler."""
    return make_pod(
        name, placement=None, select={"old": "yes"}, limits=aligned(cpu), schedulerName=scheduler
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[NumaWorld]:
    """A node with zones of 4 CPUs and one with zones of 8, and the policies in force."""
    await new_namespace(harbour, NAMESPACE)
    await harbour.kubectl("apply", "-f", str(SAMPLE))
    await apply_policy(harbour, "renamed", {"schedulerNames": ["first", RENAMED]})
    async with numa_world(harbour) as running:
        nodes = [
            ("numa-old-a", machine("single-numa-node", cpus=(4, 4)), NFD),
            ("numa-old-b", machine("single-numa-node", cpus=(8, 8)), RTE),
        ]
        await add_nodes(harbour, running, nodes, old="yes")
        for scheduler in (OLD, RENAMED):
            await until(
                partial(is_taken_over, harbour, NAMESPACE, old_pod("probe", 1, scheduler)), bool, 30
            )
        yield running
    for policy in ("old-topology-aware-scheduler", "renamed"):
        await harbour.client.delete(f"{POLICIES}/{policy}")


async def test_pod_lands_where_its_kubelet_takes_it(harbour: Sandbox, world: NumaWorld) -> None:
    stored = await create(harbour, NAMESPACE, old_pod("six", 6))

    assert stored["spec"]["schedulerName"] == "default-scheduler"
    annotations = stored["metadata"]["annotations"]
    assert annotations["berthmaster.io/replaced-scheduler"] == OLD
    assert annotations["berthmaster.io/policy"] == "old-topology-aware-scheduler"
    assert '"numa"' in annotations["berthmaster.io/allocation"]
    found = await until_phase(harbour, NAMESPACE, "six", "Running")
    assert found["spec"]["nodeName"] == "numa-old-b"


async def test_pod_that_no_zone_holds_waits_instead_of_being_refused(
    harbour: Sandbox, world: NumaWorld
) -> None:
    await create(harbour, NAMESPACE, old_pod("nine", 9))

    reason, message = await until_waiting(harbour, NAMESPACE, "nine")
    assert reason == "NoNodeFits"
    assert "cannot align container" in message
    assert world.rejections == []
    await harbour.client.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/nine")


async def test_any_name_of_a_policy_is_taken_over(harbour: Sandbox, world: NumaWorld) -> None:
    deployment = make_deployment("named", old_pod("", 4, RENAMED), replicas=2)
    await harbour.client.create(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", deployment)

    async def running() -> int:
        pods = await pods_of(harbour, NAMESPACE)
        return sum(
            pod["status"]["phase"] == "Running"
            for pod in pods
            if pod["metadata"].get("labels", {}).get("app") == "named"
        )

    await until(running, lambda count: count == 2, 40)
    assert world.rejections == []


async def test_with_no_webhook_the_pod_is_created_and_placed_later(
    harbour: Sandbox, world: NumaWorld
) -> None:
    program = "berthmaster-webhook"
    await scale_program(harbour, program, 0)
    await until(lambda: program_pods(harbour, program), lambda pods: not pods, 60)
    try:
        stored = await create(harbour, NAMESPACE, old_pod("patient", 2))
        assert stored["spec"]["schedulerName"] == "default-scheduler"
        assert stored["spec"]["schedulingGates"] == GATES
        assert "berthmaster.io/allocation" not in stored["metadata"]["annotations"]
    finally:
        await scale_program(harbour, program, 1)

    await until_bound(harbour, NAMESPACE, "patient", 90)
    found = await pod_of(harbour, NAMESPACE, "patient")
    assert '"numa"' in found["metadata"]["annotations"]["berthmaster.io/allocation"]
    await until_phase(harbour, NAMESPACE, "patient", "Running")
    assert world.rejections == []
    assert await world.judge() == []
