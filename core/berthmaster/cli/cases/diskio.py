"""Decision cases of disk IO: vendors' objects of a case to inventories, as the operator does it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from berthmaster.api import names
from berthmaster.api.diskio import device_from_manifest, stats_from_manifest
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.policy import ConcernSettings
from berthmaster.api.settings.diskio import DiskIOSettings
from berthmaster.cli.cases.worlds import Case, CaseWorld, as_read, check_keys, check_no_metrics
from berthmaster.concerns.diskio import CONCERN
from berthmaster.concerns.diskio.inventory import build_disks
from berthmaster.concerns.diskio.models import DiskModels, read_models


def load(case: Case) -> CaseWorld:
    """Return the world of a case."""
    config, cluster = case["config"], case["cluster"]
    check_no_metrics(case)
    check_keys(config, {"plugin", "scoreStrategy", "nsWhiteList", "normalizers"}, "config")
    settings = DiskIOSettings.model_validate(
        {
            "strategy": config.get("scoreStrategy", "LeastAllocated"),
            "nsWhiteList": config.get("nsWhiteList") or (),
        }
    )
    return CaseWorld(
        concern=CONCERN,
        settings=ConcernSettings(diskio=settings),
        inventories=_build_inventories(cluster["resources"], config.get("normalizers") or {}),
    )


def _build_inventories(
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
        inventories[node] = as_read(node, status)
    return inventories


def _models(normalizers: Mapping[str, Mapping[str, Any]]) -> DiskModels:
    entries = []
    for key, tables in normalizers.items():
        vendor, _, model = key.partition("-")
        entries.append({"vendor": vendor, "model": model, **tables})
    return read_models({names.DISK_MODELS_KEY: json.dumps(entries)})
