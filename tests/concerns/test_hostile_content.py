"""What pods, annotations and models may say that nobody means: nothing fails, and nothing grows, by it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.names import GPUSHARE_ALLOCATION
from berthmaster.api.objects import Pod, decode_pod, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import power, xpu
from berthmaster.concerns.numa import request as numa
from berthmaster.concerns.resources import request as resources
from berthmaster.concerns.shape import Holder
from berthmaster.placement.engine import Decision, Engine
from support.builders import make_container, make_node, make_pod, make_pod_manifest
from support.xpu_worlds import MEM, XPUWorld, make_xpu_node, make_xpu_pod

HIGHEST = 2**63 - 1
PEAKS = PlacementPolicySpec.model_validate({"concerns": {"power": {"rule": "Peaks"}}})


@pytest.mark.parametrize("index", [0, 9])
def test_annotation_that_names_more_memory_than_there_is_fills_its_device_alone(index: int) -> None:
    """Whoever may change a pod that runs there may write such a thing."""
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=300, count=3))
    of_containers = {name: {str(index): HIGHEST} for name in "abcd"}
    marks = {"BAIDU_COM_XPU_MEM_IDX": "0", GPUSHARE_ALLOCATION: json.dumps(of_containers)}
    forger = make_xpu_pod("forger", {MEM: 1}, annotations=marks, node="n1", phase="Running")

    world.see(forger)
    beside = world.why(make_xpu_pod("new", {MEM: 100}))["n1"]
    world.engine.ledger.forget(pod_from_manifest(forger))

    # Of a device that nobody knows it may be any.
    assert bool(beside) is (index == 9)
    assert world.why(make_xpu_pod("new", {MEM: 300}, label="3"))["n1"] == ""


def test_allocation_that_gives_more_memory_than_there_is_can_be_kept_in_the_books() -> None:
    allocated = {
        "dialect": "xpushare",
        "devices": [{"i": 0, "id": "d", "mem": 2**53 - 1, "c": number} for number in range(4096)],
    }
    holding = xpu.CONCERN.usage(make_pod(node="n1"), allocated)
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=300, count=3))
    columns = world.engine.table.columns["xpu"]

    assert holding is not None
    xpu.CONCERN.charge(columns, 0, Holder(key="uid", namespace="default", name="pod"), holding)
    assert columns.open[0].tolist()[:3] == [0, 100, 100]


@pytest.mark.parametrize("zone", ["9" * 5000, "٣", "-1", ""])
def test_zone_of_an_allocation_that_cannot_be_one_leaves_the_pod_to_be_foreseen(zone: str) -> None:
    asked = {"cpu": "2", "memory": "1Gi"}
    pod = make_pod(node="n1", containers=[make_container(requests=asked, limits=asked)])

    usage = numa.read_usage(pod, {"zones": {zone: {"cpu": "2"}}})

    assert usage is not None
    assert usage.zones is None


def decide(engine: Engine) -> Decision:
    return engine.decide(engine.read_request(make_pod(cpu="2"), PEAKS), "id")


def with_model(engine: Engine, name: str, k1: float, k2: float) -> None:
    exponential = {"k0": 100.0, "k1": k1, "k2": k2}
    curve = {"cores": [0, 4], "watts": [100, 200]}
    status = {"power": {"usage": "1", "curve": curve, "exponential": exponential}}
    inventory = NodeInventory(name=name, status=NodeInventoryStatus.model_validate(status))
    engine.ledger.write_node(make_node(name), inventory)


@pytest.mark.parametrize("k2", [10.0, 30.0, 1e300])
def test_model_too_steep_to_be_reckoned_with_only_makes_its_own_node_the_last(k2: float) -> None:
    """Whoever mixes up percent and ratio writes such a one."""
    engine = Engine([power.CONCERN])
    # So many that the best are looked for in groups.
    for number in range(600):
        with_model(engine, f"steep-{number}", 1.0, k2)
    with_model(engine, "good", 1.0, 0.01)

    decision = decide(engine)

    assert decision.node == "good"
    assert decision.feasible == 601
    assert decision.scores == {"power": 100.0}


def big_pod(number: int) -> Pod:
    """Return a pod whose spec says nothing that another says, at length."""
    containers: list[Any] = [
        make_container(f"c{at}", requests={f"example.com/r{number}-{at}": "1"}) for at in range(200)
    ]
    return pod_from_manifest(make_pod_manifest(f"big-{number}", containers=containers))


def test_pods_of_a_great_length_are_not_remembered() -> None:
    before = len(resources._holdings), len(numa._readings)

    for number in range(8):
        pod = big_pod(number)
        assert resources.read_holding(pod).amounts[-1][1] == 1
        assert numa.read_usage(pod, None) is not None

    assert (len(resources._holdings), len(numa._readings)) == before


def test_pods_of_usual_length_are_reckoned_once() -> None:
    pods = [make_pod(f"p{number}", cpu="123m") for number in range(2)]

    first, second = map(resources.read_holding, pods)
    numa.read_usage(pods[0], None)
    remembered = len(numa._readings)
    numa.read_usage(pods[1], None)

    assert first is second
    assert len(numa._readings) == remembered


@pytest.mark.parametrize(("count", "is_shared"), [(3, True), (100, False)])
def test_pods_share_their_labels_unless_those_are_of_unheard_of_number(
    count: int, is_shared: bool
) -> None:
    labels = {f"example.com/{number}": "a" for number in range(count)}
    raw = json.dumps({"metadata": {"name": "a", "labels": labels}})

    first, second = decode_pod(raw), decode_pod(raw)

    assert first.metadata.labels == second.metadata.labels == labels
    assert (first.metadata.labels is second.metadata.labels) is is_shared
