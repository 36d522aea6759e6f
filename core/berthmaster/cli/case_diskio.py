"""Decision cases of disk IO: vendors' objects of a case to inventories, as the operator does it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from berthmaster.api import names
from berthmaster.api.diskio import device_from_manifest, stats_from_manifest
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.concerns.diskio.inventory import build_disks
from berthmaster.concerns.diskio.models import DiskModels, read_models


def build_inventories(
    resources: Iterable[Mapping[str, Any]], normalizers: Mapping[str, Mapping[str, Any]]
) -> dict[str, NodeInventory]:
    """Return an inventory per node that a NodeDiskDevice names.

    `normalizers` stands for the functions that the ConfigMap's URLs would have loaded.
    """
    devices, stats = {}, {}
    for resource in resources:
        kind = resource["kind"]
        if kind == "NodeDiskDevice":
            device = device_from_manifest(resource)
            devices[device.node_name] = device
        elif kind == "NodeDiskIOStats":
            report = stats_from_manifest(resource)
            stats[report.node_name] = report
        elif kind != "ConfigMap":
            raise ValueError(f"cluster.resources: unknown kind {kind}")
    models = _models(normalizers)
    inventories = {}
    for node, device in devices.items():
        built = build_disks(device, stats.get(node), models)
        status = NodeInventoryStatus(disks=built.disks)
        # Through the wire form, as the webhook reads it.
        inventories[node] = NodeInventory(
            name=node, status=NodeInventoryStatus.model_validate(status.to_wire())
        )
    return inventories


def _models(normalizers: Mapping[str, Mapping[str, Any]]) -> DiskModels:
    entries = []
    for key, tables in normalizers.items():
        vendor, _, model = key.partition("-")
        entries.append({"vendor": vendor, "model": model, **tables})
    return read_models({names.DISK_MODELS_KEY: json.dumps(entries)})
