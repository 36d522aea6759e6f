"""NodeXPU: the accelerators of the node of the same name, by an agent's word, an administrator's or ours.

Read leniently; odd content becomes words in the XPUReady condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.api.node_xpus import node_xpu_from_manifest
from berthmaster_operator.fleet import Fleet, NodeXPUSeen

PLURAL = "nodexpus"
PATH = f"/apis/{names.API_VERSION}/{PLURAL}"


def take(fleet: Fleet, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
    """Hand one object on; never raises on odd content."""
    node_xpu = node_xpu_from_manifest(manifest)
    if is_gone:
        fleet.lose_node_xpu(node_xpu.name, node_xpu.uid)
        return
    status = manifest.get("status")
    fleet.see_node_xpu(
        NodeXPUSeen(
            node_xpu=node_xpu,
            version=manifest.get("metadata", {}).get("resourceVersion", ""),
            status=dict(status) if isinstance(status, Mapping) else {},
        )
    )


def register(registry: kopf.OperatorRegistry, fleet: Fleet) -> None:
    """Have Kopf tell of every change."""

    async def node_xpu_changed(event: kopf.RawEvent, **_: object) -> None:
        take(fleet, event["object"], is_gone=event["type"] == "DELETED")

    kopf.on.event(names.GROUP, "v1alpha1", PLURAL, registry=registry)(node_xpu_changed)
