"""Raise a random world in a cluster, and wait until its controllers have nothing more to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from berthmaster.cluster.client import Client, PatchKind
from berthmaster.cluster.errors import ApiError
from support.random_worlds import NAMESPACES, RandomWorld

Manifest = dict[str, Any]

DEADLINE_S = 240.0
HEARTBEAT_S = 8.0
_QUIET_S = 2.0
_NODES = "/api/v1/nodes"
_VOLUMES = "/api/v1/persistentvolumes"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_CSI_NODES = "/apis/storage.k8s.io/v1/csinodes"
_TAINTS = {
    ("Ready", "False"): "not-ready",
    ("Ready", "Unknown"): "unreachable",
    ("MemoryPressure", "True"): "memory-pressure",
    ("DiskPressure", "True"): "disk-pressure",
    ("PIDPressure", "True"): "pid-pressure",
    ("NetworkUnavailable", "True"): "network-unavailable",
}
_KEEP = "berthmaster.io/keep"


@asynccontextmanager
async def raised(client: Client, world: RandomWorld) -> AsyncIterator[None]:
    """Create the world's objects and keep its nodes alive; everything is removed afterwards."""
    await _create_namespaces(client)
    for node in world.nodes():
        await client.create(_NODES, node)
        await client.create(_LEASES, _lease(node["metadata"]["name"]))
    beating = asyncio.create_task(_beat(client, world.names))
    try:
        await _fill(client, world)
        async with asyncio.timeout(DEADLINE_S):
            while not await _is_settled(client):
                await asyncio.sleep(0.2)
        yield
    finally:
        beating.cancel()
        await _remove(client, world)


def claims(namespace: str) -> str:
    """Return where the claims of a namespace are."""
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"


async def _create_namespaces(client: Client) -> None:
    for name, labels in NAMESPACES.items():
        manifest = {"metadata": {"name": name, "labels": labels}}
        try:
            await client.create("/api/v1/namespaces", manifest)
        except ApiError as error:
            if not error.is_already_exists:
                raise
        async with asyncio.timeout(DEADLINE_S):
            while not await _exists(client, f"/api/v1/namespaces/{name}/serviceaccounts/default"):
                await asyncio.sleep(0.1)


async def _fill(client: Client, world: RandomWorld) -> None:
    for csi_node in world.csi_nodes():
        await client.create(_CSI_NODES, csi_node)
    for storage_class in world.storage_classes():
        await client.create(_CLASSES, storage_class)
    bound = world.bound_volumes()
    for volume, claim in bound:
        await client.create(_VOLUMES, volume)
        await client.create(claims(claim["metadata"]["namespace"]), claim)
    for volume in world.free_volumes():
        await client.create(_VOLUMES, volume)
    for claim in world.unbound_claims():
        await client.create(claims(claim["metadata"]["namespace"]), claim)
    async with asyncio.timeout(DEADLINE_S):
        while not await _are_bound(client, bound):
            await asyncio.sleep(0.1)
    await _lose(client, "blue-bound-4")
    await _begin_deleting(client, f"{claims('green')}/bound-3")
    for index, pod in enumerate(world.pods()):
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods"
        await client.create(path, pod)
        named = f"{path}/{pod['metadata']['name']}"
        if index % 8 == 0:
            await client.delete(named)
        elif index % 8 == 1:
            done = {"status": {"phase": "Succeeded"}}
            await client.patch(f"{named}/status", done, PatchKind.MERGE)


async def _are_bound(client: Client, bound: list[tuple[Manifest, Manifest]]) -> bool:
    for _, claim in bound:
        metadata = claim["metadata"]
        found = await client.get(f"{claims(metadata['namespace'])}/{metadata['name']}")
        if found["status"].get("phase") != "Bound":
            return False
    return True


async def _lose(client: Client, volume: str) -> None:
    """Delete a bound volume, so that its claim is lost."""
    path = f"{_VOLUMES}/{volume}"
    await client.delete(path)
    await client.patch(path, {"metadata": {"finalizers": None}}, PatchKind.MERGE)


async def _begin_deleting(client: Client, path: str) -> None:
    await client.patch(path, {"metadata": {"finalizers": [_KEEP]}}, PatchKind.MERGE)
    await client.delete(path)


async def _is_settled(client: Client) -> bool:
    """Return whether taints say what conditions say, and nothing changes for a while."""
    nodes = (await client.get(_NODES))["items"]
    if not all(map(_is_tainted_right, nodes)):
        return False
    before = await _versions(client)
    await asyncio.sleep(_QUIET_S)
    return before == await _versions(client)


def _is_tainted_right(node: Manifest) -> bool:
    prefix = "node.kubernetes.io/"
    expected = {
        prefix + _TAINTS[it["type"], it["status"]]
        for it in node["status"]["conditions"]
        if (it["type"], it["status"]) in _TAINTS
    }
    if node["spec"].get("unschedulable"):
        expected.add(prefix + "unschedulable")
    taints = node["spec"].get("taints") or []
    found = {it["key"] for it in taints if it["key"].startswith(prefix)}
    executing = {it["key"] for it in taints if it["effect"] == "NoExecute"}
    is_ready = prefix + "not-ready" not in expected
    return found == expected and (is_ready or prefix + "not-ready" in executing)


async def _versions(client: Client) -> dict[str, str]:
    found = {}
    for path in ("/api/v1/pods", _VOLUMES, "/api/v1/persistentvolumeclaims"):
        for item in (await client.get(path))["items"]:
            found[item["metadata"]["uid"]] = item["metadata"]["resourceVersion"]
    for node in (await client.get(_NODES))["items"]:
        found[node["metadata"]["uid"]] = repr(node["spec"])
    return found


async def _remove(client: Client, world: RandomWorld) -> None:
    now = {"gracePeriodSeconds": 0}
    for namespace in NAMESPACES:
        await client.delete(f"/api/v1/namespaces/{namespace}/pods", body=now)
        for claim in (await client.get(claims(namespace)))["items"]:
            path = f"{claims(namespace)}/{claim['metadata']['name']}"
            await _remove_at_once(client, path)
    for volume in (await client.get(_VOLUMES))["items"]:
        await _remove_at_once(client, f"{_VOLUMES}/{volume['metadata']['name']}")
    await client.delete(_CLASSES)
    await client.delete(_CSI_NODES)
    for name in world.names:
        await client.delete(f"{_NODES}/{name}")
        await _forget(client, f"{_LEASES}/{name}")
    async with asyncio.timeout(DEADLINE_S):
        while (await client.get("/api/v1/pods"))["items"] or (await client.get(_VOLUMES))["items"]:
            await asyncio.sleep(0.2)


async def _remove_at_once(client: Client, path: str) -> None:
    await _forget(client, path)
    try:
        await client.patch(path, {"metadata": {"finalizers": None}}, PatchKind.MERGE)
    except ApiError as error:
        if not error.is_not_found:
            raise


async def _forget(client: Client, path: str) -> None:
    try:
        await client.delete(path)
    except ApiError as error:
        if not error.is_not_found:
            raise


async def _exists(client: Client, path: str) -> bool:
    try:
        await client.get(path)
    except ApiError as error:
        if error.is_not_found:
            return False
        raise
    return True


async def _beat(client: Client, names: list[str]) -> None:
    """Be the kubelets' heartbeat."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        for name in names:
            lease = {"spec": {"renewTime": _now()}}
            await client.patch(f"{_LEASES}/{name}", lease, PatchKind.MERGE)


def _lease(name: str) -> Manifest:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _now()},
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
