"""`inspect [NODE]`: a bar for each accelerator, whoever serves it, and the pods on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from berthmaster.api.inventory import XPU
from berthmaster.cli.output import Report, Table
from berthmaster.cli.xpu_facts import XPUNodeFacts

_WIDTH = 20
_FULL, _EMPTY = "#", "."
_SHOWN_PODS = 4


def build_report(nodes: Sequence[XPUNodeFacts], node: str = "") -> Report:
    """Return all devices of the nodes, or of one."""
    rows = tuple(_row(it, xpu) for it in nodes for xpu in it.xpus)
    pending = tuple(
        (it.name, pod.key, f"{pod.pending_mib} MiB")
        for it in nodes
        for pod in it.pods
        if pod.pending_mib
    )
    tables = [
        Table(
            title="Devices",
            headers=("NODE", "XPU", "MODEL", "USED", "OF MIB", "", "STATE", "PODS"),
            rows=rows,
            numbers=frozenset({1, 3, 4}),
            styles={"unhealthy": "red", "cordoned": "yellow", "over": "bold red"},
        )
    ]
    if pending:
        tables.append(
            Table(
                title="Pods that ask for memory of no known device",
                headers=("NODE", "POD", "ASKS"),
                rows=pending,
            )
        )
    return Report(
        sentence=_sentence(nodes, node),
        tables=tuple(it for it in tables if it.rows),
        data=_data(nodes),
    )


def bar(used: int, total: int) -> str:
    """Return how full a device is, one sign for a twentieth, something for anything."""
    if total <= 0:
        return _EMPTY * _WIDTH
    filled = min(_WIDTH, -(-used * _WIDTH // total))
    return _FULL * filled + _EMPTY * (_WIDTH - filled)


def _row(node: XPUNodeFacts, xpu: XPU) -> tuple[str, ...]:
    used = node.used_mib(xpu.index)
    return (
        node.name,
        str(xpu.index),
        xpu.model or "-",
        str(used),
        str(xpu.memory_mib),
        bar(used, xpu.memory_mib),
        _state(xpu, used),
        _pods(node, xpu.index),
    )


def _state(xpu: XPU, used: int) -> str:
    if used > xpu.memory_mib:
        return "over"
    if not xpu.healthy:
        return "unhealthy"
    return "cordoned" if xpu.cordoned else "ok"


def _pods(node: XPUNodeFacts, index: int) -> str:
    here = [f"{it.key} {it.mib[index]}" for it in node.pods if index in it.mib]
    more = f", and {len(here) - _SHOWN_PODS} more" if len(here) > _SHOWN_PODS else ""
    return ", ".join(here[:_SHOWN_PODS]) + more or "-"


def _sentence(nodes: Sequence[XPUNodeFacts], node: str) -> str:
    if not nodes:
        return f"Node {node} has no XPUs." if node else "No node has XPUs."
    devices = [(it, xpu) for it in nodes for xpu in it.xpus]
    used = sum(it.used_mib(xpu.index) for it, xpu in devices)
    total = sum(xpu.memory_mib for _, xpu in devices)
    share = f" ({100 * used // total}%)" if total else ""
    where = f"node {nodes[0].name}" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"{len(devices)} XPUs on {where}: {used} of {total} MiB are taken{share}."


def _data(nodes: Sequence[XPUNodeFacts]) -> dict[str, Any]:
    return {
        "nodes": [
            {
                "name": node.name,
                "address": node.address,
                "source": node.node.source,
                "devices": [
                    {
                        "index": xpu.index,
                        "id": xpu.id,
                        "model": xpu.model,
                        "memoryMiB": xpu.memory_mib,
                        "usedMiB": node.used_mib(xpu.index),
                        "healthy": xpu.healthy,
                        "cordoned": xpu.cordoned,
                    }
                    for xpu in node.xpus
                ],
                "pods": [
                    {
                        "namespace": it.namespace,
                        "name": it.name,
                        "dialect": it.held.dialect,
                        "devices": [{"index": index, "mib": mib} for index, mib in it.held.mib],
                        "pendingMiB": it.pending_mib,
                        "isBound": it.is_bound,
                    }
                    for it in node.pods
                ],
            }
            for node in nodes
        ]
    }
