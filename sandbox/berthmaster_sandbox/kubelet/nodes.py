"""The kubelet's own Node: how it is registered and kept Ready.

The node keeps out what does not tolerate its taint. Its heartbeat is a Lease and the condition
Ready, as of any kubelet. All of it happens under the node's own rights.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Mapping
from typing import Any

from berthmaster.cluster.client import ApiError, Client, ClusterError, PatchKind
from berthmaster_sandbox.kubelet.statuses import now_text

logger = logging.getLogger(__name__)

TAINT_KEY = "berthmaster.io/sandbox"
TAINT_VALUE = "process"
HEARTBEAT_S = 10.0
LEASE_S = 40
RETRY_S = 1.0
# Processes are small and share the machine anyway; the scheduler needs some number.
CAPACITY: Mapping[str, str] = {
    "cpu": "8",
    "memory": "16Gi",
    "ephemeral-storage": "32Gi",
    "pods": "110",
}

_HEALTHY = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID"),
    ("Ready", "True", "KubeletReady"),
)


def build_node(name: str, *, host_ip: str, port: int | None, version: str) -> dict[str, Any]:
    """Return the Node to register; `port` is where its logs are served, if they are."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": machine,
                "berthmaster.io/sandbox": TAINT_VALUE,
            },
        },
        "spec": {"taints": [{"key": TAINT_KEY, "value": TAINT_VALUE, "effect": "NoSchedule"}]},
        "status": build_node_status(
            name, host_ip=host_ip, port=port, version=version, machine=machine
        ),
    }


def build_node_status(
    name: str, *, host_ip: str, port: int | None, version: str, machine: str
) -> dict[str, Any]:
    """Return the Node's status, without conditions."""
    status: dict[str, Any] = {
        "capacity": dict(CAPACITY),
        "allocatable": dict(CAPACITY),
        # No host name: the API server would try it first, and nobody resolves it.
        "addresses": [{"type": "InternalIP", "address": host_ip}],
        "nodeInfo": {
            "architecture": machine,
            "operatingSystem": "linux",
            "kernelVersion": platform.release(),
            "osImage": "berthmaster sandbox",
            "containerRuntimeVersion": "process://1",
            "kubeletVersion": version,
            "kubeProxyVersion": "",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
    }
    if port is not None:
        status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": port}}
    return status


def build_conditions(now: str, transitions: dict[str, str]) -> list[dict[str, str]]:
    """Return the conditions of a healthy node; `transitions` keeps since when they hold."""
    return [
        {
            "type": name,
            "status": status,
            "reason": reason,
            "message": "the process kubelet is running",
            "lastHeartbeatTime": now,
            "lastTransitionTime": transitions.setdefault(name, now),
        }
        for name, status, reason in _HEALTHY
    ]


class NodeKeeper:
    """Registers the node, renews its Lease and its conditions until cancelled."""

    def __init__(self, node: Mapping[str, Any], *, client: Client) -> None:
        self._node = node
        self._client = client
        self._name = str(node["metadata"]["name"])
        self._lease_path = (
            f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self._name}"
        )

    async def register(self) -> None:
        """Create the Node, or take over the one that is there; retried until it succeeds."""
        while True:
            try:
                await self._create_or_adopt()
            except ClusterError as error:
                logger.info("node not registered yet: %s", error, extra={"node": self._name})
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def run(self) -> None:
        """Send heartbeats for ever. A node that somebody deleted is registered anew."""
        while True:
            pause_s = HEARTBEAT_S
            try:
                await self._beat()
            except ClusterError as error:
                if isinstance(error, ApiError) and error.status == 404:
                    await self.register()
                logger.info("no heartbeat: %s", error, extra={"node": self._name})
                pause_s = RETRY_S
            await asyncio.sleep(pause_s)

    async def _create_or_adopt(self) -> None:
        try:
            await self._client.create("/api/v1/nodes", self._node)
        except ApiError as error:
            if error.status != 409:
                raise
            # Taints are not a node's to change; what else we say of ourselves is.
            labels = {"metadata": {"labels": self._node["metadata"]["labels"]}}
            path = f"/api/v1/nodes/{self._name}"
            await self._client.patch(path, labels, PatchKind.STRATEGIC)
            status = {"status": self._node["status"]}
            await self._client.patch(f"{path}/status", status, PatchKind.STRATEGIC)
        await self._beat()

    async def _beat(self) -> None:
        path = f"/api/v1/nodes/{self._name}"
        node = await self._client.get(path)
        known = {
            item["type"]: item["lastTransitionTime"]
            for item in node.get("status", {}).get("conditions") or ()
            if (item["type"], item["status"]) in {(name, value) for name, value, _ in _HEALTHY}
        }
        body = {"status": {"conditions": build_conditions(now_text(), known)}}
        await self._client.patch(f"{path}/status", body, PatchKind.STRATEGIC)
        await self._renew_lease(str(node["metadata"]["uid"]))

    async def _renew_lease(self, uid: str) -> None:
        spec = {
            "holderIdentity": self._name,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": now_text().replace("Z", ".000000Z"),
        }
        try:
            await self._client.patch(self._lease_path, {"spec": spec}, PatchKind.MERGE)
        except ApiError as error:
            if error.status != 404:
                raise
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._name, "uid": uid}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": self._name,
                    "namespace": "kube-node-lease",
                    "ownerReferences": [owner],
                },
                "spec": spec,
            }
            await self._client.create(self._lease_path.rsplit("/", 1)[0], lease)
