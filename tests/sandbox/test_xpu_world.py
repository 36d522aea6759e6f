"""The simulated device plugins in memory: what they pick, what they get wrong, and who says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from berthmaster_sandbox.world.numa_verdicts import Rejected
from berthmaster_sandbox.world.xpu_books import Fault
from berthmaster_sandbox.world.xpu_hosts import (
    HANDSHAKE,
    REGISTER,
    Dialect,
    Habits,
    Host,
    RegisterForm,
    Xpu,
    make_host,
)
from berthmaster_sandbox.world.xpu_kubelet import XpuKubelet
from berthmaster_sandbox.world.xpu_playing import XpuScene
from berthmaster_sandbox.world.xpu_pods import (
    Entry,
    encode_entries,
    parse_entries,
    parse_indices,
    read_pod,
    spread,
)
from support.xpu_pods import (
    card_annotations,
    make_card_pod,
    make_limited_pod,
    make_share_pod,
    make_slice_pod,
    share_annotations,
    slice_annotations,
)

SHARE = "xpu-a"


def bound(pod: dict[str, Any], node: str = SHARE) -> dict[str, Any]:
    pod["spec"]["nodeName"] = node
    return pod


def share(name: str, mib: int, indices: str, *, assumed_ns: int = 1) -> dict[str, Any]:
    annotations = share_annotations(indices, mib, assumed_ns=assumed_ns)
    return bound(make_share_pod(name, mib, annotations=annotations))


def phases(scene: XpuScene) -> dict[str, str]:
    return {it["metadata"]["name"]: it["status"]["phase"] for it in scene.pods.values()}


# What they advertise.


def test_share_host_advertises_memory_and_count() -> None:
    host = make_host("n", unhealthy=[3])

    assert host.capacity() == {"baidu.com/xpu-mem": "32256", "baidu.com/xpu-count": "4"}
    assert host.allocatable() == {"baidu.com/xpu-mem": "24192", "baidu.com/xpu-count": "4"}
    assert host.allocatable([Dialect.XPUSHARE])["baidu.com/xpu-mem"] == "0"
    assert host.annotations(0) == {}
    assert [it.board for it in host.devices] == ["n-board0", "n-board0", "n-board1", "n-board1"]
    assert [it.numa_node for it in host.devices] == [0, 0, 1, 1]


def test_first_size_counts_for_all_where_the_plugin_does_so() -> None:
    sizes = (8064, 16128)

    assert make_host("n", sizes=sizes).capacity()["baidu.com/xpu-mem"] == "24192"
    first = make_host("n", sizes=sizes, counts_first_size=True)
    assert first.capacity()["baidu.com/xpu-mem"] == "16128"
    assert make_host("n", memory_unit_mib=256).capacity()["baidu.com/xpu-mem"] == "124"


def test_slices_are_registered_without_zeros() -> None:
    host = make_host("n", devices=2, dialects=[Dialect.VXPU], unhealthy=[1])

    annotations = host.annotations(0)

    assert host.capacity() == {"kunlunxin.com/vxpu": "8"}
    assert annotations[HANDSHAKE] == "Reported 1970-01-01 00:00:00 +0000 UTC"
    common = {"count": 4, "devmem": 98304, "devcore": 100, "type": "XPU"}
    assert json.loads(annotations[REGISTER]) == [
        {"id": "n-board0-0", **common, "health": True},
        {"id": "n-board0-1", "index": 1, **common, "numa": 1},
    ]


@pytest.mark.parametrize(
    ("form", "tail"),
    [(RegisterForm.TEXT, "true:"), (RegisterForm.TEXT_WITH_INDEX, "true,1,:")],
)
def test_text_forms_of_the_register(form: RegisterForm, tail: str) -> None:
    host = make_host("n", devices=2, dialects=[Dialect.VXPU], register_form=form)

    text = host.annotations(0)[REGISTER]

    assert text.endswith("n-board0-1,4,98304,100,XPU,1," + tail)
    assert text.count(":") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": (Xpu(index=0, memory_mib=1, id="a"), Xpu(index=0, memory_mib=1, id="b"))},
        {"devices": (Xpu(index=0, memory_mib=1, id="a"), Xpu(index=1, memory_mib=1, id="a"))},
        {"devices": (), "dialects": ()},
    ],
    ids=["index", "id", "dialect"],
)
def test_impossible_hosts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="n: "):
        Host(name="n", **wrong)


# What they read.


def test_entries_are_read_from_the_right() -> None:
    containers = [[Entry("0000:86:00.0", "XPU", 24576, 25), Entry("b", "XPU", 1, 2)], []]

    assert parse_entries(encode_entries(containers)) == containers
    assert parse_entries("nonsense") == [[]]
    assert parse_entries(None) == []


@pytest.mark.parametrize("text", [None, "", "x", "1,", "-1", "1, 2", "9" * 40])
def test_no_list_of_indices(text: str | None) -> None:
    assert parse_indices(text) == []


def test_remainder_goes_to_the_first() -> None:
    assert spread(10000, [2, 0, 1]) == {2: 3334, 0: 3333, 1: 3333}


# xpushare.


def test_share_pod_gets_its_device_and_is_assigned() -> None:
    scene = XpuScene([make_host(SHARE)])

    uid = scene.create(share("p", 4500, "2"))
    scene.settle()

    assert phases(scene) == {"p": "Running"}
    annotations = scene.pods[uid]["metadata"]["annotations"]
    assert annotations["BAIDU_COM_XPU_MEM_ASSIGNED"] == "true"
    assert int(annotations["BAIDU_COM_XPU_MEM_ASSUME_TIME"]) > 10**18
    assert scene.kubelet(SHARE).books.used(2) == 4500
    assert scene.findings == []


def test_share_over_several_devices() -> None:
    scene = XpuScene([make_host(SHARE)])

    scene.create(share("p", 10000, "0,1,3"))
    scene.settle()

    used = [scene.kubelet(SHARE).books.used(it) for it in range(4)]
    assert used == [3334, 3333, 0, 3333]


def test_pods_of_one_size_are_swapped_when_the_younger_is_first() -> None:
    """The plugin serves the oldest assumed pod, whichever pod the kubelet is at."""
    scene = XpuScene([make_host(SHARE, habits=Habits(start_s=60))])

    scene.create(share("a", 4500, "0", assumed_ns=2))
    scene.create(share("b", 4500, "1", assumed_ns=1))
    scene.settle()

    assert [str(it) for it in scene.found(Fault.MISMATCHED)] == [
        "xpu-a: mismatched: annotated 4500 of 0, has 4500 of 1 (default/a)",
        "xpu-a: mismatched: annotated 4500 of 1, has 4500 of 0 (default/b)",
    ]
    assert len(scene.findings) == 2


def test_pod_whose_turn_was_taken_may_get_nothing() -> None:
    """The pod that was mistaken for it runs already, so nobody is left who waits."""
    scene = XpuScene([make_host(SHARE)])

    scene.create(share("a", 4500, "0", assumed_ns=2))
    scene.create(share("b", 4500, "1", assumed_ns=1))
    scene.settle()

    assert [it.fault for it in scene.findings] == [Fault.MISMATCHED, Fault.UNSERVED]


def test_pods_of_other_sizes_are_never_confused() -> None:
    scene = XpuScene([make_host(SHARE)])

    scene.create(share("a", 4500, "0", assumed_ns=2))
    scene.create(share("b", 4501, "1", assumed_ns=1))
    scene.settle()

    assert scene.findings == []


def test_overcommitted_device_is_found_though_books_say_otherwise() -> None:
    scene = XpuScene([make_host(SHARE)])

    scene.create(share("a", 4500, "0"))
    scene.create(share("b", 4000, "0"))
    scene.settle()

    assert phases(scene) == {"a": "Running", "b": "Running"}
    (found,) = scene.found(Fault.OVERCOMMITTED)
    assert str(found) == (
        "xpu-a device 0: overcommitted: 8500 of 8064 MiB are in use (default/a, default/b)"
    )


def test_true_size_counts_not_the_advertised_one() -> None:
    scene = XpuScene([make_host(SHARE, sizes=(8064, 4032), counts_first_size=True)])

    scene.create(share("a", 8000, "1"))
    scene.settle()

    assert [it.device for it in scene.found(Fault.OVERCOMMITTED)] == [1]


def test_pod_without_assumption_runs_without_a_device() -> None:
    scene = XpuScene([make_host(SHARE)])

    scene.create(bound(make_share_pod("p", 4500)))
    scene.settle()

    assert phases(scene) == {"p": "Running"}
    assert [it.fault for it in scene.findings] == [Fault.UNSERVED]


def test_only_device_is_given_without_assumption() -> None:
    scene = XpuScene([make_host(SHARE, devices=1)])

    scene.create(bound(make_share_pod("p", 4500)))
    scene.settle()

    assert scene.kubelet(SHARE).books.used(0) == 4500
    assert scene.findings == []


@pytest.mark.parametrize("indices", ["9", "x", "-1", ""])
def test_unknown_device_leaves_the_pod_without(indices: str) -> None:
    scene = XpuScene([make_host(SHARE)])

    scene.create(share("p", 4500, indices))
    scene.settle()

    assert [it.fault for it in scene.findings] == [Fault.UNSERVED]


def test_two_containers_are_not_served() -> None:
    """The plugin compares one container's number with the pod's total."""
    scene = XpuScene([make_host(SHARE)])
    limits = {"baidu.com/xpu-mem": "1000"}
    annotations = share_annotations("0", 2000)

    scene.create(bound(make_limited_pod("p", limits, limits, annotations=annotations)))
    scene.settle()

    assert [it.fault for it in scene.findings] == [Fault.UNSERVED] * 2


def test_unhealthy_device_is_found() -> None:
    scene = XpuScene([make_host(SHARE, unhealthy=[0])])

    scene.create(share("p", 4500, "0"))
    scene.settle()

    assert [it.fault for it in scene.findings] == [Fault.UNHEALTHY]


def test_kubelet_counts_fake_devices_of_the_whole_node() -> None:
    scene = XpuScene([make_host(SHARE, devices=1)])

    scene.create(share("a", 8000, "0"))
    uid = scene.create(share("b", 100, "0"))
    scene.settle()

    assert phases(scene) == {"a": "Running", "b": "Failed"}
    assert scene.rejected[uid] == Rejected(
        reason="UnexpectedAdmissionError",
        message=(
            "Allocate failed due to requested number of devices unavailable for baidu.com/xpu-mem. "
            "Requested: 100, Available: 64, which is unexpected"
        ),
        container="c0",
    )
    assert scene.findings == []


def test_init_containers_devices_are_used_again() -> None:
    scene = XpuScene([make_host(SHARE, devices=1)])
    whole = {"baidu.com/xpu-mem": "8064"}

    scene.create(bound(make_limited_pod("p", whole, init=[whole])))
    scene.settle()

    assert phases(scene) == {"p": "Running"}
    assert scene.kubelet(SHARE).books.used(0) == 8064
    assert scene.findings == []


def test_memory_is_used_until_the_end() -> None:
    scene = XpuScene([make_host(SHARE, habits=Habits(stop_s=30))])
    first = scene.create(share("a", 8000, "0", assumed_ns=1))
    scene.advance(1)
    assert scene.pods[first]["status"]["phase"] == "Running"

    scene.delete(first)
    scene.advance(29)
    assert scene.kubelet(SHARE).books.used(0) == 8000

    scene.settle()
    assert scene.kubelet(SHARE).books.used(0) == 0
    assert scene.pods == {}


def test_pod_deleted_while_it_is_admitted_leaves_nothing() -> None:
    scene = XpuScene([make_host(SHARE, habits=Habits(allocate_s=10))])
    uid = scene.create(share("a", 8000, "0"))
    scene.advance(5)

    scene.delete(uid)
    scene.advance(1)
    assert list(scene.pods) == [uid]

    scene.settle()
    assert scene.pods == {}
    assert scene.kubelet(SHARE).books.used(0) == 0


def test_pod_that_is_shown_again_is_admitted_once() -> None:
    scene = XpuScene([make_host(SHARE)])
    uid = scene.create(share("a", 8000, "0"))
    kubelet = scene.kubelet(SHARE)
    while kubelet.plugins[Dialect.XPUSHARE].calls == 0:
        scene.step(SHARE)

    kubelet.learn(read_pod(scene.pods[uid]))
    scene.settle()
    kubelet.learn(read_pod(scene.pods[uid]))
    scene.settle()

    assert kubelet.plugins[Dialect.XPUSHARE].calls == 1
    assert kubelet.is_idle
    assert kubelet.books.used(0) == 8000


def test_pods_that_ran_before_have_what_their_annotations_say() -> None:
    kubelet = XpuKubelet(make_host(SHARE), clock=lambda: 0.0)
    early = share("a", 8000, "2")
    early["status"] = {"phase": "Running"}

    kubelet.learn(read_pod(early))
    kubelet.learn(read_pod(early))

    assert kubelet.is_idle
    assert kubelet.books.used(2) == 8000
    assert kubelet.plugins[Dialect.XPUSHARE].calls == 0
    kubelet.forget("uid-a")
    assert kubelet.books.used(2) == 0


def test_pod_that_is_gone_in_its_admission_leaves_nothing() -> None:
    """As when it was deleted by force."""
    scene = XpuScene([make_host(SHARE)])
    uid = scene.create(share("a", 8000, "0"))
    kubelet = scene.kubelet(SHARE)
    while kubelet.plugins[Dialect.XPUSHARE].calls == 0:
        scene.step(SHARE)

    kubelet.forget(uid)
    scene.settle()

    assert kubelet.books.used(0) == 0


def test_pod_that_is_deleted_by_force_before_its_plugin_looks_was_never_unserved() -> None:
    scene = XpuScene([make_host(SHARE)])
    uid = scene.create(share("a", 8000, "0"))
    kubelet = scene.kubelet(SHARE)
    while kubelet.plugins[Dialect.XPUSHARE].calls == 0:
        scene.step(SHARE)

    # The watch has not told of it yet.
    del scene._pods[uid]
    scene.settle()

    assert kubelet.plugins[Dialect.XPUSHARE].calls == 1
    assert not kubelet.books.findings


def test_finished_pod_frees_its_device() -> None:
    scene = XpuScene([make_host(SHARE)])
    uid = scene.create(share("a", 8000, "0"))
    assert not scene.finish(uid)
    scene.settle()

    assert scene.finish(uid)

    assert scene.kubelet(SHARE).books.used(0) == 0
    scene.delete(uid)
    assert scene.pods == {}


# Crashes.


def test_pod_that_meets_a_dead_plugin_is_turned_away() -> None:
    scene = XpuScene([make_host(SHARE, habits=Habits(restart_s=5))])
    scene.crash(SHARE, Dialect.XPUSHARE)

    scene.create(share("a", 4500, "0"))
    scene.advance(1)
    assert phases(scene) == {"a": "Failed"}
    assert "no healthy devices present" in scene.rejected["uid-a"].message

    scene.advance(5)
    scene.create(share("b", 4500, "0"))
    scene.settle()
    assert phases(scene) == {"a": "Failed", "b": "Running"}
    assert scene.kubelet(SHARE).plugins[Dialect.XPUSHARE].lives == 2


def test_crash_in_a_call_turns_its_pod_away() -> None:
    scene = XpuScene([make_host(SHARE, habits=Habits(allocate_s=10))])
    scene.create(share("a", 4500, "0"))
    scene.advance(5)

    scene.crash(SHARE, Dialect.XPUSHARE)
    scene.settle()

    assert phases(scene) == {"a": "Failed"}
    assert "code = Unavailable" in scene.rejected["uid-a"].message
    assert scene.kubelet(SHARE).books.used(0) == 0


def test_failed_pod_is_picked_while_the_server_calls_it_pending() -> None:
    """Why a pod counts as in flight until its phase says that it is not."""
    scene = XpuScene([make_host(SHARE, habits=Habits(verdict_s=60, restart_s=1))])
    scene.crash(SHARE, Dialect.XPUSHARE)
    scene.create(share("a", 4500, "0", assumed_ns=1))
    scene.advance(2)

    scene.create(share("b", 4500, "1", assumed_ns=2))
    scene.settle()

    assert phases(scene) == {"a": "Failed", "b": "Running"}
    assert [it.pods for it in scene.found(Fault.MISMATCHED)] == [("default/b",)]


@pytest.mark.parametrize("seed", range(20))
def test_plugins_that_die_at_random_never_serve_a_single_pod_wrongly(seed: int) -> None:
    """One pod after another: whatever the moment of the crash, it is right or turned away."""
    habits = Habits(crash_probability=0.5, restart_s=0.1)
    scene = XpuScene([make_host(SHARE, devices=8, habits=habits)], seed=seed)

    for at in range(16):
        scene.create(share(f"p{at}", 4000, str(at // 2), assumed_ns=at))
        scene.settle()

    assert scene.findings == []
    assert len(scene.rejected) > 1
    assert set(phases(scene).values()) <= {"Running", "Failed"}


# HAMi's dialects.


def test_slices_are_served_and_struck() -> None:
    scene = XpuScene([make_host("n", dialects=[Dialect.VXPU], devices=2)])
    devices = "n-board0-0,XPU,24576,25:n-board0-1,XPU,24576,25:;"

    uid = scene.create(
        bound(make_slice_pod("p", 2, annotations=slice_annotations("n", devices)), "n")
    )
    scene.settle()

    annotations = scene.pods[uid]["metadata"]["annotations"]
    assert annotations["hami.io/xpu-devices-to-allocate"] == ";"
    assert annotations["hami.io/xpu-devices-allocated"] == devices
    assert annotations["hami.io/bind-phase"] == "success"
    assert [scene.kubelet("n").books.used(it) for it in (0, 1)] == [24576, 24576]
    assert scene.findings == []


def test_slices_per_container_in_order_init_first() -> None:
    scene = XpuScene([make_host("n", dialects=[Dialect.VXPU], devices=2)])
    one = {"kunlunxin.com/vxpu": "1"}
    devices = "n-board0-1,XPU,49152,50:;n-board0-0,XPU,24576,25:;;n-board0-1,XPU,49152,50:;"
    pod = make_limited_pod(
        "p", one, {"cpu": "1"}, one, init=[one], annotations=slice_annotations("n", devices)
    )

    scene.create(bound(pod, "n"))
    scene.settle()

    assert phases(scene) == {"p": "Running"}
    assert [scene.kubelet("n").books.used(it) for it in (0, 1)] == [24576, 49152]
    assert scene.findings == []


def test_first_allocating_pod_is_served_whatever_its_size() -> None:
    two = "n-board0-0,XPU,24576,25:n-board0-1,XPU,24576,25:;"
    slow = Habits(pickup_s=5)
    scene = XpuScene([make_host("n", dialects=[Dialect.VXPU], devices=2, habits=slow)])

    scene.create(bound(make_slice_pod("b", 1, annotations=slice_annotations("n", two[25:])), "n"))
    scene.advance(4)
    scene.create(bound(make_slice_pod("a", 2, annotations=slice_annotations("n", two)), "n"))
    scene.settle()

    # The kubelet is at b, the plugin takes a for it: both are lost.
    assert phases(scene) == {"a": "Failed", "b": "Failed"}
    assert "default/a: 2 devices annotated, 1 asked for" in scene.rejected["uid-b"].message


def test_unknown_slice_device_fails_the_pod() -> None:
    scene = XpuScene([make_host("n", dialects=[Dialect.VXPU], devices=2)])
    annotations = slice_annotations("n", "ghost,XPU,24576,25:;")

    uid = scene.create(bound(make_slice_pod("p", 1, annotations=annotations), "n"))
    scene.settle()

    assert phases(scene) == {"p": "Failed"}
    assert scene.pods[uid]["metadata"]["annotations"]["hami.io/bind-phase"] == "failed"


def test_slices_of_two_sizes_on_a_card_are_found() -> None:
    scene = XpuScene([make_host("n", dialects=[Dialect.VXPU], devices=2)])

    for name, size in (("a", 24576), ("b", 49152)):
        annotations = slice_annotations("n", f"n-board0-0,XPU,{size},25:;")
        scene.create(bound(make_slice_pod(name, 1, annotations=annotations), "n"))
        scene.settle()

    assert [it.detail for it in scene.findings] == ["slices of [24576, 49152] MiB"]


def test_whole_cards_by_container() -> None:
    host = make_host("n", dialects=[Dialect.KUNLUN], devices=8)
    scene = XpuScene([host])
    two, one = {"kunlunxin.com/xpu": "2"}, {"kunlunxin.com/xpu": "1"}
    pod = make_limited_pod("p", two, one, annotations=card_annotations("n", (4, 6), (1,)))

    uid = scene.create(bound(pod, "n"))
    scene.settle()

    assert [it for it in range(8) if scene.kubelet("n").books.used(it)] == [1, 4, 6]
    assert scene.pods[uid]["metadata"]["annotations"]["hami.io/bind-phase"] == "success"
    assert scene.findings == []


def test_whole_cards_go_to_the_oldest_of_that_number() -> None:
    scene = XpuScene(
        [make_host("n", dialects=[Dialect.KUNLUN], devices=8, habits=Habits(start_s=60))]
    )

    for name, cards, bound_s in (("a", (0,), 2), ("b", (1,), 1), ("c", (2, 3), 0)):
        annotations = card_annotations("n", cards, bound_s=bound_s)
        scene.create(bound(make_card_pod(name, len(cards), annotations=annotations), "n"))
    scene.settle()

    assert [it.pods for it in scene.found(Fault.MISMATCHED)] == [("default/a",), ("default/b",)]


@pytest.mark.parametrize("annotations", [None, card_annotations("n", (9,))], ids=["none", "ghost"])
def test_whole_cards_fail_without_a_pod(annotations: dict[str, str] | None) -> None:
    scene = XpuScene([make_host("n", dialects=[Dialect.KUNLUN], devices=2)])

    scene.create(bound(make_card_pod("p", 1, annotations=annotations), "n"))
    scene.settle()

    assert phases(scene) == {"p": "Failed"}


def test_restart_forgets_which_cards_were_served() -> None:
    """A pod whose last phase was lost is taken for one that waits."""
    habits = Habits(start_s=60, restart_s=1)
    scene = XpuScene([make_host("n", dialects=[Dialect.KUNLUN], devices=2, habits=habits)])
    one, two = card_annotations("n", (0,)), card_annotations("n", (1,), bound_s=2)
    scene.create(bound(make_card_pod("a", 1, annotations=one), "n"))
    scene.advance(1)
    scene.annotate("uid-a", {"hami.io/bind-phase": "allocating"})

    scene.crash("n", Dialect.KUNLUN)
    scene.advance(2)
    scene.create(bound(make_card_pod("b", 1, annotations=two), "n"))
    scene.settle()

    assert [it.fault for it in scene.findings] == [Fault.OVERCOMMITTED, Fault.MISMATCHED]


def test_card_given_out_whole_and_shared_is_overcommitted() -> None:
    dialects = [Dialect.KUNLUN, Dialect.XPUSHARE]
    scene = XpuScene([make_host("n", dialects=dialects, devices=2)])

    scene.create(bound(make_card_pod("whole", 1, annotations=card_annotations("n", (0,))), "n"))
    annotations = share_annotations("0", 10)
    scene.create(bound(make_share_pod("share", 10, annotations=annotations), "n"))
    scene.settle()

    assert [(it.fault, it.device) for it in scene.findings] == [(Fault.OVERCOMMITTED, 0)]


# The scene itself.


def test_hosts_can_be_interleaved_step_by_step() -> None:
    seen: list[tuple[str, str, bool]] = []
    scene = XpuScene(
        [make_host("xpu-a"), make_host("xpu-b")],
        on_change=lambda pod, gone: seen.append(
            (pod["metadata"]["name"], pod["status"]["phase"], gone)
        ),
    )
    scene.create(make_share_pod("a", 10, annotations=share_annotations("0", 10)))
    scene.create(make_share_pod("b", 10, annotations=share_annotations("0", 10)))
    scene.bind("uid-a", "xpu-a")
    scene.bind("uid-b", "xpu-b")

    while scene.step("xpu-b"):
        pass

    assert phases(scene) == {"a": "Pending", "b": "Running"}
    while scene.step("xpu-a"):
        pass
    scene.delete("uid-a")
    scene.settle()
    assert seen[-1] == ("a", "Running", True)
    assert phases(scene) == {"b": "Running"}
    assert not scene.annotate("uid-a", {})


def test_same_seed_same_story() -> None:
    def play(seed: int) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        habits = Habits(pickup_jitter_s=3, allocate_jitter_s=1, crash_probability=0.2)
        scene = XpuScene(
            [make_host(SHARE, habits=habits)],
            seed=seed,
            on_change=lambda pod, _: seen.append((pod["metadata"]["name"], pod["status"]["phase"])),
        )
        for at in range(12):
            scene.create(share(f"p{at}", 1000, str(at % 4), assumed_ns=at))
        scene.settle()
        return seen

    assert play(3) == play(3)
    assert play(3) != play(4)
