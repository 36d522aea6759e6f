from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.cluster.client import JsonObject
from berthmaster.cluster.errors import ApiError
from berthmaster.cluster.events import EventRecorder
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.pins import FailedPins
from berthmaster_webhook.reporting import Reporter
from support.builders import make_pod_manifest
from support.waiting import until_idle
from support.webhook_world import Manifest, PodServer, World

UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}


def failing(name: str, *, owner: str | None = "rs", **fields: Any) -> Manifest:
    allocation = json.dumps({"v": 1, "id": f"id-{name}", "node": "n1"})
    pod = make_pod_manifest(name, annotations={names.ALLOCATION: allocation}, **fields)
    pod["status"]["conditions"] = [{**UNSCHEDULABLE, "message": "full"}]
    if owner is not None:
        pod["metadata"]["ownerReferences"] = [
            {"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}
        ]
    return pod


@asynccontextmanager
async def watching(world: World, server: PodServer) -> AsyncIterator[FailedPins]:
    events = EventRecorder(server, "berthmaster.io/placer")
    reporter = Reporter(server, events, may_write=lambda: True, clock=lambda: world.now_s)
    pins = FailedPins(world.tools, world.term, server, reporter)
    world.state.on_pod.append(pins.take_pod)
    tasks = [asyncio.create_task(pins.run()), asyncio.create_task(reporter.run())]
    try:
        yield pins
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pass_time(world: World, pins: FailedPins, seconds: float) -> None:
    world.now_s += seconds
    world.state.ledger.watch_passed(world.now_s)
    pins.take_ready()
    await until_idle()


async def test_owned_pod_is_told_then_evicted_and_node_avoided(world: World) -> None:
    server = PodServer(world)
    async with watching(world, server) as pins:
        world.show(failing("a"))
        await pass_time(world, pins, 59)
        early = list(server.created)
        await pass_time(world, pins, 2)

    ((path, eviction),) = server.created
    ((told_path, told),) = server.patches
    assert early == []
    assert path == "/api/v1/namespaces/default/pods/a/eviction"
    assert eviction["deleteOptions"] == {"preconditions": {"uid": "uid-a"}}
    assert told_path == "/api/v1/namespaces/default/pods/a/status"
    assert told["status"]["conditions"][0]["reason"] == "PinFailed"
    assert world.tools.avoided.of("rs", world.now_s) == {"n1"}


async def test_patience_is_that_of_the_policy_that_counts_in_the_end(world: World) -> None:
    """After a restart a pod may be seen before its policy is."""
    server = PodServer(world)
    async with watching(world, server) as pins:
        world.show(failing("a"))
        world.add_policy("patient", pinPatience="5m")
        await pass_time(world, pins, 61)
        early = list(server.created)
        await pass_time(world, pins, 240)

    assert early == []
    assert len(server.created) == 1


async def test_one_eviction_per_owner_at_a_time(world: World) -> None:
    server = PodServer(world)
    async with watching(world, server) as pins:
        for name, owner in (("a", "rs"), ("b", "rs"), ("c", "other")):
            world.show(failing(name, owner=owner))
        await pass_time(world, pins, 61)
        await pass_time(world, pins, 20)
        evicted = [path.split("/")[-2] for path, _ in server.created]
        world.show_gone("uid-a")
        await pass_time(world, pins, 20)

    assert evicted == ["a", "c"]
    assert [path.split("/")[-2] for path, _ in server.created] == ["a", "c", "b"]


async def test_bare_pod_is_told_only(world: World) -> None:
    server = PodServer(world)
    async with watching(world, server) as pins:
        world.show(failing("a", owner=None))
        await pass_time(world, pins, 61)
        await pass_time(world, pins, 600)

    assert server.created == []
    assert len(server.patches) == 1


async def test_pod_that_is_bound_after_all_is_told_so(world: World) -> None:
    server = PodServer(world)
    async with watching(world, server) as pins:
        world.show(failing("a", owner=None))
        await pass_time(world, pins, 61)
        world.show(failing("a", owner=None, node="n1"))
        await pass_time(world, pins, 1)

    told = [body["status"]["conditions"][0] for _, body in server.patches]
    assert [(it["status"], it["reason"]) for it in told] == [
        ("False", "PinFailed"),
        ("True", "Placed"),
    ]


async def test_pod_that_is_bound_in_time_is_left(world: World) -> None:
    server = PodServer(world)
    async with watching(world, server) as pins:
        world.show(failing("a"))
        await pass_time(world, pins, 30)
        world.show(failing("a", node="n1"))
        await pass_time(world, pins, 60)

    assert server.created == []


async def test_pod_that_is_bound_while_it_is_told_is_left(world: World) -> None:
    server = PodServer(world)

    class SlowServer(PodServer):
        async def patch(self, *arguments: Any, **options: Any) -> JsonObject:
            world.show(failing("a", node="n1"))
            return await server.patch(*arguments, **options)

    slow = SlowServer(world)
    async with watching(world, slow) as pins:
        world.show(failing("a"))
        await pass_time(world, pins, 61)

    assert slow.created == []
    assert world.tools.avoided.of("rs", world.now_s) == frozenset()


async def test_leader_that_is_replaced_meanwhile_evicts_nobody(world: World) -> None:
    server = PodServer(world)

    class SlowServer(PodServer):
        async def patch(self, *arguments: Any, **options: Any) -> JsonObject:
            world.term.forbids = Outcome.NOT_LEADER
            return await server.patch(*arguments, **options)

    slow = SlowServer(world)
    async with watching(world, slow) as pins:
        world.show(failing("a", owner="one"))
        world.show(failing("b", owner="two"))
        await pass_time(world, pins, 61)

    assert (len(server.patches), slow.created) == (1, [])


async def test_budget_that_forbids_is_asked_again(world: World) -> None:
    server = PodServer(world)
    server.create_faults = [ApiError(429, "TooManyRequests", "budget", 10.0)]
    async with watching(world, server) as pins:
        world.show(failing("a"))
        await pass_time(world, pins, 61)
        await pass_time(world, pins, 5)
        early = len(server.created)
        await pass_time(world, pins, 10)

    assert (early, len(server.created)) == (1, 2)


def preferring(name: str = "a") -> Manifest:
    """Return a pod of mode `preferred` that names a file system, as it was placed on n1."""
    allocated = {"dataset": {"datasets": {"files": {"mode": "filesystem", "tier": 100}}}}
    pod = failing(name)
    pod["metadata"]["labels"] = {"dataset.0.id": "files"}
    pod["metadata"]["annotations"] = {
        names.PLACEMENT: "preferred",
        names.ALLOCATION: json.dumps(
            {"v": 1, "id": "d", "node": "n1", "mode": "preferred", "allocated": allocated}
        ),
    }
    return pod


async def test_a_preferring_pod_whose_file_system_has_gone_is_made_anew(world: World) -> None:
    """While the data are where it was sent, it waits for room there as any pod does."""
    server = PodServer(world)
    world.add_node("n1")
    world.add_node("n2")
    world.add_datasets("n1", files="data")
    async with watching(world, server) as pins:
        world.show(preferring())
        await pass_time(world, pins, 61)
        while_there = list(server.created)
        world.add_datasets("n1")
        world.add_datasets("n2", files="data")
        await pass_time(world, pins, 61)

    ((path, _),) = server.created
    assert while_there == []
    assert path == "/api/v1/namespaces/default/pods/a/eviction"


async def test_a_preferring_pod_whose_node_or_dataset_is_gone_is_made_anew(world: World) -> None:
    server = PodServer(world)
    world.add_node("n2")
    async with watching(world, server) as pins:
        world.show(preferring("no-node"))
        await pass_time(world, pins, 61)
        world.add_node("n1")
        world.show(preferring("no-dataset"))
        await pass_time(world, pins, 130)

    assert server.created[0][0].split("/")[-2] == "no-node"
    told = [path.split("/")[-2] for path, _ in server.patches]
    assert told == ["no-node", "no-dataset"]


async def test_a_preferring_pod_without_file_systems_is_left_alone(world: World) -> None:
    server = PodServer(world)
    pod = failing("a")
    allocation = {"v": 1, "id": "d", "node": "n1", "mode": "preferred"}
    pod["metadata"]["annotations"] = {names.ALLOCATION: json.dumps(allocation)}
    async with watching(world, server) as pins:
        world.show(pod)
        await pass_time(world, pins, 300)

    assert server.created == server.patches == []


async def test_pod_that_our_code_trips_over_keeps_no_other_from_its_eviction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PodServer(world)
    faults = [RuntimeError("poison")]
    async with watching(world, server) as pins:
        keeps = pins._keeps_its_data

        def trip(failing_: Any) -> bool:
            if failing_.pod.metadata.name == "a" and faults:
                raise faults.pop()
            return keeps(failing_)

        monkeypatch.setattr(pins, "_keeps_its_data", trip)
        world.show(failing("a"))
        world.show(failing("b", owner="other"))
        await pass_time(world, pins, 61)
        await pass_time(world, pins, 10)

    assert [path.split("/")[-2] for path, _ in server.created] == ["b", "a"]
