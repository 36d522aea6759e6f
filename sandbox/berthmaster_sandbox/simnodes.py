"""Simulated nodes: Node objects that kwok keeps alive, and on which pods run without running.

Owns the kwok process and the making of nodes. kwok manages only nodes that carry its annotation,
so the process nodes of the same sandbox are left to their own kubelets. Simulated nodes have no
taint: they are what ordinary pods land on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from berthmaster.cluster.client import Client
from berthmaster_sandbox.binaries import Binaries
from berthmaster_sandbox.errors import BootError
from berthmaster_sandbox.processes import ManagedProcess, start_process
from berthmaster_sandbox.slots import Slot

NOT_READY_TAINT = "node.kubernetes.io/not-ready"
KWOK = "kwok"
KWOK_ANNOTATION = "kwok.x-k8s.io/node"
_KWOK_FILES = ("kwok_options.yaml", "kwok_stages.yaml", "kwok_metrics.yaml")
KIND_LABEL = "berthmaster.io/sandbox"
SIMULATED = "simulated"

# kwok renews a node's Lease four times in this time: as kubelets do it, the Leases of 5,000 nodes would take half of two cores.
# Nodes count as lost after `controlplane.NODE_SILENCE_S`.
LEASE_S = 400
CREATORS = 16
READY_POLL_S = 0.2
READY_DEADLINE_S = 180.0
# The controller manager takes the taint off each node by itself, on a machine that does much else.
READY_DEADLINE_PER_NODE_S = 0.1


class _Condition(msgspec.Struct):
    type: str
    status: str


class _NodeStatus(msgspec.Struct):
    conditions: list[_Condition] = []


class _Metadata(msgspec.Struct):
    name: str


class _Taint(msgspec.Struct):
    key: str


class _NodeSpec(msgspec.Struct):
    taints: list[_Taint] = []


class _Node(msgspec.Struct):
    metadata: _Metadata
    spec: _NodeSpec = msgspec.field(default_factory=_NodeSpec)
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


class _NodeList(msgspec.Struct):
    items: list[_Node]


_NODES = msgspec.json.Decoder(_NodeList)


def start_kwok(folder: Path, *, binaries: Binaries, slot: Slot, kubeconfig: Path) -> ManagedProcess:
    """Start kwok; nodes that it is to play may be created before or after."""
    for name in _KWOK_FILES:
        source = resources.files("berthmaster_sandbox") / name
        (folder / name).write_bytes(source.read_bytes())
    command = [
        str(binaries.kwok),
        f"--kubeconfig={kubeconfig}",
        *(f"--config={folder / name}" for name in _KWOK_FILES),
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={KWOK_ANNOTATION}=fake",
        "--node-ip=10.0.0.1",
        "--cidr=10.200.0.1/16",
        f"--node-lease-duration-seconds={LEASE_S}",
        f"--server-address=127.0.0.1:{slot.kwok_port}",
    ]
    return start_process(KWOK, command, folder=folder)


def build_node(
    name: str,
    *,
    cpu: str = "32",
    memory: str = "128Gi",
    pods: int = 110,
    labels: Mapping[str, str] | None = None,
    extended: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return a Node that kwok will play; `extended` are further capacities as quantities."""
    capacity = {"cpu": cpu, "memory": memory, "pods": str(pods), **(extended or {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {KWOK_ANNOTATION: "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                KIND_LABEL: SIMULATED,
                **(labels or {}),
            },
        },
        "spec": {"taints": [dict(taint) for taint in taints]},
        "status": {"capacity": capacity, "allocatable": dict(capacity)},
    }


async def create_nodes(client: Client, nodes: Iterator[dict[str, Any]]) -> list[str]:
    """Create the nodes, several at a time, and return their names. Raises BootError with the first reason."""
    names: list[str] = []

    async def create_some() -> None:
        for node in nodes:
            names.append(node["metadata"]["name"])
            await client.create("/api/v1/nodes", node, timeout_s=60)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CREATORS):
                group.create_task(create_some())
    except ExceptionGroup as failed:
        raise BootError(f"nodes not created: {failed.exceptions[0]}") from failed
    return names


async def wait_nodes_ready(
    client: Client, names: list[str], *, deadline_s: float = READY_DEADLINE_S
) -> None:
    """Return when each of the nodes is Ready; many get longer. Raises BootError that names one that is not."""
    deadline = time.monotonic() + deadline_s + READY_DEADLINE_PER_NODE_S * len(names)
    waiting = set(names)
    while waiting:
        answer = await client.request("GET", "/api/v1/nodes", timeout_s=60)
        waiting -= {node.metadata.name for node in _NODES.decode(answer).items if _is_ready(node)}
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise BootError(f"{len(waiting)} nodes did not become ready, among them {min(waiting)}")
        # Listing thousands of nodes is work for the API server: ask the less, the more there are.
        await asyncio.sleep(READY_POLL_S + len(names) / 1000)


def _is_ready(node: _Node) -> bool:
    """Return whether the node is Ready and takes pods: the taint of those that are not goes a moment later."""
    if any(it.key == NOT_READY_TAINT for it in node.spec.taints):
        return False
    return any(item.type == "Ready" and item.status == "True" for item in node.status.conditions)
