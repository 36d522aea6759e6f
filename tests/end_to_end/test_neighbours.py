"""Claims, spread and anti-affinity through a real API server and scheduler: no pin fails for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from berthmaster_sandbox.cluster import Sandbox
from support.harbour import (
    create,
    make_pod,
    new_namespace,
    node_of,
    until,
    until_bound,
    until_waiting,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
HOST = "kubernetes.io/hostname"


async def four_nodes(harbour: Sandbox, label: str) -> list[str]:
    return await harbour.create_nodes(
        4, labels={"neighbours": label}, name=f"{label}-{{index}}", first=1
    )


def pod_of(name: str, label: str, **spec: Any) -> dict[str, Any]:
    pod = make_pod(name, select={"neighbours": label}, labels={"app": label})
    pod["spec"].update(spec)
    return pod


async def failed_pins(harbour: Sandbox, namespace: str) -> list[str]:
    """Return what the scheduler said of pods that it could not place."""
    events = await harbour.client.get(
        f"/api/v1/namespaces/{namespace}/events", {"fieldSelector": "reason=FailedScheduling"}
    )
    return [str(it.get("note") or it.get("message")) for it in events["items"]]


async def nodes_of(harbour: Sandbox, namespace: str, names: list[str]) -> Counter[str]:
    return Counter([await node_of(harbour, namespace, name) for name in names])


async def test_a_pod_waits_for_its_claim_and_goes_where_a_volume_is_free(
    harbour: Sandbox,
) -> None:
    nodes = await four_nodes(harbour, "claims")
    namespace = await new_namespace(harbour, "claims")
    late = {
        "metadata": {"name": "claims-local"},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    here = [{"key": HOST, "operator": "In", "values": [nodes[2]]}]
    volume = {
        "metadata": {"name": "claims-disk"},
        "spec": {
            "storageClassName": "claims-local",
            "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce"],
            "local": {"path": "/disk"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": here}]}},
        },
    }
    await harbour.client.create("/apis/storage.k8s.io/v1/storageclasses", late)
    await harbour.client.create("/api/v1/persistentvolumes", volume)
    used = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    await create(harbour, namespace, pod_of("one", "claims", volumes=used))
    _, why = await until_waiting(harbour, namespace, "one")
    assert 'persistentvolumeclaim "data" not found' in why

    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "storageClassName": "claims-local",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    await harbour.client.create(path, claim)

    assert await until_bound(harbour, namespace, "one", 60) == nodes[2]
    bound = await harbour.client.get(f"{path}/data")
    assert bound["spec"]["volumeName"] == "claims-disk"
    assert not await failed_pins(harbour, namespace)


async def test_a_burst_spreads_without_a_failed_pin(harbour: Sandbox) -> None:
    await four_nodes(harbour, "spread")
    namespace = await new_namespace(harbour, "spread")
    constraint = {
        "topologyKey": HOST,
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "spread"}},
    }
    names = [f"p{index}" for index in range(16)]
    pods = [pod_of(name, "spread", topologySpreadConstraints=[constraint]) for name in names]

    await asyncio.gather(*(create(harbour, namespace, pod) for pod in pods))

    found: Counter[str] = await until(
        lambda: nodes_of(harbour, namespace, names), lambda it: not it[""], 60
    )
    assert sorted(found.values()) == [4, 4, 4, 4]
    assert not await failed_pins(harbour, namespace)


async def test_pods_that_keep_apart_wait_for_a_node_without_one(harbour: Sandbox) -> None:
    await four_nodes(harbour, "apart")
    namespace = await new_namespace(harbour, "apart")
    term = {"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "apart"}}}
    names = [f"p{index}" for index in range(5)]
    affinity = {"podAntiAffinity": {REQUIRED: [term]}}
    await asyncio.gather(
        *(create(harbour, namespace, pod_of(name, "apart", affinity=affinity)) for name in names)
    )

    found: Counter[str] = await until(
        lambda: nodes_of(harbour, namespace, names), lambda it: it[""] == 1, 60
    )
    assert len(found) == 5
    left = [name for name in names if not await node_of(harbour, namespace, name)]
    _, why = await until_waiting(harbour, namespace, left[0])
    assert "didn't match pod anti-affinity rules" in why
    assert not await failed_pins(harbour, namespace)

    gone = next(name for name in names if name != left[0])
    free = await node_of(harbour, namespace, gone)
    await harbour.client.delete(f"/api/v1/namespaces/{namespace}/pods/{gone}")
    assert await until_bound(harbour, namespace, left[0], 60) == free
