"""Pods of mode `observe`, counted: where each is, where it would have gone, what that would have been worth.

Where a pod would have gone stands in its allocation, with what that promised, as of its creation. Where it is is
judged now, by itself, as if it came once more: it is taken out of the books, its node is asked, and it is put back.
Pods are taken one by one and none is kept, so memory does not grow with them beyond a line per node and a few
examples. How many are judged is bounded, since each takes one to two milliseconds at 5,000 nodes
(`bench/observe_report.py`); all are counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode
from berthmaster.cli import savings
from berthmaster.cli.numa_zones import presume
from berthmaster.cluster.snapshot import Snapshot
from berthmaster.placement.engine import Opinion
from berthmaster.placement.filling import Filling, Resource

_EXAMPLES = 10
# What every pod asks; a node that kube-scheduler took refuses nothing of it.
_ALWAYS_THERE = "resources"
K = TypeVar("K")


@dataclass(slots=True)
class Gain:
    """What one concern makes of the pods that are elsewhere; scores are sums over `scored` pods.

    `refused` counts pods whose node the concern refuses now. `saved` are figures of `savings`.
    """

    judged: int = 0
    refused: int = 0
    scored: int = 0
    score_there: float = 0.0
    score_chosen: float = 0.0
    saved: dict[str, float] = field(default_factory=dict)


class Past(NamedTuple):
    """How far nodes are past their line, in all, and how many."""

    amount: float
    nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A pod that is elsewhere; `why` says what its node lacks, empty where it only scores less."""

    pod: str
    node: str
    chosen: str
    why: str
    loss: float


@dataclass(slots=True)
class Counts:
    """Pods that observe, by what became of them."""

    agreeing: int = 0
    elsewhere: int = 0
    unbound: int = 0
    undecided: int = 0

    @property
    def bound(self) -> int:
        """Return how many have both a decision and a node."""
        return self.agreeing + self.elsewhere


class Tally:
    """All pods that observe, as they are shown one by one."""

    def __init__(self, snapshot: Snapshot, *, most_judged: int) -> None:
        presume(snapshot.engine)
        self._snapshot = snapshot
        self._most_judged = most_judged
        self.by_namespace: dict[str, Counts] = defaultdict(Counts)
        self.gains: dict[str, Gain] = defaultdict(Gain)
        self.examples: list[Example] = []
        self.judged = 0
        # Elsewhere, and not judged: finished, not in the books, or past the bound.
        self.not_judged = 0
        # Turned away by their kubelet where they are, and not sent there by us.
        self.turned_away = 0
        self._filling = Filling(snapshot.engine.table)
        # What pods that are elsewhere take, by node.
        self._taken: dict[str, dict[Resource, float]] = defaultdict(dict)

    @property
    def counts(self) -> Counts:
        """Return the counts of all namespaces."""
        found = Counts()
        for it in self.by_namespace.values():
            found.agreeing += it.agreeing
            found.elsewhere += it.elsewhere
            found.unbound += it.unbound
            found.undecided += it.undecided
        return found

    def take(self, pod: Pod) -> None:
        """Count a pod, if it observes."""
        allocation = read_allocation(pod.annotations.get(names.ALLOCATION))
        mode = pod.annotations.get(names.PLACEMENT) if allocation is None else allocation.mode
        if mode != Mode.OBSERVE:
            return
        counts = self.by_namespace[pod.metadata.namespace]
        node = pod.spec.node_name
        if allocation is None:
            counts.undecided += 1
        elif not node:
            counts.unbound += 1
        elif node == allocation.node:
            counts.agreeing += 1
        else:
            counts.elsewhere += 1
            self._look_at(pod, allocation)

    def overcommit(self) -> dict[Resource, Past]:
        """Return how far nodes are past their line because of these pods, by resource.

        For each node that is what it uses beyond what it has, but no more than what these pods take of it.
        """
        self._filling.refresh()
        found: dict[Resource, Past] = {}
        for node, taken in self._taken.items():
            for resource, level in self._filling.of_node(node):
                if level.is_over and resource in taken:
                    past = found.get(resource, Past(0.0, 0))
                    amount = min(level.used - level.capacity, taken[resource])
                    found[resource] = Past(past.amount + amount, past.nodes + 1)
        return found

    def _look_at(self, pod: Pod, allocation: Allocation) -> None:
        if pod.status.reason == names.TOPOLOGY_AFFINITY_ERROR:
            self.turned_away += 1
        ledger = self._snapshot.engine.ledger
        entry = ledger.entry(pod.metadata.uid)
        if entry is None or entry.node != pod.spec.node_name or self.judged >= self._most_judged:
            self.not_judged += 1
            return
        self.judged += 1
        _add(self._taken[entry.node], self._filling.taken(entry))
        ledger.forget(pod)
        try:
            opinions = self._ask(pod)
        finally:
            ledger.see(pod)
        self._compare(pod, allocation, opinions)

    def _ask(self, pod: Pod) -> Mapping[str, Opinion]:
        engine = self._snapshot.engine
        spec = self._snapshot.policy_of(pod).spec
        request = engine.read_request(pod, spec, is_strict=False)
        return engine.opinions(request, pod.spec.node_name)

    def _compare(self, pod: Pod, allocation: Allocation, opinions: Mapping[str, Opinion]) -> None:
        loss, refusing = 0.0, []
        for concern, opinion in opinions.items():
            if concern == _ALWAYS_THERE or concern not in allocation.scores:
                continue
            gain = self.gains[concern]
            gain.judged += 1
            if opinion.reason is not None:
                gain.refused += 1
                refusing.append(opinion.reason.sentence)
            else:
                gain.scored += 1
                gain.score_there += opinion.score
                gain.score_chosen += allocation.scores[concern]
                loss += allocation.scores[concern] - opinion.score
            promised = allocation.allocated.get(concern, {})
            _add(gain.saved, savings.compare(concern, promised, opinion.given))
        self._keep(
            Example(
                pod=pod.key,
                node=pod.spec.node_name,
                chosen=allocation.node,
                why="; ".join(refusing),
                loss=loss,
            )
        )

    def _keep(self, example: Example) -> None:
        """Keep the worst few: those that a concern refuses, then those that lose most."""
        self.examples.append(example)
        self.examples.sort(key=lambda it: (not it.why, -it.loss, it.pod))
        del self.examples[_EXAMPLES:]


def _add(sums: dict[K, float], figures: Mapping[K, float]) -> None:
    for key, figure in figures.items():
        sums[key] = sums.get(key, 0.0) + figure
