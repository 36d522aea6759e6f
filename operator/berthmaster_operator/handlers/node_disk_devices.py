"""NodeDiskDevice: which disks a node has.

One that names no node counts for none, and an Event on the object itself says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from berthmaster.api import names
from berthmaster.api.diskio import NodeDiskDevice, device_from_manifest
from berthmaster.cluster.events import EventRecorder, ObjectRef
from berthmaster_operator.fleet import Fleet

PLURAL = "nodediskdevices"
PATH = f"/apis/{names.DISKIO_API_VERSION}/{PLURAL}"


def take(fleet: Fleet, manifest: Mapping[str, Any], *, is_gone: bool = False) -> NodeDiskDevice:
    """Hand one object on and return it as read; never raises on odd content."""
    device = device_from_manifest(manifest)
    if is_gone:
        fleet.lose_device(device.namespace, device.name, device.uid)
    else:
        fleet.see_device(device, manifest.get("metadata", {}).get("resourceVersion", ""))
    return device


def register(registry: kopf.OperatorRegistry, fleet: Fleet, events: EventRecorder) -> None:
    """Have Kopf tell of every change."""

    async def node_disk_device_changed(event: kopf.RawEvent, **_: object) -> None:
        is_gone = event["type"] == "DELETED"
        device = take(fleet, event["object"], is_gone=is_gone)
        if not is_gone and not device.node_name:
            _tell_nameless(events, device)

    kopf.on.event(names.DISKIO_GROUP, "v1alpha1", PLURAL, registry=registry)(
        node_disk_device_changed
    )


def _tell_nameless(events: EventRecorder, device: NodeDiskDevice) -> None:
    ref = ObjectRef(
        api_version=names.DISKIO_API_VERSION,
        kind="NodeDiskDevice",
        name=device.name,
        namespace=device.namespace,
        uid=device.uid,
    )
    for problem in device.problems:
        events.record(ref, "DiskIONotReady", problem, action="ReadDevice", type_="Warning")
