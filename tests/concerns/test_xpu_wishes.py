"""What pods wish of their devices: models, to be alone, one NUMA node."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.allocation import write_allocation
from berthmaster.concerns.shape import InvalidRequestError
from support.xpu_worlds import (
    CARDS,
    MEM,
    SLICE_MEM,
    SLICES,
    XPUWorld,
    make_xpu_node,
    make_xpu_pod,
    registered_cards,
    share_marks,
)


def share(mib: int, label: str = "1", **wishes: str) -> dict[str, Any]:
    return make_xpu_pod("new", {MEM: mib}, label=label, annotations=marks(**wishes))


def marks(**wishes: str) -> dict[str, str]:
    return {f"{names.GROUP}/xpu-{key}": it for key, it in wishes.items()}


def put_devices(world: XPUWorld, *devices: dict[str, Any]) -> None:
    filled = [
        {"index": at, "id": f"d-{at}", "memoryMiB": 100, **it} for at, it in enumerate(devices)
    ]
    agent = {"metadata": {"name": "n1"}, "spec": {"devices": filled}}
    world.put_node(make_xpu_node(mem=100 * len(devices), count=len(devices)), node_xpu=agent)


def run(world: XPUWorld, pod: dict[str, Any], node: str = "n1") -> None:
    """Let a pod go to a node as it was decided, and be seen there."""
    decision = world.engine.decide(world.request(pod), "id", only=node)
    assert decision.node == node
    pod["metadata"]["annotations"] |= {
        **world.marks(pod),
        names.ALLOCATION: write_allocation(decision.allocation("required")),
    }
    pod["metadata"]["uid"] = pod["metadata"]["name"] = "runs"
    pod["spec"]["nodeName"], pod["status"]["phase"] = node, "Running"
    world.see(pod)


@pytest.mark.parametrize(
    ("wish", "devices"),
    [("p800", [1]), ("K200", [0]), (" R200 ,P800 OAM", [1]), ("P80", []), ("", [0])],
)
def test_models(wish: str, devices: list[int]) -> None:
    world = XPUWorld()
    put_devices(world, {"model": "K200"}, {"model": "P800 OAM"}, {})

    assert [it for it, _ in world.given(share(50, models=wish))] == devices


def test_models_of_cards_and_words_for_none() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(cards=1, registered=registered_cards(1)))

    assert world.given(make_xpu_pod("p", {CARDS: 1}, annotations=marks(models="xpu"))) == [
        (0, 98304)
    ]
    refused = make_xpu_pod("p", {SLICES: 1}, annotations=marks(models="R200"))
    (verdict,) = world.engine.verdicts(world.request(refused))
    assert verdict.reason is not None
    assert verdict.reason.detail == "1 of model r200 asked, usable cards none"
    assert "need 50 MiB of model r200" in world_of_shares().why(share(50, models="R200"))["n1"]


def world_of_shares(count: int = 2) -> XPUWorld:
    world = XPUWorld()
    put_devices(world, *({"numaNode": at // 2} for at in range(count)))
    return world


def test_exclusive_pod_goes_to_an_idle_device_and_stays_alone() -> None:
    world = world_of_shares()
    other = make_xpu_pod("a", {MEM: 10}, annotations=share_marks("0", 10), node="n1")
    world.see(other)
    pod = share(20, exclusive="true")
    assert world.given(pod) == [(1, 20)]
    assert world.scores(pod)["n1"] == 90.0

    run(world, pod)

    assert pod["metadata"]["annotations"]["BAIDU_COM_XPU_MEM_POD"] == "20"
    assert world.given(share(80)) == [(0, 80)]
    assert "free per device 90,0" in world.why(share(95))["n1"]
    assert "need 20 MiB, idle" in world.why(share(20, exclusive="true"))["n1"]


def test_exclusive_slice_keeps_its_card() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(registered=registered_cards(1)))
    limits = {SLICES: 1, SLICE_MEM: 24576}
    pod = make_xpu_pod("new", limits, annotations=marks(exclusive="true"))

    run(world, pod)

    assert "XPU,24576,25" in pod["metadata"]["annotations"]["hami.io/xpu-devices-allocated"]
    assert "NumaNotFit" in world.why(make_xpu_pod("other", limits))["n1"]


@pytest.mark.parametrize(
    ("wish", "free", "devices"),
    [
        ("single", (50, 90, 60, 70), [2, 3]),
        ("prefer", (50, 90, 60, 70), [2, 3]),
        ("single", (50, 90, 40, 95), []),
        ("prefer", (50, 90, 40, 95), [1, 3]),
        ("prefer", (60, 90, 70, 95), [0, 1]),
        ("", (60, 90, 70, 95), [0, 2]),
    ],
)
def test_one_numa_node(wish: str, free: tuple[int, ...], devices: list[int]) -> None:
    world = world_of_shares(4)
    for index, left in enumerate(free):
        taken = share_marks(str(index), 100 - left)
        world.see(make_xpu_pod(f"p{index}", {MEM: 1}, annotations=taken, node="n1"))
    pod = share(120, "2", numa=wish)

    assert [it for it, _ in world.given(pod)] == devices
    reason = world.why(pod)["n1"]
    assert bool(reason) != bool(devices)
    assert not reason or "60 MiB on 2 devices, all of one NUMA node" in reason


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"numa": "both"}, 'xpu-numa]: expected single or prefer, found "both"'),
        ({"exclusive": "yes"}, 'xpu-exclusive]: expected "true" or "false", found "yes"'),
    ],
)
def test_wishes_that_mean_nothing_are_refused(wishes: dict[str, str], words: str) -> None:
    world = world_of_shares()
    with pytest.raises(InvalidRequestError, match="xpu-") as error:
        world.request(share(10, **wishes), is_strict=True)

    assert words in str(error.value)
    assert world.why(share(10, **wishes))["n1"] == str(error.value).split("]: ", 1)[1]
