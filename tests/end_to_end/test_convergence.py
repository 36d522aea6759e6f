"""Parts fall away and come back: everything converges to the same state without help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.cluster.errors import ApiError, ClusterError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.installing import wait_installed
from berthmaster_sandbox.world.diskio import DiskWorld
from support.harbour import (
    apply_models,
    create,
    inventory_of,
    io,
    make_pod,
    new_namespace,
    node_of,
    until,
    until_bound,
    until_reason,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]

NAMESPACE = "convergence"
HOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-berthmaster"
STATS = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskiostats"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[DiskWorld]:
    """A namespace, the disk models and the simulated drivers."""
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    async with DiskWorld(harbour.client) as running:
        yield running
        assert await running.judge() == []
        assert running.overflows == ()


async def add_node(harbour: Sandbox, world: DiskWorld, name: str) -> None:
    await harbour.create_nodes(1, name=name)
    await world.add_node(name, devices={"d": disk(1000, 1000, 2000)})
    await until_reason(harbour, name, "Reported")


async def webhook_pods(harbour: Sandbox) -> list[dict[str, Any]]:
    found = await harbour.client.get(
        "/api/v1/namespaces/berthmaster-system/pods",
        {"labelSelector": "app.kubernetes.io/name=berthmaster-webhook"},
    )
    items: list[dict[str, Any]] = found["items"]
    return items


async def test_graceful_hand_over_needs_no_wait(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "hand-over")
    before = (await webhook_pods(harbour))[0]["metadata"]["name"]

    await harbour.client.delete(f"/api/v1/namespaces/berthmaster-system/pods/{before}")
    await create(harbour, NAMESPACE, make_pod("handed", request=io(), on="hand-over"))

    # Far below the 65 s that a crash would cost; mostly the start of the new process.
    assert await until_bound(harbour, NAMESPACE, "handed", 30) == "hand-over"


async def test_with_everything_down_creations_succeed(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "all-down")
    for name in ("operator", "webhook"):
        await harbour.kubectl(
            "-n", "berthmaster-system", "scale", f"deployment/berthmaster-{name}", "--replicas=0"
        )
    await until(lambda: webhook_pods(harbour), lambda pods: not pods, 60)

    started = time.monotonic()
    stored = await create(harbour, NAMESPACE, make_pod("patient", request=io(), on="all-down"))
    plain = await create(harbour, NAMESPACE, make_pod("plain", placement=None, on="all-down"))
    # A connection that is refused, not one that times out.
    assert time.monotonic() - started < 2
    assert stored["spec"]["schedulingGates"] == [{"name": "berthmaster.io/placement"}]
    assert not plain["spec"].get("schedulingGates")
    assert await until_bound(harbour, NAMESPACE, "plain") == "all-down"

    for name in ("operator", "webhook"):
        await harbour.kubectl(
            "-n", "berthmaster-system", "scale", f"deployment/berthmaster-{name}", "--replicas=1"
        )
    assert await until_bound(harbour, NAMESPACE, "patient", 60) == "all-down"


async def test_api_server_away_for_a_while(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "away")
    await harbour.kill_apiserver()
    creating = asyncio.create_task(_create_until_stored(harbour, "returns"))
    await harbour.restart_apiserver()
    await creating

    assert await until_bound(harbour, NAMESPACE, "returns", 120) == "away"


async def _create_until_stored(harbour: Sandbox, name: str) -> None:
    async def stored() -> bool:
        try:
            await create(harbour, NAMESPACE, make_pod(name, request=io(), on="away"))
        except ClusterError as error:
            return "already exists" in str(error)
        return True

    await until(stored, bool, 60)


async def test_node_made_anew_starts_with_fresh_books(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "reborn")
    await create(harbour, NAMESPACE, make_pod("old", request=io("800Mi"), on="reborn"))
    await until_bound(harbour, NAMESPACE, "old")

    await harbour.client.delete("/api/v1/nodes/reborn")
    await until(lambda: inventory_of(harbour, "reborn"), lambda it: not it, 60)
    pod = f"/api/v1/namespaces/{NAMESPACE}/pods/old"
    await _ignore_missing(harbour.client.delete(pod, query={"gracePeriodSeconds": 0}))
    await add_node(harbour, world, "reborn")

    await create(harbour, NAMESPACE, make_pod("new", request=io("800Mi"), on="reborn"))
    assert await until_bound(harbour, NAMESPACE, "new") == "reborn"


async def _ignore_missing(deletion: Any) -> None:
    try:
        await deletion
    except ApiError as error:
        if not error.is_not_found:
            raise


async def test_deleted_stats_come_back_with_their_list(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "listless")
    await create(harbour, NAMESPACE, make_pod("listed", request=io(), on="listless"))
    await until_bound(harbour, NAMESPACE, "listed")
    uid = (await harbour.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods/listed"))["metadata"][
        "uid"
    ]

    await harbour.client.delete(f"{STATS}/listless-nodediskiostats")

    async def reserved() -> list[str]:
        found = await harbour.client.get(
            STATS, {"fieldSelector": "metadata.name=listless-nodediskiostats"}
        )
        return found["items"][0]["spec"].get("reservedPods", []) if found["items"] else []

    await until(reserved, lambda uids: uids == [uid], 60)
    await until_reason(harbour, "listless", "Reported", 60)


async def test_foreign_hands_are_repaired(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "repaired")
    await harbour.client.delete(
        "/apis/coordination.k8s.io/v1/namespaces/berthmaster-system/leases/berthmaster-webhook"
    )
    hook = await harbour.client.get(HOOK)
    hook["webhooks"][0]["clientConfig"].pop("caBundle")
    hook["webhooks"][0]["clientConfig"]["service"].pop("path")
    hook["metadata"].pop("managedFields", None)
    await harbour.client.replace(HOOK, hook)
    await create(harbour, NAMESPACE, make_pod("meanwhile", request=io(), on="repaired"))

    # Whatever is broken meanwhile, the pod is placed in the end.
    assert await until_bound(harbour, NAMESPACE, "meanwhile", 150) == "repaired"
    await wait_installed(harbour)


async def test_watches_that_stand_still_are_noticed(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "frozen")
    harbour.pause("kube-apiserver")
    try:
        # Longer than the Lease: its holder must give up by its own clock.
        await asyncio.sleep(8)
    finally:
        harbour.resume("kube-apiserver")
    await create(harbour, NAMESPACE, make_pod("thawed", request=io(), on="frozen"))

    assert await until_bound(harbour, NAMESPACE, "thawed", 150) == "frozen"
    assert await node_of(harbour, NAMESPACE, "thawed") == "frozen"
