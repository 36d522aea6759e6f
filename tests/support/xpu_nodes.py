"""Hosts of the simulated world in a cluster in memory, and an API server that binds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berthmaster.api.objects import node_from_manifest
from berthmaster.cluster.client import JsonObject, Query
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.informers import EventKind
from berthmaster_sandbox.world.xpu_hosts import Host
from berthmaster_webhook.extender.describing import describe
from support.builders import Manifest, make_node_manifest
from support.webhook_world import PodServer, World


def make_host_manifest(host: Host) -> Manifest:
    """Return the Node of a host."""
    node = make_node_manifest(host.name, cpu="64", memory="256Gi", others=host.allocatable())
    node["metadata"]["annotations"] = host.annotations(0)
    node["status"]["capacity"] = {**node["status"]["allocatable"], **host.capacity()}
    return node


def add_host(world: World, host: Host) -> None:
    """Let the webhook's world have a host."""
    node = node_from_manifest(make_host_manifest(host))
    world.state.nodes._put(EventKind.ADDED, host.name, node)
    world.state.inventories._put(EventKind.ADDED, host.name, describe(node, world.state.policies))


class BindServer(PodServer):
    """Pods that can be bound; `bind_faults` are raised by the next bindings, None lets one through.

    A fault in `faults_after` is raised after the binding had its effect.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.bind_faults: list[Exception | None] = []
        self.faults_after: list[Exception] = []
        self.bindings: list[tuple[str, str]] = []

    async def create(
        self, path: str, obj: object, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        if not path.endswith("/binding"):
            return await super().create(path, obj, query, timeout_s=timeout_s)
        assert isinstance(obj, Mapping)
        fault = self.bind_faults.pop(0) if self.bind_faults else None
        if fault is not None:
            raise fault
        known: Any = self.pods.get(path.removesuffix("/binding"))
        if known is None or known["metadata"]["uid"] != obj["metadata"]["uid"]:
            raise ApiError(404, "NotFound", path)
        if known["spec"].get("nodeName"):
            raise ApiError(409, "Conflict", "pod is already assigned")
        node = obj["target"]["name"]
        self.bindings.append((known["metadata"]["name"], node))
        self._store({**known, "spec": {**known["spec"], "nodeName": node}})
        if self.faults_after:
            raise self.faults_after.pop(0)
        return {}
