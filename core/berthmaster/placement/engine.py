"""The decision: which node a pod goes to, why, and why no other.

A request shape (what a pod asks of each concern) is computed over all rows once; for the next pod
of the same shape only the rows that changed meanwhile are computed again. So a burst of equal pods
costs, per pod, the rows that its predecessors changed and one search for the maximum. What depends on
more than its row (`WideConcern`) is never remembered: it is laid over the remembered part each time.
So is a score that only compares (`RelativeConcern`): remembered is what each row says by itself.

    total = sum(weight * score) / sum(weight)        over the concerns that the pod asks for

A pod that asks for nothing that has weight finds all nodes equally good (100). Nodes of equal total are told apart by the mean score of the concerns of weight 0, then by a hash of
the decision id and the node's name. Worked: disk IO 97 (weight 1), resources 40 (weight 0) -> 97.0,
and of two such nodes the one with more free CPU and memory wins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berthmaster.api.allocation import Allocation, Refusal, RunnerUp
from berthmaster.api.objects import Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.shape import (
    AnyConcern,
    AnyRelativeConcern,
    AnyWideConcern,
    InvalidRequestError,
    Problem,
    Reason,
    RelativeConcern,
    Rows,
    Scores,
    Surrounding,
    WideConcern,
)
from berthmaster.placement.ledger import ASSUME_TTL_S, Ledger
from berthmaster.placement.table import NodeTable

_SHAPES_REMEMBERED = 128
_RUNNERS_UP = 3
_EXAMPLES = 3
# Totals closer than this are equal: a mean of whole numbers differs by more.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Ask:
    """What a pod asks of one concern, and what that counts."""

    index: int
    weight: int
    request: Hashable


PodRequest = tuple[Ask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """The nodes that one reason refuses."""

    group: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} ({', '.join(self.examples)}{more}) {self.group}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer for one pod; `node` is None when it fits nowhere now. Scores are 0..100."""

    id: str
    node: str | None
    nodes: int
    feasible: int
    score: float
    scores: dict[str, float]
    allocated: dict[str, dict[str, Any]]
    refusals: tuple[Refusals, ...]
    runners_up: tuple[tuple[str, float], ...]

    def allocation(self, mode: str, note: str = "") -> Allocation:
        """Return a decision that found a node as it stands on the pod; `mode` is what it does to it."""
        if self.node is None:
            raise ValueError(f"decision {self.id} found no node")
        return Allocation(
            version=1,
            id=self.id,
            node=self.node,
            mode=mode,
            allocated=self.allocated,
            scores=self.scores,
            score=self.score,
            feasible=self.feasible,
            refused=[Refusal(reason=it.group, count=it.count) for it in self.refusals],
            runners_up=[RunnerUp(node=node, score=score) for node, score in self.runners_up],
            note=note,
        )

    def describe(self) -> str:
        """Return why nothing fits: `0/3 nodes: 2 (n1, n2) disk IO read bandwidth is not enough`."""
        reasons = ", ".join(map(str, self.refusals)) or "there are none"
        return f"{self.feasible}/{self.nodes} nodes: {reasons}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found for one node."""

    node: str
    reason: Reason | None
    concern: str
    score: float
    scores: dict[str, float]


@dataclass(slots=True)
class _Shape:
    """A shape's results for all rows, as of `tick`. `codes`: (concern + 1) * 256 + its code.

    `groups` are the words last made for a code: for which row, in which version of it. `totals` and
    `ties` are without the relative concerns, whose own `values` stand beside them by index, until
    these were compared; `relative` are then their scores.
    """

    codes: NDArray[np.uint16]
    totals: Scores
    ties: Scores
    tick: int
    groups: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    values: dict[int, Scores] = field(default_factory=dict)
    relative: dict[int, Scores] = field(default_factory=dict)


class Engine:
    """Decides over a node table and a ledger; knows no time and no Kubernetes."""

    def __init__(
        self, concerns: Sequence[AnyConcern], *, assume_ttl_s: float = ASSUME_TTL_S
    ) -> None:
        self.table = NodeTable(concerns)
        self.ledger = Ledger(self.table, assume_ttl_s=assume_ttl_s)
        self._shapes: OrderedDict[PodRequest, _Shape] = OrderedDict()
        self._wide: dict[int, AnyWideConcern] = {
            index: concern
            for index, concern in enumerate(self.table.concerns)
            if isinstance(concern, WideConcern)
        }
        self._relative: dict[int, AnyRelativeConcern] = {
            index: concern
            for index, concern in enumerate(self.table.concerns)
            if isinstance(concern, RelativeConcern)
        }

    @property
    def news(self) -> int:
        """Return a number that moves when something other than a row may let a waiting pod fit."""
        return sum(concern.news(self._columns(index)) for index, concern in self._wide.items())

    def observe(self, found: Surrounding, *, is_gone: bool = False) -> None:
        """Tell the concerns of an object that is neither node nor pod."""
        for index, concern in self._wide.items():
            concern.observe(self._columns(index), found, is_gone=is_gone)

    def configure(self, policies: Sequence[PlacementPolicySpec]) -> None:
        """Take over what all policies of the cluster say together (white lists and the like)."""
        for concern in self.table.concerns:
            concern.configure(self.table.columns[concern.name], policies)
        self.table.touch_all()

    def read_request(
        self, pod: Pod, policy: PlacementPolicySpec, *, is_strict: bool = True
    ) -> PodRequest:
        """Return what the pod asks of each concern.

        Not strict: a faulty request is one that its concern refuses everywhere, with the fault as
        the reason.

        Raises:
            InvalidRequestError: strict only, with the faults found by all concerns together.
        """
        asks: list[Ask] = []
        problems: list[Problem] = []
        for index, concern in enumerate(self.table.concerns):
            try:
                request = concern.request(pod, policy)
            except InvalidRequestError as error:
                problems.extend(error.problems)
                request = error.request
            if request is not None:
                asks.append(Ask(index, concern.weight(policy), request))
        if problems and is_strict:
            raise InvalidRequestError(*problems)
        return self.resolve(tuple(asks))

    def resolve(self, request: PodRequest) -> PodRequest:
        """Return a request that was read earlier with what it means now; see `WideConcern`."""
        if not self._wide:
            return request
        return tuple(self._resolved(ask) for ask in request)

    def decide(
        self, request: PodRequest, decision_id: str, *, avoid: frozenset[str] = frozenset()
    ) -> Decision:
        """Return the best node for a request; reserves nothing. O(changed rows) when repeated."""
        request, shape = self._judge(request)
        totals = shape.totals
        avoided = [row for name in avoid if (row := self.table.row_of(name)) is not None]
        if avoided:
            totals = totals.copy()
            totals[avoided] = -1.0
        row = self._best(totals, shape.ties, decision_id)
        scores, allocated = ({}, {}) if row is None else self._details(request, shape, row)
        return Decision(
            id=decision_id,
            node=None if row is None else self.table.names[row],
            nodes=len(self.table),
            feasible=int(np.count_nonzero(totals >= 0)),
            score=0.0 if row is None else round(float(totals[row]), 4),
            scores=scores,
            allocated=allocated,
            refusals=(*self._refusals(request, shape), *_avoided(avoid, self.table)),
            runners_up=self._runners_up(totals, row, decision_id),
        )

    def choose(
        self, request: PodRequest, decision_id: str
    ) -> tuple[str, dict[str, dict[str, Any]]] | None:
        """Return the node that `decide` would and what it gives, without a word about the others."""
        request, shape = self._judge(request)
        row = self._best(shape.totals, shape.ties, decision_id)
        return None if row is None else (self.table.names[row], self._allocated(request, row))

    def allocate_on(self, request: PodRequest, node: str) -> dict[str, dict[str, Any]]:
        """Return what a node that fits would give, by concern; nothing where it is not known."""
        row = self.table.row_of(node)
        return {} if row is None else self._allocated(self.resolve(request), row)

    def verdicts(self, request: PodRequest) -> Iterator[Verdict]:
        """Yield for every node, by name, why it is refused or how good it is."""
        request, shape = self._judge(request)
        ordered = sorted(self.table.rows.items())
        fitting = np.array([row for _, row in ordered if not shape.codes[row]], dtype=np.intp)
        scores = {
            self.table.concerns[ask.index].name: self._scores(ask, shape, fitting).tolist()
            for ask in request
        }
        at = 0
        for name, row in ordered:
            code = int(shape.codes[row])
            if code:
                named, reason = self._explain(request, row, code)
                yield Verdict(node=name, reason=reason, concern=named, score=0.0, scores={})
            else:
                of_row = {key: round(float(values[at]), 4) for key, values in scores.items()}
                total = float(shape.totals[row])
                yield Verdict(node=name, reason=None, concern="", score=total, scores=of_row)
                at += 1

    def _columns(self, index: int) -> Any:
        return self.table.columns[self.table.concerns[index].name]

    def _resolved(self, ask: Ask) -> Ask:
        concern = self._wide.get(ask.index)
        if concern is None:
            return ask
        resolved = concern.resolve(self._columns(ask.index), ask.request)
        return ask if resolved is ask.request else Ask(ask.index, ask.weight, resolved)

    def _judge(self, request: PodRequest) -> tuple[PodRequest, _Shape]:
        """Return the asks as they are now, and the results for all rows.

        Asks that turn out to ask nothing are left out. Only the local part is remembered.
        """
        if not self._wide:
            return request, self._compared(request, self._shape(request))
        asks: list[Ask] = []
        local: list[Ask] = []
        for ask in self.resolve(request):
            concern = self._wide.get(ask.index)
            part = ask.request if concern is None else concern.local(ask.request)
            if part is not None:
                asks.append(ask)
                local.append(ask if concern is None else Ask(ask.index, ask.weight, part))
        shape = self._shape(tuple(local))
        for ask in asks:
            concern = self._wide.get(ask.index)
            if concern is None:
                continue
            codes = concern.across(self._columns(ask.index), ask.request)
            if codes is None:
                continue
            refused = np.flatnonzero((codes != 0) & (shape.codes == 0) & self.table.alive)
            if len(refused):
                shape = replace(shape, codes=shape.codes.copy(), totals=shape.totals.copy())
                shape.codes[refused] = (ask.index + 1) * 256 + codes[refused].astype(np.uint16)
                shape.totals[refused] = -1.0
        return tuple(asks), self._compared(tuple(local), shape)

    def _compared(self, request: PodRequest, shape: _Shape) -> _Shape:
        """Return the results with the scores of relative concerns in them, over the rows that fit."""
        asks = [ask for ask in request if ask.index in self._relative]
        if not asks:
            return shape
        rows = np.flatnonzero(shape.totals >= 0)
        shape = replace(shape, totals=shape.totals.copy(), ties=shape.ties.copy(), relative={})
        for sums, weigh in ((shape.totals, _weight), (shape.ties, _weight_of_tie)):
            weights = sum(weigh(ask) for ask in request if ask.index not in self._relative)
            sums[rows] *= weights
            for ask in asks:
                if not (weight := weigh(ask)):
                    continue
                concern = self._relative[ask.index]
                values = shape.values[ask.index][rows]
                scores = concern.normalize(self._columns(ask.index), values, ask.request)
                shape.relative[ask.index] = np.zeros(len(sums))
                shape.relative[ask.index][rows] = scores
                sums[rows] += weight * scores
                weights += weight
            sums[rows] = sums[rows] / weights if weights else 100.0
        return shape

    def _scores(self, ask: Ask, shape: _Shape, rows: Rows) -> Scores:
        """Return a concern's scores of rows that fit."""
        if ask.index in shape.relative:
            return shape.relative[ask.index][rows]
        concern = self.table.concerns[ask.index]
        return concern.score(self._columns(ask.index), rows, ask.request)

    def _shape(self, request: PodRequest) -> _Shape:
        shape = self._shapes.get(request)
        size = self.table.size
        if shape is None or len(shape.codes) != size:
            shape = _Shape(
                codes=np.zeros(size, dtype=np.uint16),
                totals=np.full(size, -1.0),
                ties=np.zeros(size),
                tick=-1,
            )
            self._shapes[request] = shape
            if len(self._shapes) > _SHAPES_REMEMBERED:
                self._shapes.popitem(last=False)
        self._shapes.move_to_end(request)
        if shape.tick != self.table.tick:
            self._refresh(shape, request)
        return shape

    def _refresh(self, shape: _Shape, request: PodRequest) -> None:
        changed = self.table.changed_since(shape.tick)
        shape.tick = self.table.tick
        alive = self.table.alive[changed]
        gone = changed[~alive]
        shape.codes[gone] = 0
        shape.totals[gone] = -1.0
        rows = changed[alive]
        shape.codes[rows] = 0
        left = self._filter(shape, request, rows)
        shape.totals[rows] = -1.0
        plain = tuple(ask for ask in request if ask.index not in self._relative)
        shape.totals[left] = self._mean(plain, left, _weight)
        shape.ties[left] = self._mean(plain, left, _weight_of_tie)
        for ask in request:
            if ask.index in self._relative:
                values = shape.values.setdefault(ask.index, np.zeros(len(shape.totals)))
                concern = self.table.concerns[ask.index]
                values[left] = concern.score(self._columns(ask.index), left, ask.request)

    def _filter(self, shape: _Shape, request: PodRequest, rows: Rows) -> Rows:
        """Write the first refusing code of each row; return the rows that no concern refuses."""
        for ask in request:
            if not len(rows):
                break
            concern = self.table.concerns[ask.index]
            codes = concern.filter(self.table.columns[concern.name], rows, ask.request)
            refused = codes != 0
            shape.codes[rows[refused]] = (ask.index + 1) * 256 + codes[refused].astype(np.uint16)
            rows = rows[~refused]
        return rows

    def _mean(self, request: PodRequest, rows: Rows, weigh: Callable[[Ask], int]) -> Scores:
        total = np.zeros(len(rows))
        weights = 0
        for ask in request:
            weight = weigh(ask)
            if weight and len(rows):
                concern = self.table.concerns[ask.index]
                columns = self.table.columns[concern.name]
                total += weight * concern.score(columns, rows, ask.request)
                weights += weight
        return total / weights if weights else np.full(len(rows), 100.0)

    def _best(self, totals: Scores, ties: Scores, decision_id: str) -> int | None:
        best = totals.max(initial=-1.0)
        if best < 0:
            return None
        rows = np.flatnonzero(totals >= best - _SAME)
        if len(rows) > 1:
            values = ties[rows]
            rows = rows[values >= values.max() - _SAME]
        if len(rows) > 1:
            return int(rows[np.argmin(self._ranks(rows, decision_id))])
        return int(rows[0])

    def _ranks(self, rows: Rows, decision_id: str) -> NDArray[np.uint64]:
        """Return an order of the rows that their names and the decision give, all different."""
        seed = int.from_bytes(blake2b(decision_id.encode(), digest_size=8).digest(), "little")
        mixed = (self.table.hashes[rows] ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        return mixed ^ (mixed >> np.uint64(29))

    def _runners_up(
        self, totals: Scores, winner: int | None, decision_id: str
    ) -> tuple[tuple[str, float], ...]:
        if winner is None:
            return ()
        wanted = min(_RUNNERS_UP + 1, len(totals))
        least = max(float(np.partition(totals, -wanted)[-wanted]), 0.0)
        top = np.flatnonzero(totals > least)
        equal = np.flatnonzero(totals == least)
        if len(top) + len(equal) > wanted:
            # Many are as good as the last of the top: take some whatever their rows are.
            count = wanted - len(top)
            ranks = self._ranks(equal, decision_id)
            equal = equal[np.argpartition(ranks, count - 1)[:count]]
        others = sorted(
            (-float(totals[row]), self.table.names[row]) for row in (*top, *equal) if row != winner
        )
        return tuple((name, round(-score, 4)) for score, name in others[:_RUNNERS_UP])

    def _details(
        self, request: PodRequest, shape: _Shape, row: int
    ) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        rows = np.array([row], dtype=np.intp)
        scores: dict[str, float] = {}
        for ask in request:
            score = float(self._scores(ask, shape, rows)[0])
            scores[self.table.concerns[ask.index].name] = round(score, 4)
        return scores, self._allocated(request, row)

    def _allocated(self, request: PodRequest, row: int) -> dict[str, dict[str, Any]]:
        allocated: dict[str, dict[str, Any]] = {}
        for ask in request:
            concern = self.table.concerns[ask.index]
            columns = self.table.columns[concern.name]
            allocation = concern.allocate(columns, row, ask.request, allocated)
            if allocation:
                allocated[concern.name] = allocation
        return allocated

    def _refusals(self, request: PodRequest, shape: _Shape) -> tuple[Refusals, ...]:
        counts = np.bincount(shape.codes, minlength=1)
        groups: dict[str, Refusals] = {}
        for code in np.flatnonzero(counts[1:]) + 1:
            rows = np.flatnonzero(shape.codes == code)
            examples = tuple(sorted(self.table.names[row] for row in self._some(rows)))
            group = self._group(request, shape, int(rows[0]), int(code))
            known = groups.get(group)
            groups[group] = Refusals(
                group=group,
                count=len(rows) + (known.count if known else 0),
                examples=((known.examples if known else ()) + examples)[:_EXAMPLES],
            )
        return tuple(sorted(groups.values(), key=lambda it: (-it.count, it.group)))

    def _group(self, request: PodRequest, shape: _Shape, row: int, code: int) -> str:
        """Return the words for a row's code, made once for each version of the row."""
        version = int(self.table.versions[row])
        known = shape.groups.get(code)
        if known is not None and known[:2] == (row, version):
            return known[2]
        group = self._explain(request, row, code)[1].group
        shape.groups[code] = (row, version, group)
        return group

    def _some(self, rows: Rows) -> Rows:
        """Return a few of the rows, whatever their order."""
        if len(rows) <= _EXAMPLES:
            return rows
        return rows[np.argpartition(self.table.hashes[rows], _EXAMPLES)[:_EXAMPLES]]

    def _explain(self, request: PodRequest, row: int, code: int) -> tuple[str, Reason]:
        index, inner = code // 256 - 1, code % 256
        ask = next(ask for ask in request if ask.index == index)
        concern = self.table.concerns[index]
        columns = self.table.columns[concern.name]
        name = self.table.names[row]
        return concern.name, concern.explain(columns, row, inner, ask.request, name)


def _weight(ask: Ask) -> int:
    return ask.weight


def _weight_of_tie(ask: Ask) -> int:
    return 0 if ask.weight else 1


def _avoided(avoid: frozenset[str], table: NodeTable) -> tuple[Refusals, ...]:
    there = tuple(sorted(name for name in avoid if name in table))
    if not there:
        return ()
    group = "given up by an earlier pod of the same owner"
    return (Refusals(group=group, count=len(there), examples=there[:_EXAMPLES]),)
