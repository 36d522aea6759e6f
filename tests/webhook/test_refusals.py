"""Pods that a kubelet turned away: what their controller's next pods learn, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from berthmaster.api import names
from berthmaster.cluster.events import EventRecorder
from berthmaster_webhook.avoiding import OwnerPauses
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.refusals import KubeletRefusals
from berthmaster_webhook.reporting import Reporter
from berthmaster_webhook.waiting import WaitingPods
from support.builders import make_pod_manifest
from support.waiting import until
from support.webhook_world import (
    GATES,
    Manifest,
    PodServer,
    World,
    ask,
    gated_manifest,
    node_pin,
    patched,
)

REFUSED_S = 1767225600.0
REPLICA_SET = {"kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": True}
ALLOCATION = {names.ALLOCATION: '{"v":1,"id":"1","node":"n1"}'}


class Learned:
    """A world that learns of refusals, and what it tells."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server = PodServer(world)
        self.events = EventRecorder(self.server, "berthmaster.io/placer")
        self.is_leader = True
        self.now_s = REFUSED_S + 1
        self.changes = 0
        refusals = KubeletRefusals(
            world.tools,
            self.events,
            may_write=lambda: self.is_leader,
            on_avoid=self._count,
            wall_clock=lambda: self.now_s,
        )
        world.state.on_pod.append(refusals.take_pod)

    def _count(self) -> None:
        self.changes += 1

    @property
    def avoided(self) -> frozenset[str]:
        return self.world.tools.avoided.of("rs", self.world.now_s)

    @property
    def pause_s(self) -> float:
        return self.world.tools.pauses.until_s("rs") - self.world.now_s

    def counted(self, reason: str) -> float:
        return float(self.world.tools.metrics.kubelet_refusals.labels(reason)._value.get())

    async def notes(self) -> list[tuple[str, str]]:
        await self.events.drain(5.0)
        return [(event["reason"], event["note"]) for _, event in self.server.created]


@pytest_asyncio.fixture
async def learned(world: World) -> AsyncIterator[Learned]:
    learned = Learned(world)
    writing = asyncio.create_task(learned.events.run())
    yield learned
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


def refused(
    name: str = "web-1",
    *,
    node: str = "n1",
    reason: str = "TopologyAffinityError",
    annotations: dict[str, str] | None = None,
    is_owned: bool = True,
) -> Manifest:
    pod = make_pod_manifest(name, annotations=annotations or ALLOCATION, node=node)
    # It had waited at the gate for a day before.
    pod["metadata"]["creationTimestamp"] = "2025-12-31T00:00:00Z"
    if is_owned:
        pod["metadata"]["ownerReferences"] = [REPLICA_SET]
    pod["status"] = {"phase": "Failed", "reason": reason, "startTime": "2026-01-01T00:00:00Z"}
    return pod


def successor(name: str = "web-2") -> Manifest:
    pod = gated_manifest(name)
    pod["metadata"]["ownerReferences"] = [REPLICA_SET]
    return pod


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("TopologyAffinityError", "TopologyAffinityError"),
        ("UnexpectedAdmissionError", "UnexpectedAdmissionError"),
        ("OutOfvendor.example/gpu", "OutOf"),
    ],
)
async def test_successors_avoid_the_node(learned: Learned, reason: str, label: str) -> None:
    learned.world.show(refused(reason=reason))

    assert learned.avoided == {"n1"}
    assert learned.changes == 1
    assert learned.counted(label) == 1
    assert await learned.notes() == [
        (
            "RefusedByKubelet",
            f"the kubelet of n1 turned this pod away ({reason}); the next pods of ReplicaSet web "
            "avoid this node for 10 min, and wait for a moment before they are placed",
        )
    ]


@pytest.mark.parametrize("reason", ["Evicted", "Terminated", ""])
async def test_other_ends_teach_nothing(learned: Learned, reason: str) -> None:
    learned.world.show(refused(reason=reason))

    assert (learned.avoided, learned.changes, await learned.notes()) == (frozenset(), 0, [])


async def test_old_refusals_seen_after_a_restart_teach_nothing(learned: Learned) -> None:
    learned.now_s += 3600

    learned.world.show(refused())

    assert (learned.avoided, await learned.notes()) == (frozenset(), [])


async def test_pod_bound_past_us_teaches_if_its_like_come_to_us(learned: Learned) -> None:
    learned.world.show(refused(node="n2", annotations={names.PLACEMENT: "required"}))
    learned.world.show(refused("stranger", node="n3", annotations={"team": "other"}))

    assert learned.avoided == {"n2"}
    assert learned.counted("TopologyAffinityError") == 1


async def test_repeated_sight_of_a_failed_pod_is_no_further_refusal(learned: Learned) -> None:
    for _ in range(3):
        learned.world.show(refused())

    assert learned.counted("TopologyAffinityError") == 1
    assert learned.changes == 1


async def test_standby_learns_and_keeps_silent(learned: Learned) -> None:
    learned.is_leader = False

    learned.world.show(refused())

    assert learned.avoided == {"n1"}
    assert (learned.counted("TopologyAffinityError"), await learned.notes()) == (0, [])


async def test_bare_pod_is_told_what_to_do(learned: Learned) -> None:
    learned.world.show(refused(is_owned=False))

    ((_, note),) = await learned.notes()
    assert note.endswith("nothing owns it, so delete and create it again")


async def test_pauses_grow_while_successors_are_turned_away(learned: Learned) -> None:
    pauses = []
    for at in range(30):
        learned.world.show(refused(f"web-{at}", node=f"n{at}"))
        pauses.append(learned.pause_s)
        learned.world.now_s += learned.pause_s

    # They are random below a ceiling that doubles.
    assert min(pauses) >= 2
    assert pauses[0] <= 4
    assert 16 < max(pauses) <= 600


async def test_pods_of_one_burst_that_are_turned_away_count_once(learned: Learned) -> None:
    for at in range(8):
        learned.world.show(refused(f"web-{at}", node=f"n{at}"))

    assert learned.pause_s <= 4
    assert learned.avoided == {f"n{at}" for at in range(8)}


async def test_successor_waits_at_the_gate_during_the_pause(learned: Learned) -> None:
    world = learned.world
    for node in ("n1", "n2"):
        world.add_node(node)
    world.show(refused())

    reply = ask(world, successor())
    assert reply.outcome is Outcome.OWNER_PAUSED
    assert patched(successor(), reply)["spec"]["schedulingGates"] == GATES

    world.now_s += learned.pause_s
    world.state.ledger.watch_passed(world.now_s)
    later = patched(successor(), ask(world, successor()))
    assert node_pin(later) == "n2"


async def test_queue_places_the_successor_when_the_pause_is_over(learned: Learned) -> None:
    world, server = learned.world, learned.server
    for node in ("n1", "n2"):
        world.add_node(node)
    world.show(refused())
    reporter = Reporter(
        server,
        learned.events,
        may_write=lambda: True,
        clock=lambda: world.now_s,
        pace_s=0.0,
        patience_s=0.0,
    )
    queue = WaitingPods(world.tools, world.term, server, reporter)
    world.state.on_pod.append(queue.take_pod)
    server.add(successor())
    tasks = [asyncio.create_task(queue.run()), asyncio.create_task(reporter.run())]
    try:
        await until(lambda: any(path.endswith("/status") for path, _ in server.patches))
        told = server.patches[0][1]["status"]["conditions"][0]
        early = list(server.placements)
        world.now_s += learned.pause_s
        world.state.ledger.watch_passed(world.now_s)
        queue.take_settings()
        await until(lambda: bool(server.placements))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert (told["reason"], early) == ("OwnerPaused", [])
    assert node_pin(server.get_pod("web-2")) == "n2"


async def test_owners_beyond_what_is_remembered_are_forgotten() -> None:
    pauses = OwnerPauses(2.0, clock=lambda: 10.0)

    for at in range(1100):
        pauses.pause(f"rs-{at}")

    assert pauses.until_s("rs-0") == 0
    assert pauses.until_s("rs-1099") >= 12
