"""A burst against disks that cannot hold it: what fits is bound, what does not says why."""

from __future__ import annotations

import asyncio

import pytest

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import (
    apply_models,
    clear,
    create,
    io,
    kill_program,
    make_pod,
    new_namespace,
    recount,
    until,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(420),
]

NODES = 6
PODS_PER_DISK = 20
CREATED = 200
FITTING = NODES * PODS_PER_DISK


async def prepare(harbour: Sandbox, world: DiskWorld, label: str) -> None:
    """Make nodes whose disks hold `PODS_PER_DISK` pods each, and wait for their inventories."""
    await apply_models(harbour)
    nodes = await harbour.create_nodes(
        NODES, labels={"burst": label}, name=label + "-{index}", first=1
    )
    for node in nodes:
        await world.add_node(node, devices={"d": disk(1000, 1000, 2000)})

    async def reported() -> int:
        found = await harbour.client.get("/apis/berthmaster.io/v1alpha1/nodeinventories")
        disks = [it.get("status", {}).get("disks") for it in found["items"]
                 if it["metadata"]["name"] in nodes]  # fmt: skip
        return sum(bool(it and it[0].get("allocable") and it[0].get("function")) for it in disks)

    await until(reported, lambda count: count == NODES, 60)


async def create_all(harbour: Sandbox, namespace: str, label: str) -> None:
    indices = iter(range(CREATED))

    async def create_some() -> None:
        for index in indices:
            pod = make_pod(f"{label}-{index:03d}", request=io(), select={"burst": label})
            await create(harbour, namespace, pod)

    await asyncio.gather(*(create_some() for _ in range(16)))


async def test_exactly_what_fits_is_bound(harbour: Sandbox) -> None:
    async with DiskWorld(harbour.client) as world:
        await prepare(harbour, world, "calm")
        namespace = await new_namespace(harbour, "burst-calm")

        await create_all(harbour, namespace, "calm")

        goal = (FITTING, CREATED - FITTING, 0)
        await until(lambda: recount(harbour, namespace), lambda it: it == goal, 120)
        assert await world.judge() == []
        assert world.overflows == ()

        # What leaves makes room for as many, and for no more.
        for index in range(CREATED):
            pod = await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods/calm-{index:03d}")
            if pod["spec"].get("nodeName"):
                await harbour.client.delete(
                    f"/api/v1/namespaces/{namespace}/pods/calm-{index:03d}",
                    query={"gracePeriodSeconds": 0},
                )
                break
        goal = (FITTING, CREATED - FITTING - 1, 0)
        await until(lambda: recount(harbour, namespace), lambda it: it == goal, 60)
        assert world.overflows == ()
        await clear(harbour, namespace)


async def test_webhook_killed_in_the_middle_changes_nothing(harbour: Sandbox) -> None:
    async with DiskWorld(harbour.client) as world:
        await prepare(harbour, world, "storm")
        namespace = await new_namespace(harbour, "burst-storm")

        creating = asyncio.create_task(create_all(harbour, namespace, "storm"))
        await until(lambda: recount(harbour, namespace), lambda it: sum(it) > CREATED // 4, 60)
        await kill_program(harbour, "berthmaster-webhook")
        await creating

        # The new process waits out the lease and every answer of its predecessor first.
        goal = (FITTING, CREATED - FITTING, 0)
        await until(lambda: recount(harbour, namespace), lambda it: it == goal, 240)
        assert await world.judge() == []
        assert world.overflows == ()
        await clear(harbour, namespace)


async def test_operator_and_api_server_restarts_converge(harbour: Sandbox) -> None:
    async with DiskWorld(harbour.client) as world:
        await prepare(harbour, world, "quake")
        namespace = await new_namespace(harbour, "burst-quake")

        await create_all(harbour, namespace, "quake")
        await kill_program(harbour, "berthmaster-operator")
        await harbour.restart_apiserver()

        goal = (FITTING, CREATED - FITTING, 0)
        await until(lambda: recount(harbour, namespace), lambda it: it == goal, 240)
        assert await world.judge() == []
        assert world.overflows == ()

        # The operator is back when the drivers hear of the pods that are there.
        async def listed() -> set[str]:
            path = "/apis/diskio.x-k8s.io/v1alpha1/nodediskiostats"
            stats = (await harbour.client.get(path))["items"]
            return {uid for it in stats for uid in it["spec"].get("reservedPods", ())}

        pods = (await harbour.client.get(f"/api/v1/namespaces/{namespace}/pods"))["items"]
        wanted = {it["metadata"]["uid"] for it in pods if it["spec"].get("nodeName")}
        await until(listed, lambda uids: wanted <= uids, 120)
        await clear(harbour, namespace)
