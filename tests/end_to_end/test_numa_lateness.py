"""Updaters that are late, die, change their dialect and lose their objects: no kubelet turns a pod away.

Pods of many sizes come and go all the while. The judge is the simulated kubelets' own admission.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import aligned, machine
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.numa import REPORTS, NumaWorld, UpdaterHabits
from berthmaster_sandbox.world.numa_reports import ALL_PODS, Dialect, ReportHabits
from support.harbour import (
    POLICIES,
    apply_policy,
    create,
    make_pod,
    new_namespace,
    unless_missing,
    until,
)
from support.numa import add_nodes, numa_world, pods_of, zones_of

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]

NAMESPACE = "lateness"
SHIP = {"ship": "late"}
BLIND = "numa-late-blind"
# How many pods come between two blows.
BETWEEN = 12
CREATORS = 3


def late(dialect: Dialect, *, has_fingerprint: bool = True, **report: Any) -> UpdaterHabits:
    habits = ReportHabits(dialect=dialect, has_fingerprint=has_fingerprint, **report)
    return UpdaterHabits(delay_s=1.0, jitter_s=1.0, lag_s=0.5, report=habits)


NODES = {
    "numa-late-0": (machine("single-numa-node"), late(Dialect.NFD)),
    "numa-late-1": (machine("single-numa-node", scope="pod"), late(Dialect.RTE)),
    "numa-late-2": (machine("restricted"), late(Dialect.NFD, has_fingerprint=False)),
    "numa-late-3": (machine("single-numa-node"), late(Dialect.RTE, has_fingerprint=False)),
    "numa-late-4": (machine("restricted", scope="pod"), late(Dialect.RTE, method=ALL_PODS)),
    "numa-late-5": (machine("best-effort"), late(Dialect.NFD)),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[NumaWorld]:
    """Nodes of each policy, told of in each dialect, one of them never; their kubelets refuse nothing."""
    await new_namespace(harbour, NAMESPACE)
    numa = {"whenMissing": "Refuse", "restricted": "Predict"}
    spec = {"podSelector": {"matchLabels": SHIP}, "concerns": {"numa": numa}}
    await apply_policy(harbour, "lateness", spec)
    async with numa_world(harbour, seed=5) as running:
        nodes = [(name, *node) for name, node in NODES.items()]
        await add_nodes(harbour, running, nodes, ship="late")
        silent = UpdaterHabits(distort=lambda _: None)
        await running.add_node(BLIND, machine("single-numa-node"), habits=silent, labels=SHIP)
        await wait_nodes_ready(harbour.client, [BLIND])
        yield running
    await harbour.client.delete(f"{POLICIES}/lateness")


class Traffic:
    """Pods that come and go until told to stop; most that come are aligned."""

    def __init__(self, harbour: Sandbox) -> None:
        self._harbour = harbour
        self._rng = random.Random(7)  # noqa: S311 - no secret
        self._is_over = False
        self.created = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CREATORS):
                tasks.create_task(self._come_and_go())

    def stop(self) -> None:
        self._is_over = True

    async def more(self, count: int = BETWEEN) -> None:
        """Wait until so many more pods were created."""
        wanted = self.created + count

        async def created() -> int:
            return self.created

        await until(created, lambda it: it >= wanted, 60)

    async def _come_and_go(self) -> None:
        while not self._is_over:
            self.created += 1
            cpus = self._rng.choice((1, 2, 2, 3, 3, 4, 5, 6))
            limits = aligned(cpus) if self._rng.random() < 0.9 else None
            pod = make_pod(f"ship-{self.created}", select=SHIP, labels=SHIP, limits=limits)
            await create(self._harbour, NAMESPACE, pod)
            pods = await pods_of(self._harbour, NAMESPACE)
            # About as many as the nodes hold, so that zones are full and come free.
            if len(pods) > 36:
                gone = self._rng.choice(pods)["metadata"]["name"]
                path = f"/api/v1/namespaces/{NAMESPACE}/pods/{gone}"
                await unless_missing(
                    self._harbour.client.delete(path, query={"gracePeriodSeconds": 0})
                )


def free_of(world: NumaWorld, node: str) -> dict[int, int]:
    """Return the CPUs that a kubelet has left in each zone."""
    kubelet = world.kubelet(node)
    return {zone.id: kubelet.free_cpus(zone.id) for zone in kubelet.machine.zones}


async def test_no_pod_is_turned_away_whatever_becomes_of_the_updaters(
    harbour: Sandbox, world: NumaWorld
) -> None:
    async def lose_report() -> None:
        """Have a topology deleted, and made anew by its updater's restart."""
        world.stop_updater("numa-late-0")
        await harbour.client.delete(f"{REPORTS}/numa-late-0")
        await traffic.more()
        world.start_updater("numa-late-0")

    async def die_and_come_back() -> None:
        world.stop_updater("numa-late-1")
        await traffic.more()
        world.start_updater("numa-late-1")

    async def restart() -> None:
        world.stop_updater("numa-late-3")
        world.start_updater("numa-late-3")

    async def change_dialect() -> None:
        world.set_habits("numa-late-2", late(Dialect.RTE))
        world.set_habits("numa-late-4", late(Dialect.NFD, has_fingerprint=False))

    async def grow_slow() -> None:
        world.set_habits("numa-late-3", UpdaterHabits(delay_s=8.0, lag_s=2.0))

    blows: tuple[Callable[[], Awaitable[None]], ...] = (
        lose_report, die_and_come_back, restart, change_dialect, grow_slow, lose_report
    )  # fmt: skip
    traffic = Traffic(harbour)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(traffic.run())
        try:
            await traffic.more(36)
            for blow in blows:
                await blow()
                await traffic.more()
        finally:
            traffic.stop()

    assert traffic.created > 100
    assert world.admitted > 60
    assert world.rejections == []
    assert world.overfilled == ()
    assert await world.judge() == []
    aligned_pods = [
        it for it in await pods_of(harbour, NAMESPACE) if it["status"]["qosClass"] == "Guaranteed"
    ]
    assert BLIND not in {pod["spec"].get("nodeName") for pod in aligned_pods}


async def test_inventories_say_in_the_end_what_kubelets_have(
    harbour: Sandbox, world: NumaWorld
) -> None:
    async def different() -> list[str]:
        """Return the nodes whose inventory says something else than their kubelet's books."""
        return [
            node
            for node in NODES
            if {id_: int(free["cpu"]) for id_, free in (await zones_of(harbour, node)).items()}
            != free_of(world, node)
        ]

    await until(different, lambda found: not found, 60)
