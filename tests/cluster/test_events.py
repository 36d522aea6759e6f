from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.cluster.client import Client
from berthmaster.cluster.events import EventRecorder, ObjectRef, cut_note
from support.fake_api import FakeApi, Refusal

EVENTS = "/apis/events.k8s.io/v1/namespaces/a/events"
POD = ObjectRef(api_version="v1", kind="Pod", name="p", namespace="a", uid="u")


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as server:
        yield server


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[Client]:
    async with Client.at(api.url) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


def recorder(client: Client, clock: Clock, **options: int) -> EventRecorder:
    return EventRecorder(client, "berthmaster.io/placer", instance="pod-0", clock=clock, **options)


async def test_event_has_every_field_the_server_asks_for(
    api: FakeApi, client: Client, clock: Clock
) -> None:
    events = recorder(client, clock)

    events.record(POD, "NotPlaced", "0/3 nodes", action="Place", type_="Warning")
    await events.drain()

    (event,) = api.objects[EVENTS].values()
    assert event["regarding"]["uid"] == "u"
    assert event["metadata"]["namespace"] == "a"
    assert event["reportingController"] == "berthmaster.io/placer"
    assert event["reportingInstance"] == "pod-0"
    assert (event["reason"], event["action"]) == ("NotPlaced", "Place")
    assert (event["type"], event["note"]) == ("Warning", "0/3 nodes")
    assert event["eventTime"].endswith("Z")
    assert "series" not in event


async def test_cluster_scoped_objects_use_namespace_default(
    api: FakeApi, client: Client, clock: Clock
) -> None:
    events = recorder(client, clock)

    events.record(ObjectRef(api_version="v1", kind="Node", name="n"), "Stale", "x", action="Read")
    await events.drain()

    (event,) = api.objects[EVENTS.replace("/a/", "/default/")].values()
    assert "namespace" not in event["regarding"]


async def test_repeats_become_one_series(api: FakeApi, client: Client, clock: Clock) -> None:
    events = recorder(client, clock)
    events.record(POD, "NotPlaced", "0/3 nodes", action="Place")
    await events.drain()
    events.record(POD, "NotPlaced", "0/3 nodes", action="Place")
    events.record(POD, "NotPlaced", "0/3 nodes", action="Place")

    task = asyncio.create_task(events.run())
    clock.now_s = 31.0
    events.record(POD, "NotPlaced", "0/3 nodes", action="Place")
    await api.until(lambda: any(each.method == "PATCH" for each in api.requests))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    (event,) = api.objects[EVENTS].values()
    assert event["series"]["count"] == 4


async def test_repeat_after_the_window_is_a_new_event(
    api: FakeApi, client: Client, clock: Clock
) -> None:
    events = recorder(client, clock)
    for now_s in (0.0, 600.0):
        clock.now_s = now_s
        events.record(POD, "NotPlaced", "0/3 nodes", action="Place")
        await events.drain()

    assert len(api.objects[EVENTS]) == 2


async def test_forgotten_event_is_written_anew(api: FakeApi, client: Client, clock: Clock) -> None:
    events = recorder(client, clock, series_pause_s=0)
    events.record(POD, "NotPlaced", "x", action="Place")
    await events.drain()
    api.objects[EVENTS].clear()
    events.record(POD, "NotPlaced", "x", action="Place")

    task = asyncio.create_task(events.run())
    await api.until(lambda: bool(api.objects[EVENTS]))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    (event,) = api.objects[EVENTS].values()
    assert event["series"]["count"] == 2


async def test_one_object_cannot_flood(api: FakeApi, client: Client, clock: Clock) -> None:
    events = recorder(client, clock)
    for number in range(40):
        events.record(POD, "NotPlaced", f"note {number}", action="Place")
    clock.now_s = 300.0
    events.record(POD, "NotPlaced", "one more", action="Place")
    events.record(POD, "NotPlaced", "too many", action="Place")

    await events.drain()

    assert len(api.objects[EVENTS]) == 26
    assert events.dropped == 16


async def test_full_queue_drops_the_oldest(api: FakeApi, client: Client, clock: Clock) -> None:
    events = recorder(client, clock, queue_limit=2)
    for number in range(3):
        events.record(POD, "NotPlaced", f"note {number}", action="Place")

    await events.drain()

    notes = sorted(event["note"] for event in api.objects[EVENTS].values())
    assert notes == ["note 1", "note 2"]
    assert events.dropped == 1


async def test_failure_is_counted_and_not_raised(
    api: FakeApi, client: Client, clock: Clock
) -> None:
    events = recorder(client, clock)
    api.fail_next("POST", EVENTS, Refusal(403, "Forbidden"))
    events.record(POD, "NotPlaced", "lost", action="Place")
    events.record(POD, "NotPlaced", "kept", action="Place")

    await events.drain()

    assert (events.failed, events.written) == (1, 1)


@given(st.text(max_size=1500))
def test_note_fits_and_stays_whole(note: str) -> None:
    cut = cut_note(note)

    assert len(cut.encode()) <= 1024
    assert cut == note or (cut.endswith("...") and note.startswith(cut[:-3]))


def test_note_is_cut_between_characters() -> None:
    cut = cut_note("ü" * 600)

    assert cut == "ü" * 510 + "..."
