"""What pods ask in the three dialects, and what admission says to those that cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.concerns.shape import InvalidRequestError
from berthmaster.concerns.xpu import CONCERN
from support.builders import make_pod
from support.xpu_worlds import (
    CARDS,
    COUNT,
    MEM,
    SLICE_MEM,
    SLICES,
    XPUWorld,
    make_xpu_node,
    make_xpu_pod,
    registered_cards,
)

MAIN = "spec.containers[0].resources"


def faults(pod: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(InvalidRequestError) as error:
        XPUWorld(**settings).request(pod, is_strict=True)
    return str(error.value)


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        pytest.param(
            make_xpu_pod("p", {MEM: 1000}, label="two"),
            f'metadata.labels[{COUNT}]: invalid label {COUNT} "two", expected a whole number above 0',
            id="label",
        ),
        pytest.param(make_xpu_pod("p", {MEM: 1000}, label="0"), '"0", expected', id="label 0"),
        pytest.param(make_xpu_pod("p", {MEM: 1000}, label="-1"), '"-1"', id="negative label"),
        pytest.param(make_xpu_pod("p", {MEM: 1000}, label="1.5"), '"1.5"', id="broken label"),
        pytest.param(make_xpu_pod("p", {MEM: 1000}, label=""), '""', id="empty label"),
        pytest.param(
            make_xpu_pod("p", {MEM: "-5"}),
            f'{MAIN}[{MEM}]: expected a whole number above 0, found "-5"',
            id="negative",
        ),
        pytest.param(make_xpu_pod("p", {MEM: "1500m"}), 'found "1500m"', id="no whole number"),
        pytest.param(make_xpu_pod("p", {MEM: "much"}), f"{MAIN}[{MEM}]: ", id="no number"),
        pytest.param(
            make_xpu_pod("p", {MEM: 0}), "above 0, found 0; leave it out", id="nothing at all"
        ),
        pytest.param(make_xpu_pod("p", {CARDS: 0}), "found 0", id="no cards"),
        pytest.param(
            make_xpu_pod("p", {MEM: 1000, COUNT: 2}),
            f"{MAIN}[{COUNT}]: nobody can ask for {COUNT}; set the label {COUNT}",
            id="count as resource",
        ),
        pytest.param(
            make_xpu_pod("p", {COUNT: 2}), "nobody can ask for", id="count as the only resource"
        ),
        pytest.param(
            make_xpu_pod("p", {MEM: 1000}, {CARDS: 1}),
            "pod mixes XPU request dialects (hami-kunlun, xpushare)",
            id="two dialects",
        ),
        pytest.param(
            make_xpu_pod("p", {SLICES: 1, CARDS: 1}), "pod mixes XPU request", id="share and whole"
        ),
        pytest.param(
            make_xpu_pod("p", {CARDS: 1}, inits=[{MEM: 5}]), "pod mixes", id="mixed with an init"
        ),
        pytest.param(
            make_xpu_pod("p", {CARDS: 3}), "expected 1, 2, 4 or 8 cards, found 3", id="3 cards"
        ),
        pytest.param(make_xpu_pod("p", {SLICES: 6}), "found 6", id="6 slices"),
        pytest.param(
            make_xpu_pod("p", {SLICE_MEM: 24576}), f"set {SLICES} beside it", id="memory of no card"
        ),
    ],
)
def test_faults_are_told_with_field_and_way_out(pod: dict[str, Any], words: str) -> None:
    assert words in faults(pod)


def test_each_fault_of_a_pod_is_told() -> None:
    told = faults(make_xpu_pod("p", {MEM: "-1"}, {MEM: "x"}, label="no"))

    assert told.count("spec.containers") == 2
    assert "metadata.labels" in told


@pytest.mark.parametrize(
    "pod",
    [
        make_xpu_pod("p", {"cpu": 1}),
        make_xpu_pod("p", {}, label="4"),
        make_xpu_pod("p", {"nvidia.com/gpu": 1}),
    ],
)
def test_others_pods_ask_nothing(pod: dict[str, Any]) -> None:
    assert XPUWorld().request(pod, is_strict=True) == ()


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (make_xpu_pod("p", {MEM: 1000}, label="two"), f'invalid label {COUNT} "two"'),
        (make_xpu_pod("p", {MEM: "x"}), '"x" is not a quantity'),
        (make_xpu_pod("p", {MEM: 1000}, {CARDS: 1}), "pod mixes XPU request dialects"),
    ],
)
def test_faulty_pods_that_got_past_admission_fit_nowhere(pod: dict[str, Any], reason: str) -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=8000, count=1, cards=1))

    assert reason in world.why(pod)["n1"]


def test_share_of_a_pod_is_its_sum_or_its_largest_init_container() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=9000, count=1))

    assert world.given(make_xpu_pod("p", {MEM: 3000}, {MEM: 2000}, {"cpu": 1})) == [(0, 5000)]
    assert world.given(make_xpu_pod("p", {MEM: 3000}, inits=[{MEM: 4000}])) == [(0, 4000)]
    staying: dict[str, int | str] = {MEM: 1000, "restartPolicy": "Always"}
    assert world.given(make_xpu_pod("p", {MEM: 3000}, inits=[staying])) == [(0, 4000)]
    assert world.given(make_xpu_pod("p", {MEM: 100}, inits=[staying, {MEM: 4000}])) == [(0, 5000)]


def test_requests_stand_where_there_are_no_limits() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(cards=8))
    pod = make_xpu_pod("p", {CARDS: 2})
    del pod["spec"]["containers"][0]["resources"]["limits"]

    assert [it for it, _ in world.given(pod)] == [0, 1]


@pytest.mark.parametrize(
    ("limits", "mib"),
    [
        ({SLICES: 1, SLICE_MEM: 0}, 24576),
        ({SLICES: 1, SLICE_MEM: 24576}, 24576),
        ({SLICES: 1, SLICE_MEM: 24577}, 49152),
        ({SLICES: 1, SLICE_MEM: 49153}, 98304),
        ({SLICES: 1, SLICE_MEM: 200000}, 98304),
        ({SLICES: 1}, 98304),
    ],
)
def test_slices_have_one_of_three_sizes(limits: dict[str, int], mib: int) -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(registered=registered_cards(1)))

    assert world.given(make_xpu_pod("p", limits)) == [(0, mib)]


def test_ids_are_trimmed_and_apply_together() -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(cards=4))

    def cards(**marks: str) -> list[int]:
        annotations = {key.replace("_", "-"): it for key, it in marks.items()}
        annotations = {
            f"{'hami.io' if 'xpu' in key else 'baidu.com'}/{key}": it
            for key, it in annotations.items()
        }
        return [it for it, _ in world.given(make_xpu_pod("p", {CARDS: 1}, annotations=annotations))]

    assert cards(use_xpu_uuid=" n1-kunlun-2 , n1-kunlun-3") == [2]
    assert cards(use_xpu_uuid="") == [0]
    assert cards(use_xpu_uuid="n1-kunlun-2,n1-kunlun-3", nouse_gpuuuid="n1-kunlun-2") == [3]
    assert cards(use_xpu_uuid="n1-kunlun-2", use_gpuuuid="n1-kunlun-3") == []
    assert cards(no_use_xpu_uuid="n1-kunlun-0,n1-kunlun-1") == [2]


def test_the_cluster_may_call_things_otherwise() -> None:
    names = {
        "shareMemory": "aliyun.com/gpu-mem",
        "shareCount": "aliyun.com/gpu-count",
        "countLabel": "aliyun.com/gpu-count",
        "shareIndex": "ALIYUN_COM_GPU_MEM_IDX",
        "sharePod": "ALIYUN_COM_GPU_MEM_POD",
    }
    world = XPUWorld(names=names)
    pod = make_xpu_pod("p", {"aliyun.com/gpu-mem": 5})

    assert world.request(make_xpu_pod("p", {MEM: 5})) == ()
    assert world.request(pod)[0].request.total_mib == 5  # type: ignore[attr-defined]


def test_usage_of_pods_without_devices_is_nothing() -> None:
    assert CONCERN.usage(make_pod("p", cpu="1", annotations={"a": "b"}), None) is None
