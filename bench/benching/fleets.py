"""Nodes of which all five concerns know something, and pods that ask something of each; made in bulk.

What is written are the objects of those who tell of nodes, as they write them, and nothing of ours: the
operator makes the inventories, while everything runs.

    disk IO   NodeDiskDevice, and a driver per node that answers every list of pods (`world/diskio.py`)
    NUMA      NodeResourceTopology of an empty machine whose kubelet aligns (single-numa-node), written once
    XPU       the plugin's capacity on the Node, and an agent's NodeXPU: K200, two on a board
    dataset   a Dataset for each workload, with a gateway on each 50th node; a zone has 50 nodes, a region 10 zones
    power     a PowerModel of all nodes, and NodeMetrics, written once: the policy has them never grow old

The pods are three workloads that share accelerators by memory (xpushare, the only dialect for that): a quarter of a
card, the 4500 MiB of xpushare's own example, and two whole cards. Its plugin is not told which pod it
serves, so pods of one size go to a node one at a time, as by default; kwok lets a pod run at once, which is the sign
for the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benching.hands import for_each
from benching.topologies import build_machine, until_inventories, write_topology
from berthmaster.api import names
from berthmaster.cluster.client import Client, PatchKind, Query
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.simnodes import build_node, wait_nodes_ready
from berthmaster_sandbox.world.datashim import install_datashim, write_dataset
from berthmaster_sandbox.world.diskio import DiskWorld
from berthmaster_sandbox.world.kubelets import insist, make_node
from berthmaster_sandbox.world.numa_machines import Machine
from berthmaster_sandbox.world.power import METRICS, build_node_metrics, install_node_metrics
from berthmaster_sandbox.world.xpu import NODE_XPUS, build_node_xpu
from berthmaster_sandbox.world.xpu_hosts import (
    K200_MIB,
    XPUSHARE_COUNT,
    XPUSHARE_MEMORY,
    Host,
    make_host,
)

CONCERNS = frozenset({"diskio", "numa", "xpu", "dataset", "power"})
AGENT, DEVICES = "xpu-agent", 8
NODES_PER_ZONE, ZONES_PER_REGION = 50, 10
IDLE_CORES = 2.0
WATTS_IDLE, WATTS_FULL = 150.0, 450.0
_POWER_MODELS = f"/apis/{names.API_VERSION}/powermodels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Equal pods: MiB of accelerators over so many devices, CPUs of one zone, and bandwidth in MiB/s each way."""

    name: str
    mib: int
    devices: int
    cpus: int
    bandwidth: int

    def pod(self, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pod that asks every concern; what is given comes first."""
        io = {"rbps": f"{self.bandwidth}Mi", "wbps": f"{self.bandwidth}Mi", "blocksize": "32k"}
        limits = {"cpu": str(self.cpus), "memory": "1Gi", XPUSHARE_MEMORY: str(self.mib)}
        container = {
            "name": "c",
            "image": "registry.k8s.io/pause:3.10",
            "resources": {"limits": limits, "requests": limits},
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **metadata,
                "annotations": {
                    **metadata.get("annotations", {}),
                    names.DISKIO_REQUEST: json.dumps(io),
                },
                "labels": {
                    **metadata.get("labels", {}),
                    XPUSHARE_COUNT: str(self.devices),
                    "dataset.0.id": self.name,
                    "dataset.0.useas": "mount",
                },
            },
            "spec": {**spec, "containers": [container]},
        }


WORKLOADS = (
    Workload(name="speech", mib=2016, devices=1, cpus=2, bandwidth=5),
    Workload(name="vision", mib=4500, devices=1, cpus=2, bandwidth=10),
    Workload(name="language", mib=2 * K200_MIB, devices=2, cpus=2, bandwidth=5),
)


async def create_fleet(
    sandbox: Sandbox,
    disks: DiskWorld,
    *,
    count: int,
    zones: int,
    namespace: str,
    taints: Sequence[Mapping[str, str]],
    deadline_s: float,
) -> Machine:
    """Create the nodes `sim-0001` and on, and all that is told of them; return the machine that each is.

    Returns when the operator has published everything. The disk models, and the namespace of the pods,
    have to be there. Raises ClusterError, SandboxError, TimeoutError.
    """
    client, machine = sandbox.client, build_machine(zones)
    await install_datashim(sandbox)
    await install_node_metrics(client)
    await client.create(_POWER_MODELS, _power_model())
    owners: dict[str, Mapping[str, Any]] = {}

    async def make(index: int) -> None:
        name = _name(index)
        owners[name] = await _make_node(client, name, machine, labels=_labels(index), taints=taints)

    await for_each(range(count), make)
    await wait_nodes_ready(client, list(owners), deadline_s=deadline_s)
    await for_each(owners.items(), lambda it: _tell_of_node(client, disks, machine, *it))
    for dataset, gateways in gateways_of(count).items():
        await write_dataset(client, namespace, dataset, gateways=sorted(gateways))
    await until_inventories(client, count, _is_known, deadline_s=deadline_s)
    return machine


async def _make_node(
    client: Client,
    name: str,
    machine: Machine,
    *,
    labels: Mapping[str, str],
    taints: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Create a node as its kubelet and its device plugin have it; return an owner reference."""
    host = _host(name, machine)
    return await make_node(
        client,
        build_node(name, labels=labels, taints=taints),
        {**machine.capacity(), **host.capacity()},
        {**machine.allocatable(), **host.allocatable()},
    )


async def _tell_of_node(
    client: Client, disks: DiskWorld, machine: Machine, name: str, owner: Mapping[str, Any]
) -> None:
    await insist(partial(disks.add_node, name), name)
    await write_topology(client, name, machine)
    # Where there is none yet, the operator makes one of the capacity; the agent takes it over.
    devices = build_node_xpu(_host(name, machine), owner)
    query: Query = {"fieldManager": AGENT, "force": True}
    await client.patch(f"{NODE_XPUS}/{name}", devices, PatchKind.APPLY, query, timeout_s=60)
    await client.create(METRICS, build_node_metrics(name, IDLE_CORES, time.time()), timeout_s=60)


def _host(name: str, machine: Machine) -> Host:
    return make_host(name, devices=DEVICES, numa_nodes=len(machine.zones))


def gateways_of(count: int) -> dict[str, frozenset[str]]:
    """Return the nodes of each dataset's gateways in a fleet of so many nodes."""
    return {
        it.name: frozenset(_name(at) for at in range(offset % count, count, NODES_PER_ZONE))
        for offset, it in enumerate(WORKLOADS)
    }


def _name(index: int) -> str:
    return f"sim-{index + 1:04d}"


def _labels(index: int) -> dict[str, str]:
    zone = index // NODES_PER_ZONE
    return {names.ZONE: f"zone-{zone}", names.REGION: f"region-{zone // ZONES_PER_REGION}"}


def _power_model() -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PowerModel",
        "metadata": {"name": "bench"},
        "spec": {"polynomial": {"coefficients": [WATTS_IDLE, WATTS_FULL - WATTS_IDLE]}},
    }


def _is_known(status: Mapping[str, Any]) -> bool:
    """Return whether an inventory has everything but datasets, which few nodes have."""
    power, reported = status.get("power") or {}, status.get("disks") or ()
    has_power = power.get("curve") is not None and power.get("usage") is not None
    has_disks = bool(reported) and all(
        it.get("function") and it.get("allocable") for it in reported
    )
    return has_power and has_disks and bool(status.get("zones")) and bool(status.get("xpus"))
