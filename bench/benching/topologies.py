"""Nodes with NUMA zones on a real control plane, for pods that are to be aligned there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benching.hands import for_each
from berthmaster.cluster.client import Client
from berthmaster_sandbox.world.numa import REPORTS
from berthmaster_sandbox.world.numa_kubelet import NumaKubelet
from berthmaster_sandbox.world.numa_machines import (
    Device,
    KubeletSettings,
    Machine,
    Zone,
)
from berthmaster_sandbox.world.numa_reports import ReportHabits, build_report

GPU = "vendor.example/gpu"
GIB = 2**30
INVENTORIES = "/apis/berthmaster.io/v1alpha1/nodeinventories"
_POLL_S = 1.0


def build_machine(zones: int) -> Machine:
    """Return a machine of so many zones, each of 16 CPUs, 64 GiB and two GPUs; what is aligned is one zone's."""
    return Machine(
        zones=tuple(
            Zone(
                id=id_,
                cpus=16,
                memory=64 * GIB,
                reserved_cpus=0 if id_ else 1,
                reserved_memory={} if id_ else {"memory": GIB},
            )
            for id_ in range(zones)
        ),
        devices=tuple(
            Device(resource=GPU, id=f"gpu-{zone}-{index}", zones=(zone,))
            for zone in range(zones)
            for index in range(2)
        ),
        settings=KubeletSettings(
            topology_manager_policy="single-numa-node",
            cpu_manager_policy="static",
            memory_manager_policy="Static",
        ),
        max_pods=1000,
    )


async def write_topology(client: Client, name: str, machine: Machine) -> None:
    """Write once what a node's updater would publish while no pod is there. Raises ClusterError."""
    report = build_report(name, NumaKubelet(machine), ReportHabits())
    await client.create(REPORTS, report, timeout_s=60)


async def write_topologies(client: Client, nodes: Sequence[str], machine: Machine) -> None:
    """Write the same for many nodes. Raises an ExceptionGroup of ClusterErrors."""
    await for_each(nodes, lambda name: write_topology(client, name, machine))


async def until_published(client: Client, count: int, *, field: str, deadline_s: float) -> None:
    """Wait until so many inventories have a part of their status. Raises TimeoutError, ClusterError."""
    await until_inventories(
        client, count, lambda status: bool(status.get(field)), deadline_s=deadline_s
    )


async def until_inventories(
    client: Client,
    count: int,
    is_there: Callable[[Mapping[str, Any]], bool],
    *,
    deadline_s: float,
) -> None:
    """Wait until so many inventories have a status that will do. Raises TimeoutError, ClusterError."""
    async with asyncio.timeout(deadline_s):
        while True:
            items = (await client.get(INVENTORIES, timeout_s=60))["items"]
            if sum(is_there(it.get("status", {})) for it in items) >= count:
                return
            # Listing thousands of inventories is work for the API server.
            await asyncio.sleep(_POLL_S + count / 1000)
