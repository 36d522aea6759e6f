"""The queue on a real control plane: who goes first after an outage, and where preemption works."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.cluster.client import PatchKind
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import wait_installed
from support.harbour import (
    clear,
    create,
    make_pod,
    new_namespace,
    node_of,
    program_pods,
    scale_program,
    until,
    until_bound,
    until_waiting,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]

NAMESPACE = "queue"
SLOT = "queue.example/slot"
CLASSES = {"queue-low": 10, "queue-high": 1000}
PODS, SLOTS = 300, 240
CREATORS = 8


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def namespace(harbour: Sandbox) -> None:
    """A namespace, and two classes of priority."""
    await new_namespace(harbour, NAMESPACE)
    for name, value in CLASSES.items():
        manifest = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        }
        await harbour.client.create("/apis/scheduling.k8s.io/v1/priorityclasses", manifest)


def slotted(name: str, *, priority: str = "queue-low", **further: Any) -> dict[str, Any]:
    """Return a pod that asks for one slot."""
    return make_pod(name, limits={SLOT: "1"}, priorityClassName=priority, **further)


async def pods_of(harbour: Sandbox, prefix: str) -> list[dict[str, Any]]:
    found = await harbour.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods")
    return [pod for pod in found["items"] if pod["metadata"]["name"].startswith(prefix)]


async def fill(harbour: Sandbox, node: str) -> None:
    """Have a node of one slot with a plain pod of low priority that holds it."""
    await harbour.create_nodes(1, name=node, extended={SLOT: "1"})
    await create(harbour, NAMESPACE, slotted(f"{node}-holder", on=node, placement=None))
    await until_bound(harbour, NAMESPACE, f"{node}-holder", 120)


async def holds(harbour: Sandbox, node: str) -> bool:
    """Return whether the node's holder is there and nobody wants it gone."""
    pods = await pods_of(harbour, f"{node}-holder")
    return any(not pod["metadata"].get("deletionTimestamp") for pod in pods)


async def test_after_an_outage_pods_are_placed_by_priority_then_age(harbour: Sandbox) -> None:
    await harbour.create_nodes(3, name="outage-{index}", extended={SLOT: str(SLOTS // 3)})
    await scale_program(harbour, "berthmaster-webhook", 0)
    await until(lambda: program_pods(harbour, "berthmaster-webhook"), lambda it: not it, 120)
    numbers = iter(range(PODS))

    async def create_some() -> None:
        for number in numbers:
            priority = "queue-high" if number % 3 == 2 else "queue-low"
            await create(harbour, NAMESPACE, slotted(f"outage-{number:03}", priority=priority))

    await asyncio.gather(*(create_some() for _ in range(CREATORS)))
    stored = await pods_of(harbour, "outage-")
    assert all(pod["spec"]["schedulingGates"] == [{"name": names.GATE}] for pod in stored)

    await scale_program(harbour, "berthmaster-webhook", 1)
    await wait_installed(harbour)
    pods = await until(
        lambda: pods_of(harbour, "outage-"),
        lambda it: sum(bool(pod["spec"].get("nodeName")) for pod in it) == SLOTS,
        120,
    )

    order = sorted(
        pods,
        key=lambda it: (
            -it["spec"]["priority"],
            it["metadata"]["creationTimestamp"],
            it["metadata"]["name"],
        ),
    )
    assert all(pod["spec"].get("nodeName") for pod in order[:SLOTS])
    last = order[-1]["metadata"]["name"]
    _, message = await until_waiting(harbour, NAMESPACE, last, 120)
    assert f"Insufficient {SLOT}" in message
    # Who still waits would take the slots of the next tests.
    await clear(harbour, NAMESPACE)
    await until(lambda: pods_of(harbour, "outage-"), lambda it: not it, 120)


async def test_important_pod_at_the_gate_preempts_nobody(harbour: Sandbox) -> None:
    await fill(harbour, "calm")

    await create(harbour, NAMESPACE, slotted("calm-urgent", priority="queue-high", on="calm"))
    await until_waiting(harbour, NAMESPACE, "calm-urgent", 120)

    assert await holds(harbour, "calm")
    # The way out: without us it is kube-scheduler's, which preempts.
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/calm-urgent"
    off = {"metadata": {"annotations": {names.PLACEMENT: "off"}}}
    await harbour.client.patch(path, off, PatchKind.MERGE)
    assert await until_bound(harbour, NAMESPACE, "calm-urgent", 120) == "calm"
    assert not await holds(harbour, "calm")


async def test_preferring_pod_preempts_as_any_other(harbour: Sandbox) -> None:
    await fill(harbour, "rough")

    await create(
        harbour,
        NAMESPACE,
        slotted("rough-urgent", priority="queue-high", on="rough", placement="preferred"),
    )

    assert await until_bound(harbour, NAMESPACE, "rough-urgent", 120) == "rough"
    assert not await holds(harbour, "rough")


async def test_pinned_pod_preempts_on_its_node_and_nowhere_else(harbour: Sandbox) -> None:
    """Its room was taken after it had been pinned; the pin is written here as we write it."""
    await fill(harbour, "pinned")
    await fill(harbour, "spared")
    pin = {"key": "metadata.name", "operator": "In", "values": ["pinned"]}
    terms = {"nodeSelectorTerms": [{"matchFields": [pin]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}

    await create(
        harbour,
        NAMESPACE,
        slotted("pinned-urgent", priority="queue-high", placement=None, affinity=affinity),
    )

    assert await until_bound(harbour, NAMESPACE, "pinned-urgent", 120) == "pinned"
    assert await holds(harbour, "spared")
    assert not await holds(harbour, "pinned")
    assert await node_of(harbour, NAMESPACE, "spared-holder") == "spared"
