"""`inspect`: which pod has how much of which device, in the layout of the gpushare family."""

from __future__ import annotations

from typing import Any

from berthmaster.concerns.xpu import CONCERN
from berthmaster.placement.engine import Engine


def inspect_nodes(engine: Engine) -> dict[str, Any]:
    """Return every node with devices, by name."""
    found = [inspect_node(engine, name) for name in sorted(engine.table)]
    return {"nodes": [it for it in found if it["devs"]]}


def inspect_node(engine: Engine, name: str) -> dict[str, Any]:
    """Return one node that the engine knows; memory in MiB."""
    row = engine.table.rows[name]
    columns = engine.table.columns[CONCERN.name]
    shares: dict[int, list[dict[str, Any]]] = {}
    for holder, held in columns.held(row):
        for index, mib in held.mib:
            pod = {"name": holder.name, "namespace": holder.namespace, "usedXPU": mib}
            shares.setdefault(index, []).append(pod)
    devices = [
        {
            "id": xpu.index,
            "totalXPU": xpu.memory_mib,
            "usedXPU": sum(it["usedXPU"] for it in shares.get(xpu.index, ())),
            "pods": sorted(shares.get(xpu.index, ()), key=lambda it: (it["namespace"], it["name"])),
        }
        for xpu in columns.xpus(row)
    ]
    return {
        "name": name,
        "totalXPU": sum(it["totalXPU"] for it in devices),
        "usedXPU": sum(it["usedXPU"] for it in devices),
        "devs": devices,
    }
