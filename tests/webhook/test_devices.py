"""Pods that ask for accelerators: always pinned, told to their device plugin, one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.api.names import FORGEABLE
from berthmaster.api.xpu_names import DEFAULT_NAMES
from berthmaster_webhook.outcomes import Outcome
from support.builders import make_container
from support.webhook_world import (
    Manifest,
    World,
    allocation_of,
    ask,
    gated_manifest,
    node_pin,
    patched,
    response_of,
)
from support.xpu_worlds import COUNT, MEM, PREFIX, SLICE_MEM, SLICES, registered_cards


def asking(
    name: str = "pod", mib: int = 1000, *, mode: str = "required", **fields: Any
) -> Manifest:
    annotations = {names.PLACEMENT: mode, **fields.pop("annotations", {})}
    amounts = {MEM: str(mib)}
    fields.setdefault("containers", [make_container(requests=amounts, limits=amounts)])
    return gated_manifest(name, annotations=annotations, **fields)


async def test_device_plugin_finds_what_was_decided(world: World) -> None:
    world.add_xpus(mem=16128, count=2)
    pod = asking(mib=4500)

    stored = patched(pod, ask(world, pod))

    marks = stored["metadata"]["annotations"]
    assert node_pin(stored) == "n1"
    assert marks[f"{PREFIX}_IDX"] == "0"
    assert marks[f"{PREFIX}_POD"] == "4500"
    assert marks[f"{PREFIX}_ASSIGNED"] == "false"
    assert int(marks[f"{PREFIX}_ASSUME_TIME"]) > 10**18
    devices = allocation_of(stored)["allocated"]["xpu"]["devices"]
    assert devices == [{"i": 0, "id": "n1-xpu-0", "mem": 4500}]


async def test_preferred_pod_is_required_where_it_asks_for_devices(world: World) -> None:
    world.add_xpus(mem=16128, count=2)
    pod = asking(mode="preferred")

    stored = patched(pod, ask(world, pod))

    assert node_pin(stored) == "n1"
    assert allocation_of(stored)["mode"] == "required"


async def test_preferred_pod_that_asks_for_devices_waits_at_the_gate(world: World) -> None:
    world.add_xpus(mem=100, count=1)
    bare = asking(mode="preferred", schedulingGates=[])

    for pod in (asking(mode="preferred"), bare):
        reply = ask(world, pod)
        stored = patched(pod, reply)
        assert reply.outcome is Outcome.NOWHERE
        assert [it["name"] for it in stored["spec"]["schedulingGates"]] == [names.GATE]


async def test_order_of_release_is_the_order_of_assume_time(world: World) -> None:
    world.add_xpus("n1", mem=16128, count=2)
    world.add_xpus("n2", mem=16128, count=2)
    times = []
    for name in ("a", "b"):
        pod = asking(name)
        stored = patched(pod, ask(world, pod))
        times.append(int(stored["metadata"]["annotations"][f"{PREFIX}_ASSUME_TIME"]))

    assert times == sorted(times)
    assert len(set(times)) == 2


async def test_owner_hears_what_was_dropped_and_what_cannot_work(world: World) -> None:
    world.add_xpus(mem=16128, count=2)
    amounts = {MEM: "9000"}
    two = [make_container(name, requests=amounts, limits=amounts) for name in ("a", "b")]
    pod = asking(containers=two, annotations={names.DROPPED: "hami.io/bind-phase"})

    warnings = response_of(ask(world, pod))["warnings"]

    assert "hami.io/bind-phase" in warnings[0]
    assert "several containers" in warnings[1]
    assert "18000 MiB on 1 device(s)" in warnings[2]


async def test_owner_hears_that_a_privileged_container_sees_all_devices(world: World) -> None:
    world.add_xpus(mem=16128, count=2)
    seeing = {"name": "seeing", "securityContext": {"privileged": True}}
    pod = asking()
    pod["spec"]["containers"].append(seeing)
    assert "warnings" not in response_of(ask(world, pod))

    pod["metadata"] |= {"name": "other", "uid": "other"}
    pod["spec"]["containers"][0] |= {"name": "main", "securityContext": {"privileged": True}}
    (warning,) = response_of(ask(world, pod))["warnings"]

    assert warning.startswith("container main is privileged")


def slicing(mib: str | None, *, init: bool = False, **fields: Any) -> Manifest:
    amounts = {SLICES: "1"} if mib is None else {SLICES: "1", SLICE_MEM: mib}
    container = make_container("sliced", requests=amounts, limits=amounts)
    plain = make_container("plain")
    if init:
        return asking(containers=[plain], initContainers=[plain, container], **fields)
    return asking(containers=[plain, container], **fields)


async def test_size_of_a_slice_is_written_back_where_it_was_asked_for(world: World) -> None:
    world.add_xpus(registered=registered_cards(1), others={SLICE_MEM: "98304"})
    for init, kind in ((False, "containers"), (True, "initContainers")):
        pod = slicing("30000", init=init)
        pod["metadata"] |= {"name": kind, "uid": kind}

        reply = ask(world, pod)
        stored = patched(pod, reply)

        # The plugin has another such pod to serve when the second comes.
        assert reply.outcome is (Outcome.NOWHERE if init else Outcome.PLACED)
        resources = stored["spec"][kind][1]["resources"]
        assert resources["limits"] == resources["requests"] == {SLICES: "1", SLICE_MEM: "49152"}
        assert stored["spec"][kind][0] == pod["spec"][kind][0]


@pytest.mark.parametrize(
    ("asked", "found"), [("0", "24576"), ("24577", "49152"), ("96Ki", "98304")]
)
async def test_slices_have_one_of_three_sizes_whoever_places_the_pod(
    world: World, asked: str, found: str
) -> None:
    world.term.forbids = Outcome.NOT_LEADER
    pod = slicing(asked)

    reply = ask(world, pod)

    assert reply.outcome is Outcome.NOT_LEADER
    limits = patched(pod, reply)["spec"]["containers"][1]["resources"]["limits"]
    assert limits[SLICE_MEM] == found


@pytest.mark.parametrize(
    "pod",
    [
        slicing("24576"),
        slicing(None),
        slicing("30000", mode="observe"),
        asking(mib=30000),
        gated_manifest(containers=[make_container(limits={SLICE_MEM: "30000"})]),
    ],
)
async def test_what_has_a_slices_size_or_is_none_stays_as_it_is(
    world: World, pod: Manifest
) -> None:
    world.term.forbids = Outcome.NOT_LEADER

    reply = ask(world, pod)

    patch = [] if b'"patch"' not in reply.body else patched(pod, reply)["spec"]["containers"]
    assert patch in ([], pod["spec"]["containers"])


async def test_faulty_request_is_refused_with_the_way_out(world: World) -> None:
    pod = asking(mib=0)
    pod["metadata"]["labels"] = {COUNT: "two"}

    status = response_of(ask(world, pod))["status"]

    assert f'invalid label {COUNT} "two"' in status["message"]
    assert "found 0" in status["message"]


async def test_policy_opts_in_by_resource(world: World) -> None:
    world.add_xpus(mem=16128, count=2)
    world.add_policy("xpus", resourceNames=[MEM])
    pod = asking("one")
    del pod["metadata"]["annotations"][names.PLACEMENT]
    plain = gated_manifest("two", annotations={})

    assert ask(world, pod).outcome is Outcome.PLACED
    assert ask(world, plain).outcome is Outcome.UNTOUCHED


def test_every_key_that_device_plugins_read_is_dropped_from_users() -> None:
    assert set(FORGEABLE) >= DEFAULT_NAMES.written_keys
