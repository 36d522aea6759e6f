"""`capacity -f pod.yaml`: how many more pods of one shape fit, where, and what stops each node.

The engine places them one after the other in its own books until one fits nowhere. Room that is left
over and would hold pods if it were together counts as fragmented. Pure, like `simulate`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from berthmaster.api import names
from berthmaster.cli import numa_zones, words
from berthmaster.cli.asking import Asking, read_asking
from berthmaster.cli.errors import CommandError
from berthmaster.cli.filling import Filling, fill
from berthmaster.cli.manifests import Workload
from berthmaster.cli.numa_zones import ZoneRoom
from berthmaster.cli.output import Report, Table
from berthmaster.cli.shortages import distance, room
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.placement.engine import Verdict
from berthmaster.placement.opting import describe_refusal

BOUND = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """Room for `pods` more, in sum, on nodes that each lack the same; none of them holds one."""

    reason: str
    nodes: int
    pods: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many fit; `verdicts` say what stops each node afterwards.

    `zones` are the NUMA zones before and after, where the pod asks something of them.
    """

    workload: Workload
    asking: Asking
    filling: Filling
    verdicts: tuple[Verdict, ...]
    fragments: tuple[Fragment, ...]
    bound: int
    zones: tuple[tuple[ZoneRoom, ZoneRoom], ...] = ()

    @property
    def is_bound_met(self) -> bool:
        """Return whether more than `bound` may fit."""
        return self.filling.nowhere is None


def measure(
    workload: Workload,
    snapshot: Snapshot,
    *,
    bound: int = BOUND,
    own_namespace: str = names.SYSTEM_NAMESPACE,
) -> Capacity:
    """Fill the snapshot's engine with pods of this shape.

    Raises CommandError where the request cannot be understood or its pods are never placed by us.
    """
    asking = read_asking(workload.pod, snapshot, own_namespace=own_namespace)
    if asking.exempt:
        raise CommandError(f"{workload.key} is never placed by Berthmaster: {asking.exempt}")
    if asking.error is not None:
        raise CommandError(describe_refusal(workload.pod, asking.error))
    before = numa_zones.list_zones(snapshot.engine, asking.request)
    filling = fill(snapshot.engine, workload, asking.request, bound)
    after = numa_zones.list_zones(snapshot.engine, asking.request)
    verdicts = tuple(snapshot.engine.verdicts(asking.request))
    return Capacity(
        workload=workload,
        asking=asking,
        filling=filling,
        verdicts=verdicts,
        fragments=() if filling.nowhere is None else _fragments(verdicts),
        bound=bound,
        zones=tuple(zip(before, after, strict=True)),
    )


def build_report(found: Capacity, *, nodes_shown: int, notes: tuple[str, ...] = ()) -> Report:
    """Return the count, each node's share, what stops it, what is fragmented."""
    rows = _rows(found)
    remarks = ["counted now from what the API server shows; nothing was created or reserved"]
    if len(rows) > nodes_shown:
        remarks.append(
            f"{words.nodes(len(rows) - nodes_shown)} not shown: see --nodes, or -o json for all"
        )
    why_not_ours = found.asking.why_not_ours
    if why_not_ours:
        remarks.append(f"as written such pods are left to kube-scheduler: {why_not_ours}")
    return Report(
        sentence=_sentence(found),
        facts=(
            ("Shape", found.workload.key),
            ("Policy", found.asking.policy.name or "none selects it: defaults"),
        ),
        tables=tuple(
            it
            for it in (
                _limits(found),
                _nodes(rows[:nodes_shown]),
                _zones(found, rows[:nodes_shown]),
            )
            if it.rows
        )
        + ((_fragment_table(found.fragments),) if found.fragments else ()),
        remarks=(*remarks, *notes),
        data=_data(found, rows),
    )


def _fragments(verdicts: tuple[Verdict, ...]) -> tuple[Fragment, ...]:
    rooms: dict[str, list[Fraction]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.reason is not None and distance(verdict) is not None:
            rooms[verdict.reason.group].append(room(verdict))
    found = [
        Fragment(reason=group, nodes=len(parts), pods=math.floor(sum(parts)))
        for group, parts in rooms.items()
    ]
    return tuple(sorted((it for it in found if it.pods > 0), key=lambda it: (-it.pods, it.reason)))


def _sentence(found: Capacity) -> str:
    count, total = found.filling.count, len(found.verdicts)
    if not total:
        return "No pod fits: the cluster has no node."
    if not count:
        return f"No more pod like {found.workload.key} fits on any of {words.nodes(total)}."
    pods = "1 more pod" if count == 1 else f"{count} more pods"
    where = f"on {len(found.filling.by_node)} of {words.nodes(total)}"
    if found.is_bound_met:
        return (
            f"At least {pods} like {found.workload.key} fit, {where}; counting stopped there, "
            "--max counts on."
        )
    return f"{pods} like {found.workload.key} fit{'s' * (count == 1)}, {where}."


# A node, how many it takes, the reason that stops it and the detail.
_Row = tuple[str, int, str, str]


def _rows(found: Capacity) -> list[_Row]:
    rows = []
    for verdict in found.verdicts:
        count, reason = found.filling.by_node[verdict.node], verdict.reason
        stopped = reason.group if reason is not None else ""
        detail = reason.detail if reason is not None else ""
        rows.append((verdict.node, count, stopped, detail))
    return sorted(rows, key=lambda it: (-it[1], it[0]))


def _limits(found: Capacity) -> Table:
    """What stops the nodes, counted."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for verdict in found.verdicts:
        if verdict.reason is not None:
            key = (verdict.concern, verdict.reason.group)
            groups[key].append(found.filling.by_node[verdict.node])
    ordered = sorted(groups.items(), key=lambda it: (-len(it[1]), it[0]))
    return Table(
        title="What stops them",
        headers=("NODES", "PODS THERE", "CONCERN", "REASON"),
        rows=tuple(
            (str(len(counts)), str(sum(counts)), words.title(concern), group)
            for (concern, group), counts in ordered
        ),
        numbers=frozenset({0, 1}),
    )


def _nodes(rows: list[_Row]) -> Table:
    return Table(
        title="By node",
        headers=("NODE", "FIT", "THEN"),
        rows=tuple(
            (node, str(count), f"{stopped}: {detail}" if detail else stopped or "more would fit")
            for node, count, stopped, detail in rows
        ),
        numbers=frozenset({1}),
    )


def _zones(found: Capacity, rows: list[_Row]) -> Table:
    """What each zone has now, how many of the pods it takes, and what is left of it then."""
    order = {node: place for place, (node, *_) in enumerate(rows)}
    shown = [it for it in found.zones if it[0].node in order]
    shown.sort(key=lambda it: (order[it[0].node], it[0].zone))
    return Table(
        title="NUMA zones",
        headers=("NODE", "ZONE", "FREE NOW", "FIT", "LEFT THEN"),
        rows=tuple(
            (now.node, str(now.zone), now.sentence, str(_pods_in(found, now)), then.sentence)
            for now, then in shown
        ),
        numbers=frozenset({1, 3}),
    )


def _pods_in(found: Capacity, zone: ZoneRoom) -> int:
    return found.filling.by_zone[zone.node, str(zone.zone)]


def _fragment_table(fragments: tuple[Fragment, ...]) -> Table:
    return Table(
        title="Fragmented: room that exists in sum but on no single node",
        headers=("PODS", "NODES", "WHAT IS SHORT ON EACH"),
        rows=tuple((str(it.pods), str(it.nodes), it.reason) for it in fragments),
        numbers=frozenset({0, 1}),
    )


def _data(found: Capacity, rows: list[_Row]) -> dict[str, Any]:
    concerns = {it.node: it.concern for it in found.verdicts}
    zones: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for now, then in found.zones:
        data = {**now.to_data(), "fit": _pods_in(found, now), "left": dict(then.free)}
        zones[now.node].append(data)
    return {
        "shape": found.workload.key,
        "policy": found.asking.policy.name or None,
        "count": found.filling.count,
        "isBoundMet": found.is_bound_met,
        "bound": found.bound,
        "nodes": [
            {
                "node": node,
                "fit": count,
                "concern": concerns[node] or None,
                "reason": stopped or None,
                "detail": detail,
                **({"zones": zones[node]} if node in zones else {}),
            }
            for node, count, stopped, detail in rows
        ],
        "fragments": [
            {"reason": it.reason, "nodes": it.nodes, "pods": it.pods} for it in found.fragments
        ],
    }
