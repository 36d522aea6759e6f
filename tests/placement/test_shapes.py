from __future__ import annotations

from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import resources
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import PodRequest, Shapes
from support.builders import make_node, make_pod


def test_few_bytes_leave_few_shapes() -> None:
    engine = Engine([resources.CONCERN])
    engine.ledger.write_node(make_node("n"), None)
    generous, thrifty = Shapes(engine.table, ()), Shapes(engine.table, (), most_bytes=0)

    requests = [_request(engine, f"{100 + it}m") for it in range(200)]
    for request in requests:
        assert generous.results(request).totals[0] == thrifty.results(request).totals[0]

    assert len(generous) == 128
    assert len(thrifty) == 16


def test_refusals_are_counted_anew_when_a_refused_row_changes() -> None:
    engine = Engine([resources.CONCERN])
    for name, cpu in (("big", "8"), ("small", "1")):
        engine.ledger.write_node(make_node(name, cpu=cpu), None)
    request = _request(engine, "4")

    before = engine.decide(request, "a").refusals
    engine.ledger.write_node(make_node("big", cpu="16"), None)
    unchanged = engine.decide(request, "a").refusals
    engine.ledger.write_node(make_node("small", cpu="8"), None)
    after = engine.decide(request, "a").refusals
    engine.ledger.write_node(make_node("big", cpu="2"), None)
    other = engine.decide(request, "a").refusals

    assert [(it.count, it.examples) for it in before] == [(1, ("small",))]
    assert unchanged == before
    assert after == ()
    assert [(it.count, it.examples) for it in other] == [(1, ("big",))]


def _request(engine: Engine, cpu: str) -> PodRequest:
    return engine.read_request(make_pod(cpu=cpu), PlacementPolicySpec())
