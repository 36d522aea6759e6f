"""NodeDiskIOStats: what a node's driver says is free, and for which list of pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.api.diskio import stats_from_manifest
from berthmaster_operator.fleet import Fleet

PLURAL = "nodediskiostats"
PATH = f"/apis/{names.DISKIO_API_VERSION}/{PLURAL}"


def take(fleet: Fleet, manifest: Mapping[str, Any], *, is_gone: bool = False) -> None:
    """Hand one object on; never raises on odd content."""
    stats = stats_from_manifest(manifest)
    if is_gone:
        fleet.lose_stats(stats.namespace, stats.name, stats.uid)
    else:
        fleet.see_stats(stats, manifest.get("metadata", {}).get("resourceVersion", ""))


def register(registry: kopf.OperatorRegistry, fleet: Fleet) -> None:
    """Have Kopf tell of every change."""

    async def node_disk_io_stats_changed(event: kopf.RawEvent, **_: object) -> None:
        take(fleet, event["object"], is_gone=event["type"] == "DELETED")

    kopf.on.event(names.DISKIO_GROUP, "v1alpha1", PLURAL, registry=registry)(
        node_disk_io_stats_changed
    )
