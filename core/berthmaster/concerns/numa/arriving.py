"""Pods on their way: sent to a node, and not yet taken by its kubelet.

In which zone a pod lies depends on what its kubelet finds when it takes the pod: on who came before, and who was
gone by then. kube-scheduler binds several pods at once, so they may arrive in another order than they
were placed in. Zones of 8 and 8 CPUs, pods of 3, 4, 5 and 3 placed in this order: 3 and 4 lie in zone 0,
5 and 3 in zone 1. If the two of 3 arrive first, both lie in zone 0, 4 in zone 1, and there is no room for 5.

* Pods that ask the same may change places without harm: they are taken off as they will lie if they arrive now.
* Where pods of another shape are on their way, a pod fits only if some zone holds the whole of it beside all
  of those that are not certain (the view DOUBTFUL), and could hold each of them: whoever is crowded out of
  another zone finds room in that one. A pod with an init container, whose zone binds those after it, waits.
* The zone of a pod is certain once its kubelet has taken it, if it was alone on its way or among its like, and
  everybody whom the report counts was still there. It is so only until somebody leaves the node: whose room
  the kubelet had for others by when, nobody tells. The zone of any other stays uncertain until a report
  counts the pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from berthmaster.concerns.numa import zones as arithmetic
from berthmaster.concerns.numa.request import NumaUsage
from berthmaster.concerns.numa.zones import NodeZones, Zones

NONE, VARIOUS = 0, -1


class _Before(NamedTuple):
    """What was known before a release, for it may be the first half of a change: the pod is charged again."""

    key: str
    zones: NodeZones
    was_coming: bool
    uncertain: frozenset[str]
    certain: frozenset[str]


@dataclass(slots=True)
class Arrivals:
    """Who is on the way to one node, by key, and whose zones are certain or not; nobody is in the report.

    `settled` is what the node's zones have without those that are on their way.
    """

    shapes: dict[str, int] = field(default_factory=dict)
    # Of those, whom the kubelet may have taken without our knowing of it.
    bound: set[str] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)
    certain: set[str] = field(default_factory=set)
    settled: Zones = field(default_factory=list)
    _before: _Before | None = None

    def charge(self, key: str, usage: NumaUsage, zones: NodeZones, *, is_behind: bool) -> NumaUsage:
        """Take over a pod or an answer; return its usage with where it lies, if no report counts it.

        The books are behind if pods that the report counts are gone, and nobody knows from which zones.
        """
        before, self._before = self._before, None
        was_coming = False
        if before is not None and before.key == key and before.zones is zones:
            was_coming = before.was_coming
            self.uncertain, self.certain = set(before.uncertain), set(before.certain)
        if key in zones.reported or not arithmetic.is_held(zones, usage):
            return usage
        if usage.coming:
            self.shapes[key] = usage.coming
            if usage.is_bound:
                self.bound.add(key)
            if self.uncertain or len(set(self.shapes.values())) > 1:
                self.uncertain.update(self.shapes)
            return usage
        is_certain = was_coming and key not in self.uncertain and is_moving(usage, zones)
        (self.certain if is_certain and not is_behind else self.uncertain).add(key)
        if not was_coming or not is_moving(usage, zones):
            return usage
        free = [dict(zone) for zone in self.settled]
        given = arithmetic.predict(zones, free, usage.containers)
        return usage._replace(zones=tuple((zones.ids[slot], amounts) for slot, amounts in given))

    def release(self, key: str, usage: NumaUsage, zones: NodeZones) -> None:
        """Forget one, and what depended on its being there."""
        was_coming = self.shapes.pop(key, 0) != 0
        self.bound.discard(key)
        self._before = _Before(
            key, zones, was_coming, frozenset(self.uncertain), frozenset(self.certain)
        )
        # No kubelet knows of a pod that is not bound.
        if usage.is_bound and arithmetic.is_held(zones, usage):
            self.uncertain |= self.bound | self.certain
            self.certain.clear()

    def rename(self, before: str, after: str) -> None:
        """Take one for another."""
        self._before = None
        if before in self.shapes:
            self.shapes[after] = self.shapes.pop(before)
        for keys in (self.bound, self.uncertain, self.certain):
            if before in keys:
                keys.remove(before)
                keys.add(after)

    def recount(self, held: Mapping[str, NumaUsage], zones: NodeZones) -> None:
        """Forget who is gone, and who is counted by the report; hear of who was there before it."""
        left = {
            key: usage
            for key, usage in held.items()
            if key not in zones.reported and arithmetic.is_held(zones, usage)
        }
        self.shapes = {key: usage.coming for key, usage in left.items() if usage.coming}
        self.bound = {key for key in self.shapes if left[key].is_bound}
        self.certain &= left.keys()
        self.uncertain &= left.keys()
        self.uncertain |= left.keys() - self.shapes.keys() - self.certain

    def lies_as_it_comes(self, key: str, usage: NumaUsage, zones: NodeZones) -> bool:
        """Return whether a pod lies where its kubelet puts it now, whatever was foreseen.

        Of pods that are alike a report may count the later one first, so it holds for those that are certain.
        """
        return (bool(usage.coming) or key in self.certain) and is_moving(usage, zones)

    @property
    def shape(self) -> int:
        """Return the shape of all that are on their way, NONE without any; VARIOUS where zones are uncertain."""
        if self.uncertain:
            return VARIOUS
        return next(iter(self.shapes.values()), NONE)


def is_moving(usage: NumaUsage, zones: NodeZones) -> bool:
    """Return whether each of a pod's containers lies in one zone, the lowest that holds it."""
    if usage.left or not usage.containers:
        return False
    return zones.is_single or len(usage.zones or ()) <= 1
