"""The arrays of power against the rules spelled out one node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, write_allocation
from berthmaster.api.inventory import NodeInventoryStatus, Power, PowerCurve
from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.settings.power import PowerRule
from berthmaster.cli.cases.worlds import as_read
from berthmaster.concerns import power
from berthmaster.concerns.power.placement import compare
from berthmaster.concerns.power.request import PowerRequest, read_request
from berthmaster.placement.engine import Engine
from support.builders import make_container, make_node, make_pod_manifest
from support.power_reference import (
    RefNode,
    RefPod,
    Value,
    compare_increases,
    compare_v1,
    compare_v2,
    least_increase,
    used_share,
    v1_cost,
    v2_cost,
)

# Sizes of which floating-point numbers hold every sum, product and quotient that is needed here.
EIGHTH = Fraction(1, 8)
CAPACITY = Fraction(16)
# Watts, and a share of the least: the smaller counts.
BANDS = (Fraction(1), Fraction(1, 4))
DOUBLING = tuple(map(Fraction, (0, 1, 2, 4, 8, 16)))
TENTHS = tuple(Fraction(tenth, 10) * CAPACITY for tenth in range(16))
SAMPLED_S, WINDOW_S = 1_000_000.0, 30.0
BEFORE, AFTER = "1970-01-12T13:45:00Z", "1970-01-12T13:46:30Z"

cores = st.integers(0, 40).map(lambda it: it * EIGHTH)
watts = st.integers(0, 1600).map(lambda it: Fraction(it, 4))
pods = st.builds(
    lambda cpu, state, assumed, own: RefPod(
        cpu=cpu,
        is_pending=state == "pending",
        is_shown=state == "shown",
        assumed=assumed,
        own_usage=own,
    ),
    cores.filter(bool),
    st.sampled_from(["pending", "started", "shown"]),
    st.one_of(st.just(Fraction(0)), cores),
    cores,
)


def clusters(xs: Sequence[Fraction]) -> st.SearchStrategy[list[RefNode]]:
    curve = st.lists(
        st.one_of(watts, watts, watts, st.none()), min_size=len(xs), max_size=len(xs)
    ).map(lambda ys: list(zip(xs, ys, strict=True)))
    node = st.builds(
        RefNode,
        capacity=st.just(CAPACITY),
        usage=st.one_of(st.none(), *[st.integers(0, 130).map(lambda it: it * EIGHTH)] * 5),
        points=st.one_of(st.just([]), curve, curve, curve),
        pods=st.lists(pods, max_size=3),
    )
    return st.lists(node, min_size=1, max_size=6)


def engine_of(nodes: Sequence[RefNode]) -> Engine:
    engine = Engine([power.CONCERN])
    for index, node in enumerate(nodes):
        name = f"n{index}"
        for at, pod in enumerate(node.pods):
            engine.ledger.see(_held(f"p{index}-{at}", name, pod))
        own = [
            {"uid": f"uid-p{index}-{at}", "usage": _quantity(it.own_usage)}
            for at, it in enumerate(node.pods)
        ]
        known = [(x, y) for x, y in node.points if y is not None]
        gaps = tuple(float(x) for x, y in node.points if y is None)
        curve = PowerCurve(
            cores=tuple(float(x) for x, _ in known),
            watts=tuple(float(y) for _, y in known),
            gaps=gaps,
        )
        status = NodeInventoryStatus(
            power=Power.model_validate(
                {
                    "curve": curve if known else None,
                    "usage": None if node.usage is None else _quantity(node.usage),
                    "usageSampledS": None if node.usage is None else SAMPLED_S,
                    "usageWindowS": WINDOW_S,
                    "podUsage": own,
                }
            )
        )
        engine.ledger.write_node(make_node(name, cpu="16"), as_read(name, status))
    return engine


def _held(name: str, node: str, pod: RefPod) -> Pod:
    manifest = make_pod_manifest(
        name,
        cpu=_quantity(pod.cpu),
        node=node,
        phase="Pending" if pod.is_pending else "Running",
        annotations={names.ALLOCATION: _allocation(node, pod.assumed)},
    )
    if not pod.is_pending:
        since = BEFORE if pod.is_shown else AFTER
        manifest["status"]["conditions"] = [
            {"type": "Initialized", "status": "True", "lastTransitionTime": since}
        ]
    return pod_from_manifest(manifest)


def _allocation(node: str, assumed: Fraction) -> str:
    given = {"power": {"assumed": _quantity(assumed)}}
    return write_allocation(
        Allocation(version=1, id="i", node=node, mode="required", allocated=given)
    )


def _quantity(amount: Fraction) -> str:
    return f"{amount * 1000}m"


def scores_of(engine: Engine, pod: Pod, **setting: Any) -> list[float]:
    policy = PlacementPolicySpec.model_validate({"concerns": {"power": setting}})
    verdicts = engine.verdicts(engine.read_request(pod, policy))
    return [it.score for it in verdicts]


def asking(request: Fraction, limit: Fraction) -> Pod:
    requests = {"cpu": _quantity(request)} if request else {}
    limits = {"cpu": _quantity(limit)} if limit else {}
    return pod_from_manifest(
        make_pod_manifest(containers=[make_container(requests=requests, limits=limits)])
    )


def same(found: list[float], expected: Sequence[Fraction]) -> bool:
    return found == pytest.approx([float(it) for it in expected], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    clusters(DOUBLING),
    cores.filter(bool),
    st.sampled_from([(Fraction(0), Fraction(1)), (Fraction(5, 2), Fraction(1)), BANDS]),
    st.sampled_from([None, Fraction(20)]),
    st.sampled_from(["Neutral", "Last"]),
    st.booleans(),
)
def test_least_increase(
    nodes: list[RefNode],
    need: Fraction,
    bands: tuple[Fraction, Fraction],
    zero: Fraction | None,
    unknown: str,
    learns: bool,
) -> None:
    band, band_share = bands
    found = scores_of(
        engine_of(nodes),
        asking(need, Fraction(0)),
        minDifferenceWatts=float(band),
        minDifferenceShare=float(band_share),
        learnUsage=learns,
        wattsForZero=None if zero is None else float(zero),
        unknownNodes=unknown,
    )

    share = used_share(nodes) if learns else Fraction(1)
    costs = [least_increase(node, need, share) for node in nodes]
    neutral = Fraction(50 if unknown == "Neutral" else 0)
    if all(node.usage is None or all(y is None for _, y in node.points) for node in nodes):
        # Nothing is known: power asks nothing, and all nodes are as good.
        assert found == [100.0] * len(nodes)
    else:
        assert same(
            found,
            compare_increases(costs, band=band, band_share=band_share, neutral=neutral, zero=zero),
        )


@settings(max_examples=60, deadline=None)
@given(
    clusters(DOUBLING),
    cores.filter(bool),
    st.sampled_from([0.5, 0.25, 1.0, 0.0]),
    st.sampled_from([20, 50]),
)
def test_wao_v2(nodes: list[RefNode], need: Fraction, assumption: float, base: int) -> None:
    found = scores_of(
        engine_of(nodes),
        asking(Fraction(0), need),
        rule="WAOv2",
        podUsageAssumption=assumption,
        scoreBase=base,
    )

    costs: list[Value] = [v2_cost(it, need, Fraction(assumption or 0.5)) for it in nodes]
    assert same(found, compare_v2(costs, base))


@settings(max_examples=60, deadline=None)
@given(clusters(TENTHS), cores, cores)
def test_wao_v1(nodes: list[RefNode], request: Fraction, limit: Fraction) -> None:
    found = scores_of(engine_of(nodes), asking(request, limit), rule="WAOv1")

    costs = [v1_cost(node, request, limit) for node in nodes]
    assert same(found, compare_v1(costs))


@pytest.mark.parametrize(
    ("need", "setting", "expected"),
    [
        (Fraction(1), {"minDifferenceShare": 1}, [100.0, 100.0, 40.0]),
        (Fraction(1), {}, [100.0, pytest.approx(5.04 / 5.5 * 100), pytest.approx(5.04 / 15 * 100)]),
        # A pod that costs half a watt is no tie either.
        (
            EIGHTH,
            {},
            [100.0, pytest.approx(1.505 / 1.5625 * 100), pytest.approx(1.505 / 2.75 * 100)],
        ),
    ],
    ids=["watts alone", "share", "small"],
)
def test_a_dead_band_ties_and_the_rest_falls_by_ratio(
    need: Fraction, setting: dict[str, Any], expected: list[Any]
) -> None:
    points = [
        [(Fraction(0), Fraction(0)), (CAPACITY, rise * CAPACITY)]
        for rise in (Fraction(4), Fraction(9, 2), Fraction(14))
    ]
    nodes = [RefNode(CAPACITY, Fraction(1), it) for it in points]

    assert scores_of(engine_of(nodes), asking(need, Fraction(0)), **setting) == expected


def test_share_of_requests_that_pods_use_is_learned_and_unlearned() -> None:
    """12 cores are used where pods ask for 30: a pod of 1 core at 10 W each costs 8 / 20 of them."""
    points = [(Fraction(0), Fraction(0)), (CAPACITY, 10 * CAPACITY)]
    pod = RefPod(cpu=Fraction(15), is_pending=False, is_shown=True)
    engine = engine_of([RefNode(CAPACITY, Fraction(6), points, [pod])] * 2)
    request = engine.read_request(asking(Fraction(1), Fraction(0)), PlacementPolicySpec())

    def watts() -> float:
        return float(engine.decide(request, "d").allocated["power"]["watts"])

    learned = watts()
    engine.ledger.forget(_held("p0-0", "n0", pod))
    of_one = watts()
    engine.ledger.forget(_held("p1-0", "n1", pod))

    assert (learned, of_one, watts()) == (4.0, 4.0, 10.0)


def test_unknown_node_is_never_first() -> None:
    known = [(Fraction(0), Fraction(100)), (CAPACITY, Fraction(900))]
    nodes = [RefNode(CAPACITY, Fraction(1), known), RefNode(CAPACITY, Fraction(1), [])]
    engine = engine_of(nodes)

    assert scores_of(engine, asking(EIGHTH, Fraction(0))) == [100.0, 50.0]
    assert scores_of(engine, asking(EIGHTH, Fraction(0)), unknownNodes="Last") == [100.0, 0.0]


def test_watts_below_zero_count_for_upstream_and_are_none_for_us() -> None:
    falling = [(Fraction(0), Fraction(15)), (CAPACITY, Fraction(-49))]
    rising = [(Fraction(0), Fraction(100)), (CAPACITY, Fraction(260))]
    nodes = [RefNode(CAPACITY, Fraction(8), falling), RefNode(CAPACITY, Fraction(8), rising)]
    engine = engine_of(nodes)
    pod = asking(Fraction(1), Fraction(1))

    assert scores_of(engine, pod) == [50.0, 100.0]
    assert scores_of(engine, pod, rule="WAOv2") == [100.0, 20.0]
    (fill,) = power.CONCERN.fills(engine.table.columns["power"], np.arange(2))
    assert fill.used.tolist() == [0.0, 180.0]


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=5, unique=True))
def test_peaks_gives_the_dearest_node_0(costs: list[int]) -> None:
    request = PowerRequest(PowerRule.PEAKS, need=1)

    scores = compare(np.array(costs) * 1e6 / 3, request)

    assert (scores[np.argmax(costs)], scores[np.argmin(costs)]) == (0.0, 100.0)


def test_a_burst_does_not_pile_onto_one_node() -> None:
    """Costs rise with usage, so each answer makes its node dearer before any metric shows it."""
    points = [(Fraction(x), Fraction(x) ** 2) for x in DOUBLING]
    engine = engine_of([RefNode(CAPACITY, Fraction(0), points) for _ in range(4)])
    policy = PlacementPolicySpec.model_validate({"concerns": {"power": {"minDifferenceWatts": 0}}})
    placed: list[str | None] = []

    for number in range(8):
        pod = pod_from_manifest(make_pod_manifest(f"p{number}", cpu="1"))
        decision = engine.decide(engine.read_request(pod, policy), f"d{number}")
        assert decision.node is not None
        engine.ledger.assume(
            decision.id,
            node=decision.node,
            usages=engine.ledger.usages_of(pod, decision.allocated),
            namespace="default",
            name=f"p{number}",
            owner=None,
            now_s=0.0,
        )
        placed.append(decision.node)

    assert all(placed.count(f"n{index}") == 2 for index in range(4))


def test_what_a_pod_costs_stands_in_its_allocation() -> None:
    points = [(Fraction(0), Fraction(100)), (CAPACITY, Fraction(260))]
    engine = engine_of([RefNode(CAPACITY, Fraction(2), points)])
    policy = PlacementPolicySpec()
    pod = asking(Fraction(3, 2), Fraction(0))

    decision = engine.decide(engine.read_request(pod, policy), "d")

    assert decision.allocated == {"power": {"watts": 15.0, "by": "Unknown"}}


def test_pod_without_cpu_is_refused_by_v2_alone() -> None:
    points = [(Fraction(0), Fraction(100)), (CAPACITY, Fraction(260))]
    engine = engine_of([RefNode(CAPACITY, Fraction(2), points)])
    pod = asking(Fraction(0), Fraction(0))
    v2 = PlacementPolicySpec.model_validate({"concerns": {"power": {"rule": "WAOv2"}}})

    refused = engine.decide(engine.read_request(pod, v2), "d")
    placed = engine.decide(engine.read_request(pod, PlacementPolicySpec()), "d")

    assert refused.describe() == (
        "0/1 nodes: 1 (n0) at least one container in the pod must have a requests.cpu or "
        "limits.cpu set"
    )
    assert placed.allocated["power"]["watts"] == 1.0


def test_requests_of_each_rule() -> None:
    """A sidecar of 1, an init container of 5, a container that asks 2 and one with a limit of 3 alone."""
    manifest = make_pod_manifest(
        initContainers=[
            make_container("side", requests={"cpu": "1"}, is_sidecar=True),
            make_container("init", requests={"cpu": "5"}),
        ],
        containers=[
            make_container("a", requests={"cpu": "2"}, limits={"cpu": "4"}),
            make_container("b", limits={"cpu": "3"}),
        ],
        overhead={"cpu": "500m"},
    )

    def need(name: str) -> tuple[int, int]:
        policy = PlacementPolicySpec.model_validate({"concerns": {"power": {"rule": name}}})
        request = read_request(pod_from_manifest(manifest), policy)
        return request.need // 10**6, request.limit // 10**6

    assert need("LeastIncrease") == (6500, 0)
    assert need("Peaks") == (6500, 0)
    assert need("WAOv2") == (5000, 0)
    assert need("WAOv1") == (2000, 4000)
    manifest["spec"]["initContainers"] = []
    assert need("LeastIncrease") == (5500, 0)
    assert need("Peaks") == (2500, 0)
