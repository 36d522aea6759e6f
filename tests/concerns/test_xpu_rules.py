"""The arrays decide as the dialects' rules do, node by node, for any devices, pods on them, and new pod."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support.xpu_reference import RefAsk, RefDevice, RefHost, cards, share
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

SIZE = 100
SLICE_SIZES = (24576, 49152, 98304)
device_sets = st.frozensets(st.integers(0, 7), max_size=6)
card_counts = st.sampled_from([1, 1, 2, 2, 4, 4, 8, 3])


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 5),
    taken=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 120)), max_size=6),
    unhealthy=st.frozensets(st.integers(0, 4), max_size=2),
    asked=st.integers(1, 4),
    total=st.integers(1, 320),
)
def test_shares(
    count: int,
    taken: list[tuple[int, int]],
    unhealthy: frozenset[int],
    asked: int,
    total: int,
) -> None:
    world = XPUWorld()
    world.put_node(make_xpu_node(mem=SIZE * count, count=count), unhealthy=unhealthy)
    devices = [RefDevice(it, SIZE, it not in unhealthy) for it in range(count)]
    for number, (index, mib) in enumerate(taken):
        if index >= count:
            continue
        devices[index].used += mib
        marks = share_marks(str(index), mib)
        world.see(
            make_xpu_pod(f"p{number}", {MEM: mib}, annotations=marks, node="n1", phase="Running")
        )
    pod = make_xpu_pod("new", {MEM: total}, label=str(asked))

    expected = share(devices, total, asked)

    assert (world.why(pod)["n1"] == "") == (expected is not None)
    if expected is not None:
        assert world.given(pod) == expected


def put_cards(world: XPUWorld, unhealthy: frozenset[int], count: int) -> None:
    registered = [{**it, "health": it["index"] not in unhealthy} for it in registered_cards(count)]
    world.put_node(make_xpu_node(cards=count, registered=registered))


def put_whole(world: XPUWorld, devices: list[RefDevice], index: int) -> None:
    marks = {"hami.io/kunlun-allocated": f"n1-kunlun-{index},kunlun,98304,100:;"}
    name = f"whole-{index}"
    world.see(make_xpu_pod(name, {CARDS: 1}, annotations=marks, node="n1", phase="Running"))
    devices[index].entries += 1
    devices[index].used += devices[index].size


asks = st.lists(st.tuples(st.booleans(), card_counts), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    count=st.sampled_from([8, 8, 8, 4, 6, 1]),
    busy=device_sets,
    unhealthy=device_sets,
    wanted=asks,
)
def test_whole_cards(
    count: int,
    busy: frozenset[int],
    unhealthy: frozenset[int],
    wanted: list[tuple[bool, int]],
) -> None:
    world = XPUWorld()
    put_cards(world, unhealthy, count)
    devices = [RefDevice(it, 98304, it not in unhealthy) for it in range(count)]
    for index in sorted(busy):
        if index < count:
            put_whole(world, devices, index)
    ordered = sorted(wanted, key=lambda it: not it[0])
    pod = make_xpu_pod(
        "new",
        *({CARDS: it} for is_init, it in ordered if not is_init),
        inits=[{CARDS: it} for is_init, it in ordered if is_init],
    )
    check_cards(world, pod, RefHost(devices), [RefAsk(is_init, it) for is_init, it in ordered])


def check_cards(
    world: XPUWorld, pod: dict[str, Any], host: RefHost, wanted: list[RefAsk], **how: bool
) -> None:
    expected = cards(host, wanted, **how)
    assert (world.why(pod)["n1"] == "") == (expected is not None)
    if expected is not None:
        assert [index for index, _ in world.given(pod)] == [it for got in expected for it in got]


@settings(max_examples=200, deadline=None)
@given(
    unhealthy=device_sets,
    taken=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(SLICE_SIZES)), max_size=12),
    whole=st.frozensets(st.integers(0, 7), max_size=2),
    wanted=st.lists(
        st.tuples(st.booleans(), card_counts, st.sampled_from(SLICE_SIZES)), min_size=1, max_size=3
    ),
    is_alone=st.booleans(),
    size=st.sampled_from([98304, 98304, 50000]),
)
def test_slices(
    unhealthy: frozenset[int],
    taken: list[tuple[int, int]],
    whole: frozenset[int],
    wanted: list[tuple[bool, int, int]],
    is_alone: bool,
    size: int,
) -> None:
    world = XPUWorld()
    registered = [
        {**it, "health": it["index"] not in unhealthy} for it in registered_cards(8, size)
    ]
    world.put_node(make_xpu_node(registered=registered))
    devices = [RefDevice(it, size, it not in unhealthy) for it in range(8)]
    for number, (index, mib) in enumerate(taken):
        marks = {"hami.io/xpu-devices-allocated": f"xpu-{index},XPU,{mib},25:;"}
        limits = {SLICES: 1, SLICE_MEM: mib}
        world.see(make_xpu_pod(f"p{number}", limits, annotations=marks, node="n1", phase="Running"))
        devices[index].entries += 1
        devices[index].used += mib
    for index in whole:
        put_whole(world, devices, index)
    ordered = sorted(wanted, key=lambda it: not it[0])
    limits_of = [{SLICES: it, SLICE_MEM: mib} for _, it, mib in ordered]
    inits = sum(is_init for is_init, _, _ in ordered)
    marks = {"hami.io/gpu-scheduler-policy": "spread, mutex"} if is_alone else {}
    pod = make_xpu_pod("new", *limits_of[inits:], inits=limits_of[:inits], annotations=marks)
    check_cards(
        world,
        pod,
        RefHost(devices),
        [RefAsk(is_init, it, mib) for is_init, it, mib in ordered],
        is_alone=is_alone,
    )
