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

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from berthmaster.api.allocation import Allocation, Refusal, RunnerUp
from berthmaster.api.objects import Pod
from berthmaster.api.policy import Mode, PlacementPolicySpec
from berthmaster.api.waits import ASSUME_TTL_S
from berthmaster.concerns.shape import (
    AdvisingConcern,
    AffineConcern,
    AnyAdvisingConcern,
    AnyAffineConcern,
    AnyConcern,
    AnyCountingConcern,
    AnyPinningConcern,
    AnyPreparingConcern,
    AnyRelativeConcern,
    AnyWideConcern,
    CountingConcern,
    InvalidRequestError,
    NodeTerms,
    PinningConcern,
    Preparation,
    PreparingConcern,
    Problem,
    Reason,
    RelativeConcern,
    Rows,
    Scores,
    Surrounding,
    WideConcern,
)
from berthmaster.placement.injecting import join
from berthmaster.placement.ledger import Ledger
from berthmaster.placement.ranking import Ranking
from berthmaster.placement.shapes import (
    Ask,
    PodRequest,
    Refusals,
    Results,
    Shapes,
    codes_of,
    split_code,
    weight_of,
    weight_of_tie,
)
from berthmaster.placement.table import NodeTable

# Reading more would keep all other pods waiting for a second; the largest pods that people run have some dozens.
MOST_CONTAINERS = 512
_RUNNERS_UP = 3
# Why a node that would do is left out, where it is the owner's pods that avoid it.
GIVEN_UP = "given up by an earlier pod of the same owner"
_EXAMPLES = 3


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
    # Whether only rows by themselves mattered: no other pod, no object that is no node.
    is_local: bool = True

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


class Opinion(NamedTuple):
    """What one concern says of one node, asked by itself: why not, or how good and what it would give."""

    reason: Reason | None
    score: float
    given: dict[str, Any] | None


class Found(NamedTuple):
    """What was found for some nodes, as lists side by side: what refuses each, and its score.

    A code of 0 refuses nothing, see `split_code`. For one version and request the code and its words
    stay the same. `unknown` are the names of no node.
    """

    nodes: list[str]
    codes: list[int]
    scores: list[float]
    versions: list[int]
    unknown: list[str]


# Shown what a decision is made from: its id, the request, what was found, the totals that counted. The
# arrays go on being changed, so who wants to keep them copies them.
Witness = Callable[[str, PodRequest, Results, Scores], None]


class Engine:
    """Decides over a node table and a ledger; knows no time and no Kubernetes."""

    def __init__(
        self, concerns: Sequence[AnyConcern], *, assume_ttl_s: float = ASSUME_TTL_S
    ) -> None:
        self.table = NodeTable(concerns)
        self.witness: Witness | None = None
        self.ledger = Ledger(self.table, assume_ttl_s=assume_ttl_s)
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
        self._counting: dict[int, AnyCountingConcern] = {
            index: concern
            for index, concern in enumerate(self.table.concerns)
            if isinstance(concern, CountingConcern)
        }
        self._affine: dict[int, AnyAffineConcern] = {
            index: concern
            for index, concern in enumerate(self.table.concerns)
            if isinstance(concern, AffineConcern)
        }
        self._pinning: tuple[AnyPinningConcern, ...] = tuple(
            it for it in self.table.concerns if isinstance(it, PinningConcern)
        )
        self._preparing: tuple[AnyPreparingConcern, ...] = tuple(
            it for it in self.table.concerns if isinstance(it, PreparingConcern)
        )
        self._advising: tuple[AnyAdvisingConcern, ...] = tuple(
            it for it in self.table.concerns if isinstance(it, AdvisingConcern)
        )
        self._shapes = Shapes(self.table, self._relative)

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
            InvalidRequestError: strict only, with the faults found by all concerns together, or alone
                that the pod has more than `MOST_CONTAINERS`.
        """
        asks: list[Ask] = []
        problems: list[Problem] = []
        if is_strict:
            _check_size(pod)
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

    def advise(self, pod: Pod, policy: PlacementPolicySpec) -> tuple[str, ...]:
        """Return what the owner of a pod that opts in should know, whatever is decided."""
        return tuple(
            words
            for concern in self._advising
            for words in concern.advise(self.table.columns[concern.name], pod, policy)
        )

    def mode_of(self, pod: Pod, policy: PlacementPolicySpec, mode: Mode) -> Mode:
        """Return the mode that counts for a pod whose word is `mode`.

        A pod that gets something which only the answer tells its node is required where it may choose.
        """
        if mode is Mode.PREFERRED and any(it.must_pin(pod, policy) for it in self._pinning):
            return Mode.REQUIRED
        return mode

    def prepare(
        self, read: Callable[[], Mapping[str, Any]], pod: Pod, policy: PlacementPolicySpec
    ) -> tuple[Preparation, ...]:
        """Return what concerns do to a pod that is being created, before anything is decided about it.

        `read` gives the pod as it was sent; it is called only by who needs that.
        """
        found = (
            it.prepare(self.table.columns[it.name], read, pod, policy) for it in self._preparing
        )
        return tuple(it for it in found if it is not None)

    def lacks(self, pod: Pod, policy: PlacementPolicySpec) -> str:
        """Return what a stored pod lacks that concerns would have added while it was created."""
        found = (it.lacks(self.table.columns[it.name], pod, policy) for it in self._preparing)
        return "; ".join(filter(None, found))

    def resolve(self, request: PodRequest) -> PodRequest:
        """Return a request that was read earlier with what it means now; see `WideConcern`."""
        if not self._wide:
            return request
        return tuple(self._resolved(ask) for ask in request)

    def decide(
        self,
        request: PodRequest,
        decision_id: str,
        *,
        avoid: frozenset[str] = frozenset(),
        only: str | None = None,
    ) -> Decision:
        """Return the best node for a request; reserves nothing. O(changed rows) when repeated.

        With `only` it is this node or none; the others are judged all the same.
        """
        request, found = self._judge(request)
        totals = found.totals
        if only is not None:
            totals = np.full_like(totals, -1.0)
            row = self.table.row_of(only)
            if row is not None:
                totals[row] = found.totals[row]
        avoided = [row for name in avoid if (row := self.table.row_of(name)) is not None]
        if avoided:
            totals = totals.copy()
            totals[avoided] = -1.0
        ranking = Ranking(totals, found.ties, self.table.hashes, decision_id, _RUNNERS_UP + 1)
        row = ranking.best()
        decision = Decision(
            id=decision_id,
            node=None if row is None else self.table.names[row],
            nodes=len(self.table),
            feasible=int(np.count_nonzero(totals >= 0)),
            score=0.0 if row is None else round(float(totals[row]), 4),
            scores={} if row is None else self._scores(request, found, row),
            allocated={} if row is None else self._allocated(request, row),
            refusals=(*self._refusals(request, found), *_avoided(avoid, self.table)),
            runners_up=self._runners_up(totals, ranking, row),
            is_local=found.is_local,
        )
        if self.witness is not None:
            self.witness(decision_id, request, found, totals)
        return decision

    def needs(self, request: PodRequest) -> dict[str, int]:
        """Return what a node must have free at least for a request, by names that `free` has, too."""
        needs: dict[str, int] = {}
        for ask in request:
            if ask.index in self._counting:
                needs.update(self._counting[ask.index].needs(ask.request))
        return needs

    def free(self, node: str) -> dict[str, int]:
        """Return what a node has free of what is counted; nothing where it is not known."""
        free: dict[str, int] = {}
        row = self.table.row_of(node)
        if row is not None:
            for index, concern in self._counting.items():
                free.update(concern.free(self._columns(index), row))
        return free

    def may_fit(self, request: PodRequest, nodes: Collection[str]) -> bool:
        """Return whether one of these nodes, judged by itself, has room for a resolved request.

        For a request that fitted nowhere before they changed: nothing is remembered and no other node is
        looked at, so it costs a small part of a decision. What depends on more than a row is left to that.
        """
        known = self.table.rows
        rows = np.array([known[it] for it in nodes if it in known], dtype=np.intp)
        for ask in request:
            if not len(rows):
                return False
            concern, columns, part = (
                self.table.concerns[ask.index],
                self._columns(ask.index),
                ask.request,
            )
            if ask.index in self._wide:
                part = self._wide[ask.index].local(part)
            if part is not None:
                rows = rows[concern.filter(columns, rows, part) == 0]
        return bool(len(rows))

    def choose(
        self, request: PodRequest, decision_id: str
    ) -> tuple[str, dict[str, dict[str, Any]]] | None:
        """Return the node that `decide` would and what it gives, without a word about the others."""
        request, found = self._judge(request)
        row = Ranking(found.totals, found.ties, self.table.hashes, decision_id, 1).best()
        return None if row is None else (self.table.names[row], self._allocated(request, row))

    def allocate_on(self, request: PodRequest, node: str) -> dict[str, dict[str, Any]]:
        """Return what a node that fits would give, by concern; nothing where it is not known."""
        row = self.table.row_of(node)
        return {} if row is None else self._allocated(self.resolve(request), row)

    def affinity(self, request: PodRequest, node: str) -> tuple[NodeTerms, Fraction]:
        """Return what concerns tell kube-scheduler of a pod whose best node this is.

        The second value is the share, 0..1, that all others have in the total. One that finds all nodes
        equally good has none.
        """
        row = self.table.row_of(node)
        request, found = self._judge(request)
        affine = [it for it in enumerate(request) if it[1].index in self._affine]
        if row is None or not affine:
            return NodeTerms(), Fraction(1)
        rows = np.flatnonzero(found.totals >= 0)
        weights = {
            at: ask.weight
            for at, ask in enumerate(request)
            if ask.index in self._affine
            or (len(rows) and np.ptp(found.compared.get(at, found.scores[at])[rows]) > 0)
        }
        whole = sum(weights.values())
        required: Sequence[Mapping[str, Any]] = ()
        preferred: list[Mapping[str, Any]] = []
        told = Fraction(0)
        for at, ask in affine:
            share = Fraction(weights[at], whole) if whole else Fraction(0)
            terms = self._affine[ask.index].affinity(
                self._columns(ask.index), row, ask.request, share
            )
            if terms is not None:
                told += share
                required = join(required, terms.required) or required
                preferred += terms.preferred
        return NodeTerms(required=tuple(required), preferred=tuple(preferred)), 1 - told

    def find(self, request: PodRequest, nodes: Sequence[str]) -> Found:
        """Return what is found for each of these nodes."""
        _, found = self._judge(request)
        rows = self.table.rows
        known = [node for node in nodes if node in rows]
        at = np.array([rows[node] for node in known], dtype=np.intp)
        return Found(
            nodes=known,
            codes=found.codes[at].tolist(),
            scores=found.totals[at].tolist(),
            versions=self.table.versions[at].tolist(),
            unknown=[node for node in nodes if node not in rows] if len(known) < len(nodes) else [],
        )

    def explain(self, request: PodRequest, node: str, code: int) -> tuple[str, Reason]:
        """Return which concern refuses a node that `find` found refused, and its words."""
        return self._explain(self.resolve(request), self.table.rows[node], code)

    def verdicts(self, request: PodRequest) -> Iterator[Verdict]:
        """Yield for every node, by name, why it is refused or how good it is."""
        request, found = self._judge(request)
        for name, row in sorted(self.table.rows.items()):
            code = int(found.codes[row])
            if code:
                named, reason = self._explain(request, row, code)
                yield Verdict(node=name, reason=reason, concern=named, score=0.0, scores={})
            else:
                total, scores = float(found.totals[row]), self._scores(request, found, row)
                yield Verdict(node=name, reason=None, concern="", score=total, scores=scores)

    def opinions(self, request: PodRequest, node: str) -> dict[str, Opinion]:
        """Return what each concern says of one node, by its name; nothing of a node that is not known."""
        row = self.table.row_of(node)
        found: dict[str, Opinion] = {}
        if row is None:
            return found
        for each in request:
            for_it, results = self._judge((each,))
            for ask in for_it:
                name = self.table.concerns[ask.index].name
                code = int(results.codes[row])
                if code:
                    found[name] = Opinion(self._explain(for_it, row, code)[1], 0.0, None)
                else:
                    given = self._allocated(for_it, row).get(name, {})
                    found[name] = Opinion(None, self._scores(for_it, results, row)[name], given)
        return found

    def asked(self, request: PodRequest) -> tuple[str, ...]:
        """Return the concerns that have something to say to a request, as things are now."""
        request, _ = self._judge(request)
        return tuple(self.table.concerns[ask.index].name for ask in request)

    def objections(self, request: PodRequest) -> dict[str, dict[str, Reason]]:
        """Return by node the words of every concern that refuses it, each asked by itself.

        `verdicts` has those of the first alone.
        """
        found: dict[str, dict[str, Reason]] = {}
        for ask in request:
            alone, results = self._judge((ask,))
            for row in np.flatnonzero(results.codes):
                named, reason = self._explain(alone, int(row), int(results.codes[row]))
                found.setdefault(self.table.names[row], {})[named] = reason
        return found

    def _columns(self, index: int) -> Any:
        return self.table.columns[self.table.concerns[index].name]

    def _resolved(self, ask: Ask) -> Ask:
        concern = self._wide.get(ask.index)
        if concern is None:
            return ask
        resolved = concern.resolve(self._columns(ask.index), ask.request)
        return ask if resolved is ask.request else Ask(ask.index, ask.weight, resolved)

    def _judge(self, request: PodRequest) -> tuple[PodRequest, Results]:
        """Return the asks as they are now, and the results for all rows.

        Asks that turn out to ask nothing are left out. Only the local part is remembered.
        """
        if not self._wide:
            return request, self._compared(request, self._shapes.results(request))
        asks: list[Ask] = []
        local: list[Ask] = []
        for ask in self.resolve(request):
            concern = self._wide.get(ask.index)
            part = ask.request if concern is None else concern.local(ask.request)
            if part is not None:
                asks.append(ask)
                local.append(ask if part is ask.request else Ask(ask.index, ask.weight, part))
        found = self._shapes.results(tuple(local))
        is_local = True
        for ask in asks:
            concern = self._wide.get(ask.index)
            if concern is None:
                continue
            codes = concern.across(self._columns(ask.index), ask.request)
            if codes is None:
                continue
            is_local = False
            refused = np.flatnonzero((codes != 0) & (found.codes == 0) & self.table.alive)
            if len(refused):
                found = replace(
                    found, codes=found.codes.copy(), totals=found.totals.copy(), refusals=None
                )
                found.codes[refused] = codes_of(ask, codes[refused])
                found.totals[refused] = -1.0
        found.is_local = is_local
        return tuple(asks), self._compared(tuple(local), found)

    def _compared(self, request: PodRequest, found: Results) -> Results:
        """Return the results with the scores of relative concerns in them, over the rows that fit."""
        places = [at for at, ask in enumerate(request) if ask.index in self._relative]
        if not places:
            return found
        rows = np.flatnonzero(found.totals >= 0)
        compared = {}
        for at in places:
            ask = request[at]
            columns, values = self._columns(ask.index), found.scores[at, rows]
            scores = self._relative[ask.index].normalize(columns, values, ask.request)
            compared[at] = np.zeros(len(found.totals))
            compared[at][rows] = scores
        found = replace(
            found, totals=found.totals.copy(), ties=found.ties.copy(), compared=compared
        )
        for sums, weigh in ((found.totals, weight_of), (found.ties, weight_of_tie)):
            weights = sum(weigh(ask) for ask in request if ask.index not in self._relative)
            extra = [(at, weight) for at in places if (weight := weigh(request[at]))]
            if not extra:
                continue
            total = sums[rows] * weights
            for at, weight in extra:
                total += weight * compared[at][rows]
                weights += weight
            sums[rows] = total / weights
        return found

    def _runners_up(
        self, totals: Scores, ranking: Ranking, winner: int | None
    ) -> tuple[tuple[str, float], ...]:
        others = sorted(
            (-float(totals[row]), self.table.names[row])
            for row in ranking.top(_RUNNERS_UP + 1)
            if row != winner
        )
        return tuple((name, round(-score, 4)) for score, name in others[:_RUNNERS_UP])

    def _scores(self, request: PodRequest, found: Results, row: int) -> dict[str, float]:
        """Return what each concern says of a row that fits."""
        scores = {}
        for at, ask in enumerate(request):
            of_ask = found.compared.get(at, found.scores[at])
            scores[self.table.concerns[ask.index].name] = round(float(of_ask[row]), 4)
        return scores

    def _allocated(self, request: PodRequest, row: int) -> dict[str, dict[str, Any]]:
        allocated: dict[str, dict[str, Any]] = {}
        for ask in request:
            concern = self.table.concerns[ask.index]
            columns = self.table.columns[concern.name]
            allocation = concern.allocate(columns, row, ask.request, allocated)
            if allocation:
                allocated[concern.name] = allocation
        return allocated

    def _refusals(self, request: PodRequest, found: Results) -> tuple[Refusals, ...]:
        if found.refusals is not None:
            return found.refusals
        counts = np.bincount(found.codes, minlength=1)
        groups: dict[str, Refusals] = {}
        for code in np.flatnonzero(counts[1:]) + 1:
            rows = np.flatnonzero(found.codes == code)
            examples = tuple(sorted(self.table.names[row] for row in self._some(rows)))
            group = self._group(request, found, int(rows[0]), int(code))
            known = groups.get(group)
            groups[group] = Refusals(
                group=group,
                count=len(rows) + (known.count if known else 0),
                examples=((known.examples if known else ()) + examples)[:_EXAMPLES],
            )
        found.refusals = tuple(sorted(groups.values(), key=lambda it: (-it.count, it.group)))
        return found.refusals

    def _group(self, request: PodRequest, found: Results, row: int, code: int) -> str:
        """Return the words for a row's code, made once for each version of the row."""
        version = int(self.table.versions[row])
        known = found.groups.get(code)
        if known is not None and known[:2] == (row, version):
            return known[2]
        group = self._explain(request, row, code)[1].group
        found.groups[code] = (row, version, group)
        return group

    def _some(self, rows: Rows) -> Rows:
        """Return a few of the rows, whatever their order."""
        if len(rows) <= _EXAMPLES:
            return rows
        return rows[np.argpartition(self.table.hashes[rows], _EXAMPLES)[:_EXAMPLES]]

    def _explain(self, request: PodRequest, row: int, code: int) -> tuple[str, Reason]:
        index, inner = split_code(code)
        ask = next(ask for ask in request if ask.index == index)
        concern = self.table.concerns[index]
        columns = self.table.columns[concern.name]
        name = self.table.names[row]
        return concern.name, concern.explain(columns, row, inner, ask.request, name)


def _check_size(pod: Pod) -> None:
    count = len(pod.spec.containers or ()) + len(pod.spec.init_containers or ())
    if count > MOST_CONTAINERS:
        message = f"found {count} with initContainers, expected at most {MOST_CONTAINERS} in a pod that is to be placed"
        raise InvalidRequestError(Problem(field="spec.containers", message=message))


def _avoided(avoid: frozenset[str], table: NodeTable) -> tuple[Refusals, ...]:
    there = tuple(sorted(name for name in avoid if name in table))
    if not there:
        return ()
    return (Refusals(group=GIVEN_UP, count=len(there), examples=there[:_EXAMPLES]),)
