"""What end-to-end tests of NUMA share: nodes with zones, their inventories, their topologies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.numa import NODES, REPORTS, NumaWorld, UpdaterHabits
from berthmaster_sandbox.world.numa_machines import Machine
from berthmaster_sandbox.world.numa_reports import Dialect, ReportHabits
from support.harbour import inventory_of, unless_missing, until

READY = "TopologyReady"
NFD = UpdaterHabits(delay_s=0.2)
RTE = UpdaterHabits(delay_s=0.2, report=ReportHabits(dialect=Dialect.RTE))


@asynccontextmanager
async def numa_world(harbour: Sandbox, *, seed: int = 0) -> AsyncIterator[NumaWorld]:
    """A world of nodes with zones; its nodes and their topologies go with it."""
    async with NumaWorld(harbour.client, seed=seed) as running:
        yield running
    listed = await harbour.client.get(NODES)
    names = [it["metadata"]["name"] for it in listed["items"]]
    for name in (it for it in names if it.startswith("numa-")):
        for path in (f"{NODES}/{name}", f"{REPORTS}/{name}"):
            await unless_missing(harbour.client.delete(path))


async def add_node(
    harbour: Sandbox,
    world: NumaWorld,
    name: str,
    machine: Machine,
    habits: UpdaterHabits = NFD,
    **labels: str,
) -> None:
    """Add a Ready node with zones and wait for them in its inventory."""
    await world.add_node(name, machine, habits=habits, labels=labels)
    await wait_nodes_ready(harbour.client, [name])
    await until_zones(harbour, name, bool)


async def add_nodes(
    harbour: Sandbox,
    world: NumaWorld,
    nodes: Iterable[tuple[str, Machine, UpdaterHabits]],
    **labels: str,
) -> None:
    """Add several, at the same time."""
    async with asyncio.TaskGroup() as tasks:
        for name, machine, habits in nodes:
            tasks.create_task(add_node(harbour, world, name, machine, habits, **labels))


async def zones_of(harbour: Sandbox, node: str) -> dict[int, dict[str, str]]:
    """Return what a node's inventory says is available, by zone and resource."""
    zones = (await inventory_of(harbour, node)).get("zones") or ()
    return {zone["id"]: zone.get("available", {}) for zone in zones}


async def until_zones(
    harbour: Sandbox, node: str, is_enough: Callable[[dict[int, dict[str, str]]], bool]
) -> None:
    """Wait until a node's inventory has such zones."""
    await until(lambda: zones_of(harbour, node), is_enough, 40)


async def pods_of(harbour: Sandbox, namespace: str) -> list[dict[str, Any]]:
    """Return a namespace's pods."""
    found: list[dict[str, Any]] = (
        await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods")
    )["items"]
    return found


async def pod_of(harbour: Sandbox, namespace: str, name: str) -> dict[str, Any]:
    """Return a pod."""
    return await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")


async def until_phase(harbour: Sandbox, namespace: str, name: str, phase: str) -> dict[str, Any]:
    """Wait until a pod is in a phase; return it."""
    found: dict[str, Any] = await until(
        lambda: pod_of(harbour, namespace, name), lambda pod: pod["status"]["phase"] == phase, 40
    )
    return found


def make_deployment(name: str, pod: dict[str, Any], *, replicas: int = 1) -> dict[str, Any]:
    """Return a Deployment of pods such as this."""
    labels = {"app": name}
    metadata = {**pod["metadata"], "labels": {**pod["metadata"]["labels"], **labels}}
    template = {"metadata": metadata, "spec": pod["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }
