"""The last decisions with their whole tables: for each node what refused it, or what each concern gave it.

Kept in memory by who decides, bounded in number and in bytes: at the bound the oldest tables go first,
then the oldest decisions. What is kept are copies of the arrays that the decision was made from, so that
taking one costs some microseconds at 5,000 nodes; words are made when somebody reads them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from berthmaster.placement.engine import GIVEN_UP, Decision, Engine
from berthmaster.placement.shapes import PodRequest, Results
from berthmaster.placement.table import NodeTable

MOST_DECISIONS = 10_000
MOST_BYTES = 32 * 2**20


class Table(msgspec.Struct, frozen=True, gc=False):
    """What was found for each row. Scores are 0..100; a total below 0 is no node for the pod.

    Half floats would take half the room and eight times as long to make.
    """

    names: tuple[str, ...]
    concerns: tuple[str, ...]
    codes: NDArray[np.uint16]
    totals: NDArray[np.float32]
    # By concern and row.
    scores: NDArray[np.float32]
    words: dict[int, str]

    @property
    def size(self) -> int:
        """Return the bytes that it takes, names aside, which tables share."""
        return self.codes.nbytes + self.totals.nbytes + self.scores.nbytes


class Record(msgspec.Struct, gc=False):
    """A decision; `table` is None once it had to go."""

    decision: Decision
    pod: str
    # Seconds since the epoch.
    at_s: float
    table: Table | None


class Records:
    """The last decisions by id, and by pod the last one."""

    def __init__(
        self,
        nodes: NodeTable,
        *,
        most: int = MOST_DECISIONS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._nodes = nodes
        self._most = most
        self._most_bytes = most_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._tables: OrderedDict[str, int] = OrderedDict()
        self._by_pod: dict[str, str] = {}
        self._bytes = 0
        self._seen: tuple[str, Table] | None = None
        self._names: tuple[int, tuple[str, ...]] = (-1, ())

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """Return what keeps an engine's decisions from now on."""
        records = cls(engine.table)
        engine.witness = records.witness
        return records

    def __len__(self) -> int:
        return len(self._records)

    @property
    def bytes(self) -> int:
        """Return what the tables take."""
        return self._bytes

    def witness(
        self, decision_id: str, request: PodRequest, found: Results, totals: NDArray[np.float64]
    ) -> None:
        """Take a copy of what a decision is made from; the engine calls this."""
        scores = np.empty((len(request), len(totals)), dtype=np.float32)
        for at in range(len(request)):
            scores[at] = found.compared.get(at, found.scores[at])
        table = Table(
            self._node_names(),
            tuple(self._nodes.concerns[ask.index].name for ask in request),
            found.codes.copy(),
            totals.astype(np.float32),
            scores,
            {code: words for code, (_, _, words) in found.groups.items()},
        )
        self._seen = (decision_id, table)

    def add(self, pod: str, decision: Decision, at_s: float) -> None:
        """Keep a decision about a pod (`namespace/name`)."""
        table = None
        if self._seen is not None and self._seen[0] == decision.id:
            table = self._seen[1]
        self._seen = None
        self._records[decision.id] = Record(decision, pod, at_s, table)
        self._by_pod[pod] = decision.id
        if table is not None:
            self._tables[decision.id] = table.size
            self._bytes += table.size
        while self._bytes > self._most_bytes:
            self._drop_table(next(iter(self._tables)))
        if len(self._records) > self._most:
            self._drop(next(iter(self._records)))

    def find(self, *, decision_id: str = "", pod: str = "") -> Record | None:
        """Return a decision by its id, or the last one about a pod."""
        return self._records.get(decision_id or self._by_pod.get(pod, ""))

    def latest(self, count: int) -> Iterator[Record]:
        """Yield the last decisions, the latest first."""
        return islice(reversed(self._records.values()), count)

    def _drop(self, decision_id: str) -> None:
        self._drop_table(decision_id)
        record = self._records.pop(decision_id)
        if self._by_pod.get(record.pod) == decision_id:
            del self._by_pod[record.pod]

    def _drop_table(self, decision_id: str) -> None:
        self._bytes -= self._tables.pop(decision_id, 0)
        self._records[decision_id].table = None

    def _node_names(self) -> tuple[str, ...]:
        if self._names[0] != self._nodes.moves:
            self._names = (self._nodes.moves, tuple(self._nodes.names))
        return self._names[1]


def summarise(record: Record) -> dict[str, Any]:
    """Return a decision as JSON data, without its table."""
    decision = record.decision
    return {
        "id": decision.id,
        "pod": record.pod,
        "time": record.at_s,
        "node": decision.node,
        "nodes": decision.nodes,
        "feasible": decision.feasible,
        "score": decision.score,
        "scores": decision.scores,
        "refused": [{"reason": it.group, "nodes": it.count} for it in decision.refusals],
    }


def tabulate(record: Record) -> list[dict[str, Any]] | None:
    """Return a decision's table as JSON data: fitting nodes by score, then the others by name."""
    table = record.table
    if table is None:
        return None
    fitting: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for row, name in enumerate(table.names):
        if not name:
            continue
        total, code = float(table.totals[row]), int(table.codes[row])
        if total < 0:
            reason = table.words.get(code, "refused") if code else GIVEN_UP
            refused.append({"node": name, "refused": reason})
            continue
        scores = {
            concern: round(float(table.scores[at, row]), 1)
            for at, concern in enumerate(table.concerns)
        }
        fitting.append({"node": name, "score": round(total, 1), "scores": scores})
    fitting.sort(key=lambda it: (-it["score"], it["node"]))
    return fitting + sorted(refused, key=lambda it: it["node"])
