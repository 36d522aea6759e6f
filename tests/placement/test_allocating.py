"""What a concern gives is shown to those after it."""

from __future__ import annotations

from typing import Any

from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns.diskio import DiskIOConcern
from berthmaster.concerns.diskio.columns import DiskIOColumns
from berthmaster.concerns.diskio.request import DiskIORequest
from berthmaster.concerns.shape import Allocated
from berthmaster.placement.engine import Engine
from support.builders import make_node, make_pod


class Noting(DiskIOConcern):
    """Fits everywhere, and gives its own name beside the names that it is shown."""

    def __init__(self, name: str) -> None:
        self.name = name

    def filter(self, columns: Any, rows: Any, request: Any) -> Any:
        return super().filter(columns, rows, request) * 0

    def allocate(
        self, columns: DiskIOColumns, row: int, request: DiskIORequest, beside: Allocated
    ) -> dict[str, Any]:
        return {"seen": sorted(beside)}


def test_each_concern_sees_what_those_before_it_gave() -> None:
    engine = Engine([Noting("first"), Noting("second"), Noting("third")])
    engine.ledger.write_node(make_node("n1"), None)
    request = engine.read_request(make_pod(), PlacementPolicySpec())

    given = engine.decide(request, "1").allocated

    assert given == engine.allocate_on(request, "n1")
    assert given == {
        "first": {"seen": []},
        "second": {"seen": ["first"]},
        "third": {"seen": ["first", "second"]},
    }
    assert engine.allocate_on(request, "n9") == {}
