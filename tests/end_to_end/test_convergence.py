"""Parts fall away and come back: everything converges to the same state without help.

After each test the judge counts anew from the API server's pods: no disk is over its capacity, and
none was at any moment.
"""

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
    HOOK,
    INVENTORIES,
    PROGRAMS,
    SYSTEM,
    apply_models,
    create,
    inventory_of,
    io,
    kill_program,
    make_pod,
    new_namespace,
    node_of,
    program_pods,
    scale_program,
    unless_missing,
    until,
    until_bound,
    until_reason,
    until_waiting,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]

NAMESPACE = "convergence"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
STATS = "/apis/diskio.x-k8s.io/v1alpha1/namespaces/ioi-system/nodediskiostats"
# How many pods of 50Mi a disk of 1000Mi holds.
FITTING = 20
# How many create pods at the same time.
CREATORS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def drivers(harbour: Sandbox) -> AsyncIterator[DiskWorld]:
    """A namespace, the disk models and the simulated drivers."""
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    async with DiskWorld(harbour.client) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def world(drivers: DiskWorld) -> AsyncIterator[DiskWorld]:
    """The drivers, and the judge after each test."""
    yield drivers
    assert await drivers.judge() == []
    assert drivers.overflows == ()


async def add_node(harbour: Sandbox, world: DiskWorld, name: str) -> None:
    await harbour.create_nodes(1, name=name)
    await world.add_node(name, devices={"d": disk(1000, 1000, 2000)})
    await until_reason(harbour, name, "Reported")


async def create_until_stored(harbour: Sandbox, pod: dict[str, Any]) -> None:
    """Create a pod as a controller does: again and again, until it is there."""

    async def stored() -> bool:
        try:
            await create(harbour, NAMESPACE, pod)
        except ApiError as error:
            return error.is_already_exists
        except ClusterError:
            return False
        return True

    await until(stored, bool, 60)


async def create_many(harbour: Sandbox, node: str, count: int) -> None:
    """Create pods named after their node, a few at a time."""
    indices = iter(range(count))

    async def create_some() -> None:
        for index in indices:
            await create_until_stored(harbour, make_pod(f"{node}-{index}", request=io(), on=node))

    await asyncio.gather(*(create_some() for _ in range(CREATORS)))


async def count_bound(harbour: Sandbox, node: str) -> int:
    """Return how many of `create_many` are bound, -1 while the API server is away."""
    query = {"fieldSelector": f"spec.nodeName={node}"}
    try:
        found = await harbour.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods", query)
    except ClusterError:
        return -1
    return len(found["items"])


async def reserved_on(harbour: Sandbox, node: str) -> list[str] | None:
    """Return the list that the node's driver is given, None while there is none."""
    name = f"{node}-nodediskiostats"
    found = await harbour.client.get(STATS, {"fieldSelector": f"metadata.name={name}"})
    return found["items"][0]["spec"].get("reservedPods", []) if found["items"] else None


async def until_reserved(harbour: Sandbox, node: str, *pods: str) -> None:
    """Wait until the operator lists exactly these pods: it works, and works right."""
    wanted = set()
    for pod in pods:
        found = await harbour.client.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}")
        wanted.add(found["metadata"]["uid"])
    await until(
        lambda: reserved_on(harbour, node),
        lambda uids: uids is not None and set(uids) == wanted and len(uids) == len(wanted),
        60,
    )


async def our_pods(harbour: Sandbox) -> list[dict[str, Any]]:
    """Return the pods of all our programs."""
    return [pod for name in PROGRAMS for pod in await program_pods(harbour, name)]


async def test_graceful_hand_over_needs_no_wait(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "hand-over")
    creating = asyncio.create_task(create_many(harbour, "hand-over", FITTING + 5))
    await until(lambda: count_bound(harbour, "hand-over"), lambda it: it > 2, 30)

    await kill_program(harbour, "berthmaster-operator")
    before = (await program_pods(harbour, "berthmaster-webhook"))[0]["metadata"]["name"]
    await harbour.client.delete(f"/api/v1/namespaces/{SYSTEM}/pods/{before}")
    await creating

    # Far below the 65 s that a crash of the webhook would cost; mostly its successor's start.
    await until(lambda: count_bound(harbour, "hand-over"), lambda it: it == FITTING, 30)
    pods = [f"hand-over-{index}" for index in range(FITTING + 5)]
    placed = [it for it in pods if await node_of(harbour, NAMESPACE, it)]
    for pod in pods:
        if pod not in placed:
            _, message = await until_waiting(harbour, NAMESPACE, pod)
            assert "disk IO read bandwidth is not enough" in message
    await until_reserved(harbour, "hand-over", *placed)


async def test_with_everything_down_creations_succeed(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "all-down")
    for name in PROGRAMS:
        await scale_program(harbour, name, 0)
    await until(lambda: our_pods(harbour), lambda pods: not pods, 60)

    started = time.monotonic()
    stored = await create(harbour, NAMESPACE, make_pod("patient", request=io(), on="all-down"))
    first_s = time.monotonic() - started
    # What would be refused cannot be judged now: it is created and waits, too.
    await create(harbour, NAMESPACE, make_pod("invalid", request="{", on="all-down"))
    second_s = time.monotonic() - started - first_s
    plain = await create(harbour, NAMESPACE, make_pod("plain", placement=None, on="all-down"))
    # Connections that are refused; each that times out takes a second, on any machine.
    assert min(first_s, second_s) < 1
    assert stored["spec"]["schedulingGates"] == [{"name": "berthmaster.io/placement"}]
    assert not plain["spec"].get("schedulingGates")
    assert await until_bound(harbour, NAMESPACE, "plain") == "all-down"

    for name in PROGRAMS:
        await scale_program(harbour, name, 1)
    assert await until_bound(harbour, NAMESPACE, "patient", 60) == "all-down"
    reason, message = await until_waiting(harbour, NAMESPACE, "invalid")
    assert (reason, "not understood" in message) == ("Invalid", True)
    await until_reserved(harbour, "all-down", "patient", "plain")


async def test_node_made_anew_starts_with_fresh_books(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "reborn")
    await create(harbour, NAMESPACE, make_pod("old", request=io("800Mi"), on="reborn"))
    await until_bound(harbour, NAMESPACE, "old")

    await harbour.client.delete("/api/v1/nodes/reborn")
    # The cluster's garbage collector takes it, and is in no hurry after the API server was away.
    await until(lambda: inventory_of(harbour, "reborn"), lambda it: not it, 90)
    pod = f"/api/v1/namespaces/{NAMESPACE}/pods/old"
    await unless_missing(harbour.client.delete(pod, query={"gracePeriodSeconds": 0}))
    # The machine that takes over the name has a smaller disk.
    await harbour.create_nodes(1, name="reborn")
    await world.add_node("reborn", devices={"d": disk(500, 500, 1000)})

    async def capacity() -> tuple[str, str]:
        disks = (await inventory_of(harbour, "reborn")).get("disks") or [{}]
        return disks[0].get("capacity", {}).get("read"), disks[0].get("allocable", {}).get("read")

    await until(capacity, lambda it: it == ("500Mi", "500Mi"), 30)
    node = await harbour.client.get("/api/v1/nodes/reborn")
    inventory = await harbour.client.get(f"{INVENTORIES}/reborn")
    assert inventory["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
    await until_reserved(harbour, "reborn")

    await create(harbour, NAMESPACE, make_pod("too-big", request=io("800Mi"), on="reborn"))
    _, message = await until_waiting(harbour, NAMESPACE, "too-big")
    assert "disk IO read bandwidth is not enough" in message
    await create(harbour, NAMESPACE, make_pod("new", request=io("500Mi"), on="reborn"))
    assert await until_bound(harbour, NAMESPACE, "new") == "reborn"


async def test_api_server_away_for_a_while(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "away")
    # Room for each answer that was lost on its way: it is held until it can no longer be stored.
    count = FITTING - CREATORS
    creating = asyncio.create_task(create_many(harbour, "away", count))
    await until(lambda: count_bound(harbour, "away"), lambda it: it > 0, 30)

    await harbour.kill_apiserver()
    # Its absence is what is tested, longer than most retries at once.
    await asyncio.sleep(5)
    await harbour.restart_apiserver()
    await creating

    await until(lambda: count_bound(harbour, "away"), lambda it: it == count, 60)
    await until_reserved(harbour, "away", *(f"away-{index}" for index in range(count)))


async def test_what_is_ours_is_made_anew_when_deleted(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "listless")
    await create(harbour, NAMESPACE, make_pod("listed", request=io("600Mi"), on="listless"))
    await until_bound(harbour, NAMESPACE, "listed")
    await until_reserved(harbour, "listless", "listed")

    await harbour.client.delete(f"{STATS}/listless-nodediskiostats")
    await harbour.client.delete(f"{INVENTORIES}/listless")
    await create(harbour, NAMESPACE, make_pod("second", request=io("600Mi"), on="listless"))

    await until_reserved(harbour, "listless", "listed")
    await until_reason(harbour, "listless", "Reported", 60)
    _, message = await until_waiting(harbour, NAMESPACE, "second")
    assert message
    await create(harbour, NAMESPACE, make_pod("third", request=io("400Mi"), on="listless"))
    assert await until_bound(harbour, NAMESPACE, "third") == "listless"


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


async def lease_holders(harbour: Sandbox) -> dict[str, str]:
    """Return who holds our Leases, by the Lease's uid."""
    leases = (await harbour.client.get(LEASES))["items"]
    return {
        it["metadata"]["uid"]: it["spec"].get("holderIdentity", "")
        for it in leases
        if it["metadata"]["name"] in PROGRAMS
    }


async def test_foreign_hands_are_repaired(harbour: Sandbox, world: DiskWorld) -> None:
    await add_node(harbour, world, "repaired")
    before = await lease_holders(harbour)
    for name in PROGRAMS:
        await harbour.client.delete(f"{LEASES}/{name}")
    hook = await harbour.client.get(HOOK)
    hook["metadata"].pop("managedFields", None)
    client = hook["webhooks"][0]["clientConfig"]
    authority = client.pop("caBundle")
    client["service"].pop("path")
    await harbour.client.replace(HOOK, hook)

    async def hook_client() -> dict[str, Any]:
        found: dict[str, Any] = (await harbour.client.get(HOOK))["webhooks"][0]["clientConfig"]
        return found

    await until(
        lambda: lease_holders(harbour),
        lambda it: len(it) == 2 and all(it.values()) and not it.keys() & before.keys(),
        60,
    )
    await create(harbour, NAMESPACE, make_pod("meanwhile", request=io(), on="repaired"))
    await until(hook_client, lambda it: it.get("caBundle") == authority, 30)
    # Whichever it is now: a new Lease counts its holders anew.
    await until(hook_client, lambda it: it["service"].get("path", "").startswith("/place/"), 30)

    # The webhook waits as after a crash: it cannot know who led in between.
    assert await until_bound(harbour, NAMESPACE, "meanwhile", 150) == "repaired"
    await until_reserved(harbour, "repaired", "meanwhile")
    await wait_installed(harbour)
