"""What NUMA zones have left for a pod, node by node, for tables and data; and zones in words.

From the engine's own books: the updater's numbers less what pods hold that they do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from berthmaster.api import names
from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Pod
from berthmaster.cli.output import Table
from berthmaster.concerns.numa.amounts import describe, is_affine, read_offer
from berthmaster.concerns.numa.columns import NumaColumns, View
from berthmaster.concerns.numa.reasons import ALIGNMENTS
from berthmaster.concerns.numa.request import NumaRequest
from berthmaster.concerns.numa.zones import read_observed
from berthmaster.placement.engine import Engine, Verdict
from berthmaster.placement.shapes import PodRequest

NAME = "numa"
# A request names few resources; more would be no table any more.
_MOST_RESOURCES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneRoom:
    """One zone: what is free and what there is in all, by resource, in words such as `8` and `16Gi`."""

    node: str
    zone: int
    policy: str
    free: Mapping[str, str]
    total: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """Return `cpu 8 of 16, memory 12Gi of 64Gi`."""
        parts = (f"{name} {free} of {self.total[name]}" for name, free in self.free.items())
        return ", ".join(parts) or "nothing of what is asked"

    def to_data(self) -> dict[str, Any]:
        """Return the zone for programs, without its node."""
        return {"zone": self.zone, "free": dict(self.free), "total": dict(self.total)}


def list_zones(engine: Engine, request: PodRequest) -> tuple[ZoneRoom, ...]:
    """Return all zones of all nodes, with what the pod asks of them; none if it asks nothing."""
    asked = next((it.request for it in request if isinstance(it.request, NumaRequest)), None)
    columns = engine.table.columns.get(NAME)
    if asked is None or not isinstance(columns, NumaColumns):
        return ()
    return tuple(_zones(engine, columns, asked))


def presume(engine: Engine) -> None:
    """Have the engine's books take pods to lie where they were predicted, for what-if questions."""
    columns = engine.table.columns.get(NAME)
    if isinstance(columns, NumaColumns):
        columns.presumes = True


def _zones(engine: Engine, columns: NumaColumns, asked: NumaRequest) -> Iterator[ZoneRoom]:
    for node in sorted(engine.table):
        row = engine.table.rows[node]
        zones = columns.zones(row)
        if zones is None:
            continue
        wanted = [it for it in asked.resources if not is_affine(it) or zones.aligns(it)]
        free, total = columns.free(row), columns.free(row, View.TOTAL)
        for slot, id_ in enumerate(zones.ids):
            listed = [it for it in wanted if it in free[slot]][:_MOST_RESOURCES]
            yield ZoneRoom(
                node=node,
                zone=id_,
                policy=zones.policy,
                free={name: describe(name, free[slot][name]) for name in listed},
                total={name: describe(name, total[slot].get(name, 0)) for name in listed},
            )


def remarks(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Yield what kubelets would answer, where zones of a node cannot serve the pod."""
    if any(
        it.concern == NAME and it.reason is not None and it.reason.group in ALIGNMENTS
        for it in verdicts
    ):
        yield (
            "where zones cannot serve it the kubelet itself would turn the pod away: "
            f"{names.TOPOLOGY_AFFINITY_ERROR}"
        )


def by_node(zones: Iterable[ZoneRoom]) -> dict[str, list[ZoneRoom]]:
    """Return the zones by node, in their order."""
    found: dict[str, list[ZoneRoom]] = {}
    for zone in zones:
        found.setdefault(zone.node, []).append(zone)
    return found


def table(zones: Iterable[ZoneRoom], nodes: Iterable[str]) -> Iterator[Table]:
    """Yield a table of the zones of these nodes, in the order of the nodes, if there are any."""
    grouped = by_node(zones)
    rows = [
        (it.node, str(it.zone), it.policy, it.sentence)
        for node in nodes
        for it in grouped.get(node, ())
    ]
    if rows:
        yield Table(
            title="NUMA zones",
            headers=("NODE", "ZONE", "POLICY", "FREE"),
            rows=tuple(rows),
            numbers=frozenset({1}),
        )


def allocated_zones(allocated: Mapping[str, Any]) -> dict[str, str]:
    """Return what each zone gives by an allocation: `{"0": "4 cpu, 8Gi memory"}`."""
    zones = allocated.get("zones")
    if not isinstance(zones, Mapping):
        return {}
    return {
        str(id_): ", ".join(
            f"{describe(name, read_offer(name, str(amount)))} {name}"
            for name, amount in amounts.items()
        )
        for id_, amounts in zones.items()
        if isinstance(amounts, Mapping)
    }


def seen_zones(pod: Pod, inventory: NodeInventory | None) -> list[int] | None:
    """Return the zones in which its node's updater saw the pod, None where it tells of none."""
    topology = inventory.status.topology if inventory is not None else None
    if topology is None:
        return None
    zones = read_observed(topology).get(pod.metadata.uid, ())
    return sorted({it for it in zones if it >= 0}) or None


def describe_allocated(allocated: Mapping[str, Any]) -> str:
    """Return `zone 0: 4 cpu, 8Gi memory; zone 1: 2 cpu`, empty where no zone is named."""
    return "; ".join(f"zone {id_}: {what}" for id_, what in allocated_zones(allocated).items())
