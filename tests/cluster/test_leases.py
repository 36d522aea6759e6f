"""Electors against a fake store on simulated time.

The property test drives `step` by hand, without an event loop: each request of an elector stops at the
store, and Hypothesis chooses whose request is applied or answered or lost, and how far the
clock moves meanwhile. A process that is paused is one whose request is not chosen for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berthmaster.cluster.client import Client, JsonObject, Query
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError
from berthmaster.cluster.leases import (
    HANDOVER_KEYS_ANNOTATION,
    Acquired,
    Acquisition,
    LeaderElector,
    boottime_s,
    make_identity,
)
from support.fake_api import Cut, FakeApi

LEASES = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"


class Store:
    """One Lease and its versions; refuses like the API server."""

    def __init__(self) -> None:
        self.lease: JsonObject | None = None
        self.version = 0

    def apply(self, operation: str, obj: JsonObject | None) -> JsonObject:
        if operation == "create":
            if self.lease is not None:
                raise ApiError(409, "AlreadyExists", "exists")
            return self._keep(obj)
        if self.lease is None:
            raise ApiError(404, "NotFound", "not there")
        if operation == "replace":
            assert obj is not None
            if obj["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", "stale")
            return self._keep(obj)
        return self.lease

    def _keep(self, obj: JsonObject | None) -> JsonObject:
        assert obj is not None
        self.version += 1
        self.lease = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        return self.lease


@dataclass
class Call:
    operation: str
    obj: JsonObject | None


@types.coroutine
def _stop_at(call: Call) -> Generator[Call, JsonObject, JsonObject]:
    return (yield call)


class SteppedClient:
    """Hand each request to whoever drives the coroutine."""

    async def get(self, path: str, query: Query | None = None, *, timeout_s: float) -> JsonObject:
        return await _stop_at(Call("get", None))

    async def create(
        self, path: str, obj: Any, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        return await _stop_at(Call("create", obj))

    async def replace(
        self, path: str, obj: Any, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        return await _stop_at(Call("replace", obj))


class Process:
    """One elector and the request it has under way."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.elector = LeaderElector(
            SteppedClient(), "ns", "lease", f"process-{number}", clock=lambda: world.now_s
        )
        self.stopped = False
        self._running: Coroutine[Any, Any, Any] | None = None
        self._call: Call | None = None
        self._answer: JsonObject | Exception | None = None

    def begin(self, *, release: bool = False) -> None:
        if self._running is None and not self.stopped:
            self.stopped = release
            elector = self.elector
            self._running = elector.release({"k": "v"}) if release else elector.step()
            self._advance(None)

    def reach_store(self) -> None:
        """Let the pending request take effect; its answer is on its way."""
        if self._call is not None and self._answer is None:
            try:
                self._answer = self.world.store.apply(self._call.operation, self._call.obj)
            except ApiError as error:
                self._answer = error

    def hear(self) -> None:
        if self._answer is not None:
            self._advance(self._answer)

    def lose_answer(self) -> None:
        """Give up waiting: the request may have taken effect, or may do so never."""
        if self._call is not None:
            self._advance(OutcomeUnknownError("lost"))

    def _advance(self, answer: JsonObject | Exception | None) -> None:
        assert self._running is not None
        self._call = self._answer = None
        try:
            if isinstance(answer, Exception):
                self._call = self._running.throw(answer)
            else:
                self._call = self._running.send(answer)
        except StopIteration:
            self._running = None

    def finish(self) -> None:
        while self._running is not None:
            self.reach_store()
            self.hear()

    def round(self) -> None:
        self.begin()
        self.finish()

    def close(self) -> None:
        if self._running is not None:
            self._running.close()


class World:
    def __init__(self, processes: int) -> None:
        self.now_s = 1000.0
        self.store = Store()
        self.late: list[Call] = []
        self.processes = [Process(self, number) for number in range(processes)]

    def leaders(self) -> list[Process]:
        return [each for each in self.processes if each.elector.is_leader()]

    def close(self) -> None:
        for process in self.processes:
            process.close()

    def wait_and_round(self, process: Process, seconds: float) -> None:
        """Let a process look every second for so long."""
        for _ in range(int(seconds)):
            process.round()
            assert len(self.leaders()) <= 1
            self.now_s += 1.0
        process.round()


ACTIONS = st.one_of(
    st.tuples(
        st.sampled_from(["begin", "reach", "hear", "hear", "finish", "round", "lose", "release"]),
        st.integers(0, 2),
    ),
    # The others may be stopped in the middle of a request while one goes on for some seconds.
    st.tuples(st.sampled_from(["3 s of", "7 s of"]), st.integers(0, 2)),
    st.tuples(
        st.just("time"), st.sampled_from([0.1, 0.9, 1.0, 1.9, 2.0, 3.9, 4.0, 5.9, 6.0, 6.1, 60.0])
    ),
    st.tuples(st.sampled_from(["delete", "late"]), st.just(0)),
)


def act(world: World, action: str, value: float) -> None:
    if action == "time":
        world.now_s += value
        return
    if action == "delete":
        world.store.lease = None
        return
    if action == "late":
        # A write whose sender gave up long ago arrives after all.
        if world.late:
            call = world.late.pop(0)
            with contextlib.suppress(ApiError):
                world.store.apply(call.operation, call.obj)
        return
    process = world.processes[int(value) % len(world.processes)]
    if action == "lose" and process._call is not None and process._call.operation != "get":
        world.late.append(process._call)
    choices: dict[str, Callable[[], None]] = {
        "begin": process.begin,
        "reach": process.reach_store,
        "hear": process.hear,
        "finish": process.finish,
        "round": process.round,
        "lose": process.lose_answer,
        "3 s of": lambda: world.wait_and_round(process, 3),
        "7 s of": lambda: world.wait_and_round(process, 7),
        "release": lambda: process.begin(release=True),
    }
    choices[action]()


@settings(max_examples=400, deadline=None)
@given(processes=st.integers(2, 3), actions=st.lists(ACTIONS, max_size=80))
def test_never_two_leaders_at_once(processes: int, actions: list[tuple[str, float]]) -> None:
    world = World(processes)
    # Begin with somebody in office, or there is little to break.
    world.wait_and_round(world.processes[0], 6)
    assert world.leaders() == [world.processes[0]]

    for action, value in actions:
        act(world, action, value)
        assert len(world.leaders()) <= 1

    world.close()


@settings(max_examples=50, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_somebody_leads_once_calm_returns(actions: list[tuple[str, float]]) -> None:
    world = World(3)
    for action, value in actions:
        act(world, action, value)
    for process in world.processes:
        process.finish()
    living = [process for process in world.processes if not process.stopped]

    for _ in range(15):
        for process in living:
            process.round()
        world.now_s += 1.0
    for process in living:
        process.round()

    assert len(world.leaders()) == (1 if living else 0)


def test_paused_leader_does_not_believe_its_late_answer() -> None:
    world = World(2)
    first, second = world.processes
    world.wait_and_round(first, 6)
    second.round()
    first.begin()
    first.reach_store()
    # Stopped here for long: another takes over, then the old answer is read.
    world.wait_and_round(second, 8)
    assert world.leaders() == [second]

    first.finish()

    assert world.leaders() == [second]


def test_absent_lease_is_planted_and_held_after_a_full_duration() -> None:
    world = World(1)
    process = world.processes[0]

    world.wait_and_round(process, 5)
    assert world.store.lease is not None
    assert "holderIdentity" not in world.store.lease["spec"]
    world.wait_and_round(process, 1)

    acquired = process.elector.acquired
    assert acquired == Acquired(
        kind=Acquisition.CREATED, transitions=1, previous_holder="", annotations={}
    )


def test_lease_deleted_twice_makes_no_second_leader() -> None:
    world = World(2)
    first, second = world.processes
    world.wait_and_round(second, 3)
    world.store.lease = None
    world.wait_and_round(first, 7)
    assert world.leaders() == [first]
    world.store.lease = None

    second.round()

    assert world.leaders() == [first]


def test_crash_is_taken_over_when_the_record_stood_still() -> None:
    world = World(2)
    first, second = world.processes
    world.wait_and_round(first, 6)

    world.wait_and_round(second, 5)
    assert not second.elector.is_leader()
    world.wait_and_round(second, 1)

    acquired = second.elector.acquired
    assert acquired is not None
    assert acquired.kind is Acquisition.EXPIRED
    assert acquired.previous_holder == "process-0"
    assert acquired.transitions == second.elector.transitions == 2


def test_release_hands_over_at_once_and_only_once() -> None:
    world = World(3)
    first, second, third = world.processes
    world.wait_and_round(first, 6)
    first.begin(release=True)
    first.finish()

    second.round()

    acquired = second.elector.acquired
    assert acquired is not None
    assert (acquired.kind, acquired.annotations) == (Acquisition.RELEASED, {"k": "v"})
    assert world.store.lease is not None
    assert world.store.lease["metadata"]["annotations"] == {}
    world.wait_and_round(third, 6)
    later = third.elector.acquired
    assert later is not None
    assert (later.kind, dict(later.annotations)) == (Acquisition.EXPIRED, {})


def test_hand_over_survives_a_lost_answer_of_the_successor() -> None:
    world = World(2)
    first, second = world.processes
    world.wait_and_round(first, 6)
    first.begin(release=True)
    first.finish()
    second.begin()
    second.reach_store()
    second.hear()
    second.reach_store()
    second.lose_answer()
    assert not second.elector.is_leader()

    second.round()

    acquired = second.elector.acquired
    assert acquired is not None
    assert (acquired.kind, acquired.annotations) == (Acquisition.RELEASED, {"k": "v"})


def test_late_leader_regains_in_a_new_epoch() -> None:
    world = World(1)
    process = world.processes[0]
    world.wait_and_round(process, 6)

    world.now_s += 100.0
    assert not process.elector.is_leader()
    process.round()

    acquired = process.elector.acquired
    assert acquired is not None
    assert (acquired.kind, acquired.transitions) == (Acquisition.REGAINED, 2)


def test_foreign_annotation_costs_no_leadership() -> None:
    world = World(1)
    process = world.processes[0]
    world.wait_and_round(process, 6)
    assert world.store.lease is not None
    world.store._keep(world.store.lease)

    process.round()

    assert process.elector.is_leader()
    assert process.elector.transitions == 1


def test_candidate_looks_when_the_silent_holder_expires() -> None:
    world = World(2)
    holder, candidate = world.processes
    world.wait_and_round(holder, 6)
    candidate.round()
    assert candidate.elector.holder == holder.elector.identity

    world.now_s += 5.75

    assert candidate.elector._pause_s() == 0.25


def test_default_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)

    assert boottime_s() == 7.0


def test_times_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="duration > renew deadline"):
        LeaderElector(SteppedClient(), "ns", "lease", "me", duration_s=4, renew_deadline_s=4)


def test_identities_of_one_pod_differ() -> None:
    assert make_identity("pod") != make_identity("pod")


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as server:
        spec = {"holderIdentity": "", "leaseTransitions": 3}
        server.put(LEASES, {"metadata": {"name": "lease", "namespace": "ns"}, "spec": spec})
        yield server


async def test_run_leads_then_loses_then_releases(api: FakeApi) -> None:
    now_s = 0.0
    seen: asyncio.Queue[Acquired | None] = asyncio.Queue()

    async def on_acquired(acquired: Acquired) -> None:
        seen.put_nowait(acquired)

    async with Client.at(api.url) as client, asyncio.timeout(10):
        elector = LeaderElector(
            client,
            "ns",
            "lease",
            "me",
            retry_s=0.01,
            clock=lambda: now_s,
            on_acquired=on_acquired,
            on_lost=lambda: seen.put_nowait(None),
        )
        task = asyncio.create_task(elector.run())
        first = await seen.get()
        assert elector.is_leader()
        now_s += 50.0
        assert await seen.get() is None
        second = await seen.get()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        api.fail_next("PUT", LEASES, Cut.AFTER)
        released = await elector.release({"state": "s"})

    assert first is not None
    assert (first.kind, first.transitions) == (Acquisition.RELEASED, 4)
    assert second is not None
    assert second.kind is Acquisition.REGAINED
    assert released
    stored = api.objects[LEASES]["lease"]
    assert stored["spec"]["holderIdentity"] == ""
    assert stored["spec"]["leaseDurationSeconds"] == 1
    assert stored["metadata"]["annotations"] == {
        "state": "s",
        HANDOVER_KEYS_ANNOTATION: '["state"]',
    }


class LateClient:
    """An API server whose answers to writes take so many seconds of the electors' clock."""

    def __init__(self, lease: JsonObject) -> None:
        self.now_s = 1000.0
        self.late_s = 0.0
        self.writes = 0
        self._store = Store()
        self._store.apply("create", lease)

    async def get(self, path: str, query: Query | None = None, *, timeout_s: float) -> JsonObject:
        return self._store.apply("get", None)

    async def create(
        self, path: str, obj: Any, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        return self._store.apply("create", obj)

    async def replace(
        self, path: str, obj: Any, query: Query | None = None, *, timeout_s: float
    ) -> JsonObject:
        self.now_s += self.late_s
        self.writes += 1
        return self._store.apply("replace", obj)


async def test_leadership_that_pauses_until_a_late_answer_is_told() -> None:
    """Whoever was refused an act meanwhile hears of no other moment at which to do it."""
    client = LateClient({"metadata": {}, "spec": {"holderIdentity": "", "leaseTransitions": 3}})
    acquired, resumed, lost = asyncio.Event(), asyncio.Event(), asyncio.Event()
    elector = LeaderElector(
        client,
        "ns",
        "lease",
        "me",
        retry_s=0.01,
        clock=lambda: client.now_s,
        on_acquired=lambda _: acquired.set(),
        on_resumed=resumed.set,
        on_lost=lost.set,
    )
    async with asyncio.timeout(10):
        task = asyncio.create_task(elector.run())
        await acquired.wait()
        client.late_s = 1.5
        while client.writes < 6:
            await asyncio.sleep(0)
        assert not resumed.is_set()

        # The answer to each renewal comes 5 s after the one before was sent, and 2.5 s after it was.
        client.late_s = 2.5
        await resumed.wait()
        assert elector.is_leader()
        assert not lost.is_set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_failing_callback_ends_run(api: FakeApi) -> None:
    def on_acquired(_: Acquired) -> None:
        raise RuntimeError("leader work is broken")

    async with Client.at(api.url) as client, asyncio.timeout(10):
        elector = LeaderElector(client, "ns", "lease", "me", on_acquired=on_acquired)
        with pytest.raises(ExceptionGroup):
            await elector.run()
