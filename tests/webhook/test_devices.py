"""Pods that ask for accelerators: always pinned, told to their device plugin, one after the other."""

from __future__ import annotations

from typing import Any

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
from support.xpu_worlds import COUNT, MEM, PREFIX


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
    of_pods = {
        *DEFAULT_NAMES.placed_keys,
        *(DEFAULT_NAMES.share_pod, DEFAULT_NAMES.share_device, DEFAULT_NAMES.share_assigned),
        *(DEFAULT_NAMES.share_assume_time, DEFAULT_NAMES.node, DEFAULT_NAMES.time),
        *(DEFAULT_NAMES.bind_phase, DEFAULT_NAMES.bind_time),
    }

    assert of_pods <= set(FORGEABLE)
