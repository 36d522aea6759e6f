"""A wide concern whose score comes from other rows, by what `resolve` puts into its request."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from berthmaster.api.inventory import NodeInventory
from berthmaster.api.objects import Node, Pod
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.shape import (
    Allocated,
    Codes,
    Holder,
    Placed,
    Reason,
    Rows,
    Scores,
    Surrounding,
)
from berthmaster.placement.engine import Engine
from support.builders import make_node, make_pod


class Beacons:
    """Each row's label `zone`, and the zones of the rows that carry the label `beacon`."""

    def __init__(self) -> None:
        self.zones: list[str] = []
        self.lit: dict[int, str] = {}

    def resize(self, rows: int) -> None:
        self.zones.extend("" for _ in range(rows - len(self.zones)))

    def write_node(self, row: int, node: Node, inventory: NodeInventory | None) -> None:
        labels = node.metadata.labels or {}
        self.zones[row] = labels.get("zone", "")
        self.lit.pop(row, None)
        if "beacon" in labels:
            self.lit[row] = self.zones[row]

    def clear(self, row: int) -> None:
        self.zones[row] = ""
        self.lit.pop(row, None)


class NearBeacon:
    """Scores 100 in a zone that has a beacon, else 10; asks nothing while there is none."""

    name = "near-beacon"

    def weight(self, policy: PlacementPolicySpec) -> int:
        return 1

    def request(self, pod: Pod, policy: PlacementPolicySpec) -> frozenset[str]:
        return frozenset()

    def usage(self, pod: Pod, allocated: Mapping[str, Any] | None) -> Hashable | None:
        return None

    def new_columns(self) -> Beacons:
        return Beacons()

    def configure(self, columns: Beacons, policies: Sequence[PlacementPolicySpec]) -> None: ...

    def charge(self, columns: Beacons, row: int, holder: Holder, usage: Hashable) -> None: ...

    def release(self, columns: Beacons, row: int, holder: Holder, usage: Hashable) -> None: ...

    def rename(
        self, columns: Beacons, row: int, before: Holder, after: Holder, usage: Hashable
    ) -> bool:
        return False

    def filter(self, columns: Beacons, rows: Rows, request: frozenset[str]) -> Codes:
        return np.zeros(len(rows), dtype=np.uint8)

    def score(self, columns: Beacons, rows: Rows, request: frozenset[str]) -> Scores:
        return np.array([100.0 if columns.zones[row] in request else 10.0 for row in rows])

    def allocate(
        self, columns: Beacons, row: int, request: frozenset[str], beside: Allocated
    ) -> dict[str, Any]:
        return {}

    def annotations(
        self, columns: Beacons, pod: Pod, allocated: Mapping[str, Any], placed: Placed
    ) -> Mapping[str, str]:
        return {}

    def explain(
        self, columns: Beacons, row: int, code: int, request: frozenset[str], node: str
    ) -> Reason:
        raise AssertionError("nothing is refused")

    def observe(self, columns: Beacons, found: Surrounding, *, is_gone: bool = False) -> None: ...

    def news(self, columns: Beacons) -> int:
        return 0

    def resolve(self, columns: Beacons, request: frozenset[str]) -> frozenset[str]:
        return frozenset(columns.lit.values())

    def local(self, request: frozenset[str]) -> frozenset[str] | None:
        return request or None

    def across(self, columns: Beacons, request: frozenset[str]) -> Codes | None:
        return None


def scores(engine: Engine) -> dict[str, float]:
    request = engine.read_request(make_pod(), PlacementPolicySpec())
    return {it.node: it.score for it in engine.verdicts(request)}


def test_a_row_is_scored_by_what_another_row_has_become() -> None:
    engine = Engine([NearBeacon()])
    for name, zone in (("n1", "a"), ("n2", "a"), ("n3", "b")):
        engine.table.write(make_node(name, labels={"zone": zone}), None)

    assert scores(engine) == {"n1": 100.0, "n2": 100.0, "n3": 100.0}
    engine.table.write(make_node("n1", labels={"zone": "a", "beacon": ""}), None)
    assert scores(engine) == {"n1": 100.0, "n2": 100.0, "n3": 10.0}
    engine.table.write(make_node("n1", labels={"zone": "b", "beacon": ""}), None)
    assert scores(engine) == {"n1": 100.0, "n2": 10.0, "n3": 100.0}


def test_a_request_read_earlier_is_decided_as_things_are_now() -> None:
    engine = Engine([NearBeacon()])
    engine.table.write(make_node("n1", labels={"zone": "a"}), None)
    engine.table.write(make_node("n2", labels={"zone": "b"}), None)
    request = engine.read_request(make_pod(), PlacementPolicySpec())

    assert engine.decide(request, "1").scores == {}
    engine.table.write(make_node("n3", labels={"zone": "b", "beacon": ""}), None)
    decision = engine.decide(request, "1")
    assert decision.node in ("n2", "n3")
    assert decision.scores == {"near-beacon": 100.0}
