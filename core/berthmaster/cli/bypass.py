"""`bypass`: pods that run past us, what they took of their nodes, and whether a line was crossed.

Two ways lead past a decision: a pod asked for placement and was bound without one (ungated, bound by
somebody else, there before us), or it was decided and runs on another node. Both are counted where they
are, from what they request. Pure but for the list of pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import read_allocation
from berthmaster.api.objects import Pod, decode_pod
from berthmaster.api.policy import Mode
from berthmaster.cli import words
from berthmaster.cli.doctor.pods import is_past_us
from berthmaster.cli.output import Report, Table
from berthmaster.cluster.client import Client, read_items
from berthmaster.placement.engine import Engine
from berthmaster.placement.filling import Filling, Level, Resource

# Pods that hold something: bound, and not at their end.
_RUNNING = {"fieldSelector": "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"}
NO_DECISION, ELSEWHERE = "without a decision", "elsewhere than decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class PastPod:
    """A pod past us, and what it takes of its node."""

    pod: str
    how: str
    taken: dict[Resource, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastNode:
    """A node with pods past us; `crossed` are the resources of which more is used than it has."""

    name: str
    pods: tuple[PastPod, ...]
    crossed: dict[Resource, Level]

    @property
    def taken(self) -> dict[Resource, float]:
        """Return what they take together."""
        sums: dict[Resource, float] = {}
        for pod in self.pods:
            for it, amount in pod.taken.items():
                sums[it] = sums.get(it, 0.0) + amount
        return sums


async def list_bound(client: Client) -> list[Pod]:
    """Return the pods that run. Raises ApiError, UnreachableError."""
    pods = []
    async for page in client.list_pages("/api/v1/pods", _RUNNING):
        for item in read_items(page):
            try:
                pods.append(decode_pod(item))
            except msgspec.DecodeError:
                # Nobody counts it either; the programs log it.
                continue
    return pods


def find(pods: Sequence[Pod], engine: Engine) -> list[PastNode]:
    """Return the nodes with pods past us, those past their line first, then by name."""
    filling = Filling(engine.table)
    filling.refresh()
    by_node: dict[str, list[PastPod]] = {}
    for pod in sorted(pods, key=lambda it: it.key):
        how = _how(pod)
        entry = engine.ledger.entry(pod.metadata.uid) if how else None
        if entry is not None:
            found = PastPod(pod=pod.key, how=how, taken=filling.taken(entry))
            by_node.setdefault(entry.node, []).append(found)
    nodes = [
        PastNode(name=name, pods=tuple(found), crossed=dict(_crossed(filling, name)))
        for name, found in by_node.items()
    ]
    return sorted(nodes, key=lambda it: (not it.crossed, it.name))


def build_report(nodes: Sequence[PastNode], *, notes: Sequence[str] = ()) -> Report:
    """Return what was found."""
    count = sum(len(it.pods) for it in nodes)
    crossed = sum(bool(it.crossed) for it in nodes)
    tables = []
    if nodes:
        rows = [(it.name, str(len(it.pods)), _amounts(it.taken), _lines(it)) for it in nodes]
        headers = ("NODE", "PODS", "TAKEN PAST US", "LINE")
        tables.append(
            Table(title="Nodes", headers=headers, rows=tuple(rows), numbers=frozenset({1}))
        )
        each = [(pod.pod, it.name, pod.how, _amounts(pod.taken)) for it in nodes for pod in it.pods]
        headers = ("POD", "NODE", "RUNS", "TAKES")
        tables.append(Table(title="Pods", headers=headers, rows=tuple(each)))
    return Report(
        sentence=_sentence(count, len(nodes), crossed),
        tables=tuple(tables),
        remarks=tuple(notes),
        data={
            "pods": count,
            "nodes": [_data(it) for it in nodes],
            "notes": list(notes),
        },
    )


def _how(pod: Pod) -> str:
    """Return how a running pod came past us, empty if it did not."""
    if not pod.spec.node_name or pod.is_finished:
        return ""
    if is_past_us(pod):
        return NO_DECISION
    allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
    is_bound_to = allocation is not None and allocation.mode in (Mode.REQUIRED, Mode.BIND)
    if is_bound_to and allocation is not None and allocation.node != pod.spec.node_name:
        return ELSEWHERE
    return ""


def _crossed(filling: Filling, name: str) -> Iterator[tuple[Resource, Level]]:
    # What a node draws has no line.
    return (
        (it, level)
        for it, level in filling.of_node(name)
        if level.is_over and it.concern != "power"
    )


def _sentence(pods: int, nodes: int, crossed: int) -> str:
    if not pods:
        return "No pod runs past Berthmaster: all that ask were placed by it."
    runs = "1 pod runs" if pods == 1 else f"{pods} pods run"
    line = f"{crossed} of them past their line" if crossed else "none of them past its line"
    return f"{runs} past Berthmaster on {words.nodes(nodes)}, {line}."


def _lines(node: PastNode) -> str:
    if not node.crossed:
        return "kept"
    return ", ".join(
        f"{_name(it)} {_amount(it, level.used)} of {_amount(it, level.capacity)}"
        for it, level in node.crossed.items()
    )


def _amounts(taken: dict[Resource, float]) -> str:
    return ", ".join(f"{_name(it)} {_amount(it, amount)}" for it, amount in taken.items()) or "-"


def _name(it: Resource) -> str:
    return it.resource if it.concern == "resources" else f"{words.title(it.concern)} {it.resource}"


def _amount(it: Resource, amount: float) -> str:
    return words.amount(amount, it.unit) or f"{amount:.3f}".rstrip("0").rstrip(".")


def _data(node: PastNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "taken": _list(node.taken),
        "crossed": [
            {**it._asdict(), "capacity": level.capacity, "used": level.used}
            for it, level in node.crossed.items()
        ],
        "pods": [{"pod": it.pod, "how": it.how, "taken": _list(it.taken)} for it in node.pods],
    }


def _list(taken: dict[Resource, float]) -> list[dict[str, Any]]:
    return [{**it._asdict(), "amount": amount} for it, amount in taken.items()]
