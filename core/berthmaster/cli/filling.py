"""Place equal pods one after the other by the engine's own books, as if each were created and bound.

The engine that is given changes by it: what is placed is charged, so the next pod finds less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, write_allocation
from berthmaster.api.objects import Pod
from berthmaster.cli.manifests import Workload
from berthmaster.cli.numa_zones import NAME, allocated_zones, presume
from berthmaster.placement.affinity import can_pin
from berthmaster.placement.engine import Decision, Engine
from berthmaster.placement.shapes import PodRequest

# Starts the uid of a pod that is only imagined.
_IMAGINED = "imagined "
# Holdings that are looked at one by one on a node that is short.
_MOST_HOLDERS = 512


@dataclass(slots=True, kw_only=True)
class Filling:
    """What came of it; `nowhere` is the decision that found no node, None where the bound was met."""

    by_node: Counter[str] = field(default_factory=Counter)
    # By node and NUMA zone; a pod that lies in two zones counts in both.
    by_zone: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: Decision | None = None
    nowhere: Decision | None = None

    @property
    def count(self) -> int:
        """Return how many pods were placed."""
        return self.by_node.total()


def fill(engine: Engine, workload: Workload, request: PodRequest, bound: int) -> Filling:
    """Place pods until one fits nowhere, or until `bound` are placed."""
    filling = Filling()
    for number in range(1, bound + 1):
        decision_id = f"{workload.key}#{number}"
        chosen = engine.choose(request, decision_id)
        if chosen is None or not can_pin(workload.raw, chosen[0]):
            filling.nowhere = engine.decide(request, decision_id)
            break
        node, allocated = chosen
        filling.first = filling.first or engine.decide(request, decision_id)
        filling.by_node[node] += 1
        filling.by_zone.update((node, it) for it in allocated_zones(allocated.get(NAME, {})))
        placed = Allocation(version=1, id=decision_id, node=node, allocated=allocated)
        engine.ledger.see(_bound(workload.pod, placed, number))
    return filling


def find_releasers(engine: Engine, request: PodRequest, node: str) -> Iterator[str]:
    """Yield the pods (`namespace/name`) on a node of which each alone, gone, would make it fit.

    The request must fit nowhere now. Pods that were placed here by `fill` are left out. Those whose NUMA
    zones nobody has seen are taken to lie where they were predicted.
    """
    presume(engine)
    table = engine.table
    row = table.row_of(node)
    if row is None:
        return
    for entry in engine.ledger.on_node(node)[:_MOST_HOLDERS]:
        if entry.holder.key.startswith(_IMAGINED):
            continue
        held = [(table.concerns[index], usage) for index, usage in entry.usages]
        for concern, usage in held:
            concern.release(table.columns[concern.name], row, entry.holder, usage)
        table.touch(row)
        is_enough = engine.choose(request, "releasing") is not None
        for concern, usage in held:
            concern.charge(table.columns[concern.name], row, entry.holder, usage)
        table.touch(row)
        if is_enough:
            yield f"{entry.holder.namespace}/{entry.holder.name}"


def _bound(pod: Pod, placed: Allocation, number: int) -> Pod:
    """Return the pod as the ledger would see it after it was placed and bound."""
    metadata = msgspec.structs.replace(
        pod.metadata,
        uid=f"{_IMAGINED}{placed.id}",
        name=f"{pod.metadata.name}-{number}",
        annotations={**pod.annotations, names.ALLOCATION: write_allocation(placed)},
    )
    spec = msgspec.structs.replace(pod.spec, node_name=placed.node, scheduling_gates=None)
    return msgspec.structs.replace(pod, metadata=metadata, spec=spec)
