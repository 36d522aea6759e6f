from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from berthmaster.api.hami import (
    MOST_DEVICES,
    PodDevice,
    read_devices,
    read_registration,
    write_devices,
)

devices = st.builds(
    PodDevice,
    st.from_regex(r"[0-9a-z.:-]{1,20}", fullmatch=True),
    st.sampled_from(["XPU", "kunlun"]),
    st.integers(0, 10**6),
    st.integers(0, 100),
)


@given(st.lists(st.lists(devices, max_size=4), min_size=1, max_size=4))
def test_devices_come_back_as_written(containers: list[list[PodDevice]]) -> None:
    assert read_devices(write_devices(containers)) == tuple(map(tuple, containers))


def test_devices_of_a_pod_read_as_upstream_writes_them() -> None:
    text = "n1-kunlun-4,kunlun,98304,100:n1-kunlun-6,kunlun,98304,100:;"

    assert read_devices(text) == (
        (
            PodDevice("n1-kunlun-4", "kunlun", 98304, 100),
            PodDevice("n1-kunlun-6", "kunlun", 98304, 100),
        ),
    )
    assert read_devices(";a,XPU,1,2:;") == ((), (PodDevice("a", "XPU", 1, 2),))


@given(st.text(alphabet='a0,:;[]{}"', max_size=40))
def test_any_text_is_read_without_fault(text: str) -> None:
    read_devices(text)
    read_registration(text)


def test_text_that_names_no_devices_is_none() -> None:
    for text in ("x", "a,b,c,d:;", "a,XPU,1:;", "a,XPU,1,2;", "a" * 100_000):
        assert read_devices(text) is None


def test_zeros_and_false_are_left_out_of_a_registration() -> None:
    (first, second), problems = read_registration(
        '[{"id":"a","count":4,"devmem":98304,"type":"XPU"},'
        '{"id":"b","index":1,"devmem":1024,"numa":1,"health":true}]'
    )

    assert (first.index, first.numa_node, first.is_healthy, first.slices) == (0, 0, False, 4)
    assert (second.index, second.numa_node, second.is_healthy) == (1, 1, True)
    assert not problems


def test_text_form_of_a_registration() -> None:
    seven, problems = read_registration(
        "0000:03:00.0,4,98304,100,XPU,1,true:b,4,98304,100,XPU,0,false:"
    )
    nine, _ = read_registration("a,4,98304,100,XPU,1,true,5,mode:")

    assert [(it.id, it.index, it.numa_node, it.is_healthy) for it in seven] == [
        ("0000:03:00.0", 0, 1, True),
        ("b", 1, 0, False),
    ]
    assert [it.index for it in nine] == [5]
    assert not problems


def test_faults_of_a_registration_are_named_and_the_rest_is_read() -> None:
    entries = [{"id": "a", "devmem": 1}, {"id": "b", "devmem": 1}, {"id": "", "index": 1}, 5]
    cards, problems = read_registration(json.dumps(entries))

    assert [it.id for it in cards] == ["a"]
    assert problems[0] == "[1]: index 0 is there already; the card is ignored"
    assert len(problems) == 3
    assert read_registration("{}")[1][0].startswith("expected a JSON array")
    assert read_registration("[" * 5000)[0] == ()


def test_registrations_are_bounded() -> None:
    entries = [{"id": str(it), "index": it, "devmem": 1} for it in range(MOST_DEVICES + 5)]
    cards, problems = read_registration(json.dumps(entries))

    assert len(cards) == MOST_DEVICES
    assert "more than 64" in problems[-1]
    assert read_registration("[" + " " * 100_000 + "]")[1]
