"""NodeResourceTopology: what the NUMA zones of the node of the same name have, and what is free.

The updaters' object is read only; odd content becomes words in the TopologyReady condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.api.topology import topology_from_manifest
from berthmaster_operator.fleet import Fleet

PLURAL = "noderesourcetopologies"
PATH = f"/apis/{names.TOPOLOGY_API_VERSION}/{PLURAL}"


def take(fleet: Fleet, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
    """Hand one object on; never raises on odd content."""
    topology = topology_from_manifest(manifest)
    if is_gone:
        fleet.lose_topology(topology.name, topology.uid)
    else:
        fleet.see_topology(topology, manifest.get("metadata", {}).get("resourceVersion", ""))


def register(registry: kopf.OperatorRegistry, fleet: Fleet) -> None:
    """Have Kopf tell of every change."""

    async def node_resource_topology_changed(event: kopf.RawEvent, **_: object) -> None:
        take(fleet, event["object"], is_gone=event["type"] == "DELETED")

    kopf.on.event(names.TOPOLOGY_GROUP, "v1alpha2", PLURAL, registry=registry)(
        node_resource_topology_changed
    )
