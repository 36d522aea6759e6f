"""The webhook's leader goes, in good order, by a crash, or as one that was only asleep."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import pytest

from availability.living import LEASE_S, NODE, TAKEOVER_WAIT_S
from benching.outages import (
    LEASE,
    Leader,
    Stream,
    decided_by,
    find_leader,
    stream,
    take_away,
)
from berthmaster.api import names
from berthmaster_sandbox.cluster import Sandbox
from support.harbour import make_pod, new_namespace, program_pods, until
from support.traffic import webhook_path

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

POD = make_pod("stream", on=NODE)
PER_SECOND = 4.0
# How many requests one after the other a take-over is: release, label, Lease, labels, proof, placement.
STEPS = 10


async def leads(harbour: Sandbox) -> Leader:
    """Return the leader once there is one, with label, Lease and path of one epoch."""

    async def look() -> Leader | None:
        leader, lease = await find_leader(harbour), (await harbour.client.get(LEASE))["spec"]
        path = f"{names.WEBHOOK_PATH}/{lease['leaseTransitions']}"
        return leader if await webhook_path(harbour) == path else None

    found: Leader = await until(look, bool, 60)
    return found


async def until_placing(seen: Stream, since_s: float, count: int = 20) -> None:
    """Wait until so many pods were placed since a moment."""

    async def placed() -> int:
        return sum(it > since_s for it in seen.placed_s.values())

    await until(placed, lambda it: it >= count, 60)


@dataclass(frozen=True)
class Played:
    """One fault: the stream, when the leader went, who came after it, and when it placed a pod."""

    seen: Stream
    at_s: float
    after: Leader
    again_s: float

    @property
    def took_s(self) -> float:
        return self.again_s - self.at_s

    @property
    def slack_s(self) -> float:
        """What the machine adds to a create now, by those that never come to us."""
        return self.seen.slowest_s(self.at_s - 1, self.again_s, plain=True)

    @property
    def slowest_s(self) -> float:
        """The slowest create from the fault until placing went on."""
        return self.seen.slowest_s(self.at_s, self.again_s)


async def play(harbour: Sandbox, namespace: str, fault: str) -> Played:
    """Have the leader go under a stream of pods, until another one places them."""
    await new_namespace(harbour, namespace)
    before = await leads(harbour)

    async def other() -> Leader | None:
        leader = await find_leader(harbour)
        return leader if leader is not None and leader.identity != before.identity else None

    async with stream(harbour, namespace, POD, per_second=PER_SECOND) as seen:
        await until_placing(seen, 0)
        at_s = await take_away(harbour, before, fault)
        after = await until(other, bool, 60)
        await until_placing(seen, time.monotonic())
    return Played(seen, at_s, after, seen.first_s(decided_by(harbour, after)))


async def test_one_of_three_leads_and_all_are_ready(harbour: Sandbox) -> None:
    leader = await leads(harbour)

    async def ready() -> set[str]:
        return {
            it["metadata"]["name"]
            for it in await program_pods(harbour, "berthmaster-webhook")
            for condition in it["status"].get("conditions", ())
            if (condition["type"], condition["status"]) == ("Ready", "True")
        }

    found = await until(ready, lambda it: len(it) == 3, 60)
    assert leader.pod in found


async def test_leader_that_is_deleted_is_followed_within_two_seconds(harbour: Sandbox) -> None:
    played = await play(harbour, "deleted", "delete")

    assert played.took_s < 2 + STEPS * played.slack_s
    assert played.slowest_s < 1.2 + 2 * played.slack_s
    assert played.seen.failed == []


async def test_leader_that_is_killed_is_followed_after_the_wait(harbour: Sandbox) -> None:
    played = await play(harbour, "killed", "kill")

    assert TAKEOVER_WAIT_S < played.took_s < LEASE_S + TAKEOVER_WAIT_S + 3 + STEPS * played.slack_s
    assert played.slowest_s < 1.2 + 2 * played.slack_s
    assert played.seen.failed == []


async def test_leader_that_slept_past_its_lease_decides_nothing(harbour: Sandbox) -> None:
    sleeper = await leads(harbour)
    try:
        played = await play(harbour, "stopped", "stop")
        before = decided_by(harbour, sleeper)
        # Under new requests, with those still in its sockets that came while it slept.
        await new_namespace(harbour, "woken")
        async with stream(harbour, "woken", POD, per_second=PER_SECOND, prefix="woken") as woken:
            await until_placing(woken, 0)
            os.kill(sleeper.pid, signal.SIGCONT)
            await until_placing(woken, time.monotonic(), 30)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)

    assert TAKEOVER_WAIT_S < played.took_s < LEASE_S + TAKEOVER_WAIT_S + 3 + STEPS * played.slack_s
    assert played.slowest_s < 1.2 + 2 * played.slack_s
    assert before
    assert decided_by(harbour, sleeper) == before
    assert await leads(harbour) == played.after
    assert (played.seen.failed, woken.failed) == ([], [])
