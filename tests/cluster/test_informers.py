from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client
from berthmaster.cluster.informers import EventKind, Informer
from support.fake_api import Cut, FakeApi, Refusal
from support.waiting import until

PODS = "/api/v1/pods"


class Meta(msgspec.Struct):
    name: str
    uid: str = ""


class Thing(msgspec.Struct):
    metadata: Meta
    spec: dict[str, int] = msgspec.field(default_factory=dict)


class VersionedMeta(msgspec.Struct, rename="camel"):
    name: str
    uid: str = ""
    resource_version: str = ""


class Versioned(msgspec.Struct):
    metadata: VersionedMeta
    spec: dict[str, int] = msgspec.field(default_factory=dict)


def thing(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "a", "uid": f"uid-{name}"}, "spec": spec}


@dataclass
class Seen:
    """What the owner of an informer was told."""

    events: list[tuple[str, str]] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    bad: list[bytes] = field(default_factory=list)
    syncs: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def event(self, kind: EventKind, obj: Thing) -> None:
        self.events.append((kind.value, obj.metadata.name))
        self.changed.set()

    def at(self, version: str) -> None:
        self.progress.append(version)
        self.changed.set()

    def bad_object(self, raw: bytes, error: Exception) -> None:
        self.bad.append(raw)
        self.changed.set()

    def sync(self) -> None:
        self.syncs += 1
        self.changed.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_true():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as server:
        server.objects[PODS] = {}
        yield server


NOT_FOUND = Refusal(404, "NotFound", "the server could not find the requested resource")


@asynccontextmanager
async def informing(api: FakeApi, **options: Any) -> AsyncIterator[tuple[Informer[Thing], Seen]]:
    seen = Seen()
    async with Client.at(api.url) as client:
        informer = Informer(
            client,
            PODS,
            decode=msgspec.json.Decoder(Thing).decode,
            key=lambda obj: obj.metadata.uid,
            on_event=seen.event,
            on_sync=seen.sync,
            on_progress=seen.at,
            on_bad_object=seen.bad_object,
            **{"backoff": Backoff(first_s=0.001, cap_s=0.001), **options},
        )
        task = asyncio.create_task(informer.run())
        try:
            yield informer, seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_list_by_pages_then_watch(api: FakeApi) -> None:
    for number in range(5):
        api.put(PODS, thing(f"p{number}"))

    async with informing(api, page_limit=2, query={"labelSelector": "x=y"}) as (informer, seen):
        await informer.synced.wait()
        await api.until_watched(PODS)
        api.put(PODS, thing("p0", size=1))
        api.put(PODS, thing("new"))
        api.remove(PODS, "p1")
        await seen.until(lambda: len(seen.events) == 8)

        assert seen.events[5:] == [("MODIFIED", "p0"), ("ADDED", "new"), ("DELETED", "p1")]
        assert sorted(informer.store) == ["uid-new", "uid-p0", "uid-p2", "uid-p3", "uid-p4"]
        assert informer.store["uid-p0"].spec == {"size": 1}
    watch = next(each for each in api.requests if each.query.get("watch"))
    assert watch.query["allowWatchBookmarks"] == "true"
    assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
    assert all(each.query["labelSelector"] == "x=y" for each in api.requests)
    assert "resourceVersion" not in api.requests[0].query


async def test_bookmark_is_progress_and_where_to_resume(api: FakeApi) -> None:
    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        assert seen.progress == []
        version = api.bookmark(PODS)
        await seen.until(lambda: seen.progress == [version])
        api.end_watches()
        await api.until_watched(PODS, 2)

        assert api.requests[-1].query["resourceVersion"] == version
        assert informer.lists == 1


@pytest.mark.parametrize("break_watches", [FakeApi.cut_watches, FakeApi.end_watches])
async def test_broken_watch_misses_nothing(
    api: FakeApi, break_watches: Callable[[FakeApi], None]
) -> None:
    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        api.put(PODS, thing("before"))
        await seen.until(lambda: len(seen.events) == 1)
        break_watches(api)
        api.put(PODS, thing("after"))
        await seen.until(lambda: len(seen.events) == 2)

        assert seen.events == [("ADDED", "before"), ("ADDED", "after")]
        assert informer.lists == 1


@pytest.mark.parametrize("gone_as_event", [False, True], ids=["http", "event"])
async def test_old_version_means_new_list_and_made_up_deletes(
    api: FakeApi, gone_as_event: bool
) -> None:
    api.gone_as_event = gone_as_event
    for name in ("stays", "changes", "vanishes"):
        api.put(PODS, thing(name))

    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        api.remove_silently(PODS, "vanishes")
        api.objects[PODS]["changes"]["spec"] = {"size": 2}
        api.objects[PODS]["comes"] = thing("comes")
        api.compact()
        api.end_watches()
        await seen.until(lambda: seen.syncs == 2)

        assert seen.events[3:] == [
            ("MODIFIED", "changes"),
            ("ADDED", "comes"),
            ("DELETED", "vanishes"),
        ]
        assert sorted(informer.store) == ["uid-changes", "uid-comes", "uid-stays"]
        assert informer.lists == 2


async def test_list_that_expires_half_way_starts_over(api: FakeApi) -> None:
    for number in range(3):
        api.put(PODS, thing(f"p{number}"))
    served = 0

    def decode(raw: bytes) -> Thing:
        nonlocal served
        served += 1
        if served == 2:
            api.compact()
        return msgspec.json.decode(raw, type=Thing)

    seen = Seen()
    async with Client.at(api.url) as client:
        informer = Informer(
            client,
            PODS,
            decode=decode,
            key=lambda obj: obj.metadata.name,
            on_event=seen.event,
            page_limit=2,
            backoff=Backoff(first_s=0.001, cap_s=0.001),
        )
        task = asyncio.create_task(informer.run())
        await seen.until(lambda: len(seen.events) == 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert [name for _, name in seen.events] == ["p0", "p1", "p2"]


async def test_list_that_breaks_off_takes_nothing_back(api: FakeApi) -> None:
    for number in range(4):
        api.put(PODS, thing(f"p{number}"))
    seen = Seen()

    def tell(kind: EventKind, obj: Thing) -> None:
        seen.event(kind, obj)
        if len(seen.events) == 2:
            api.fail_next("GET", PODS, Refusal(500))
            api.remove_silently(PODS, "p0")

    async with Client.at(api.url) as client:
        informer = Informer(
            client,
            PODS,
            decode=msgspec.json.Decoder(Thing).decode,
            key=lambda obj: obj.metadata.uid,
            on_event=tell,
            on_sync=seen.sync,
            page_limit=2,
            backoff=Backoff(first_s=0.001, cap_s=0.001),
        )
        task = asyncio.create_task(informer.run())
        await seen.until(lambda: seen.syncs == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert informer.failures == 1
    assert seen.events == [
        ("ADDED", "p0"),
        ("ADDED", "p1"),
        ("ADDED", "p2"),
        ("ADDED", "p3"),
        ("DELETED", "p0"),
    ]


async def test_store_holds_no_more_than_is_kept(api: FakeApi) -> None:
    for name in ("stays", "changes", "vanishes"):
        api.put(PODS, thing(name, size=1))
    whole: list[tuple[str, dict[str, int]]] = []

    def keep(obj: Versioned) -> Versioned:
        return Versioned(metadata=obj.metadata)

    async with Client.at(api.url) as client:
        seen = Seen()
        informer = Informer(
            client,
            PODS,
            decode=msgspec.json.Decoder(Versioned).decode,
            key=lambda obj: obj.metadata.uid,
            keep=keep,
            on_event=lambda kind, obj: whole.append(
                (f"{kind.value} {obj.metadata.name}", obj.spec)
            ),
            on_sync=seen.sync,
            backoff=Backoff(first_s=0.001, cap_s=0.001),
        )
        task = asyncio.create_task(informer.run())
        await seen.until(lambda: seen.syncs == 1)
        await api.until_watched(PODS)
        kept = dict(informer.store)
        api.remove_silently(PODS, "vanishes")
        changed = {**thing("changes", size=2)["metadata"], "resourceVersion": "9999"}
        api.objects[PODS]["changes"] = {"metadata": changed, "spec": {"size": 2}}
        api.compact()
        api.end_watches()
        await seen.until(lambda: seen.syncs == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert [it.spec for it in kept.values()] == [{}, {}, {}]
    assert whole[:3] == [
        (f"ADDED {name}", {"size": 1}) for name in ("stays", "changes", "vanishes")
    ]
    assert whole[3:] == [("MODIFIED changes", {"size": 2}), ("DELETED vanishes", {})]


async def test_silent_watch_is_replaced(api: FakeApi) -> None:
    async with informing(api, silent_after_s=0.05) as (informer, _):
        await api.until_watched(PODS, 3)

        assert informer.lists == 1
        assert informer.failures >= 2


async def test_watch_that_missed_something_is_renewed_from_where_it_was(api: FakeApi) -> None:
    async with informing(api) as (informer, seen):
        # Nothing is watched yet.
        informer.renew()
        await api.until_watched(PODS)
        api.put(PODS, thing("first"))
        await seen.until(lambda: len(seen.events) == 1)

        informer.renew()
        informer.renew()
        await api.until_watched(PODS, 2)
        api.put(PODS, thing("second"))
        await seen.until(lambda: len(seen.events) == 2)

        assert seen.events == [("ADDED", "first"), ("ADDED", "second")]
        assert (informer.lists, informer.failures) == (1, 1)


async def test_bad_objects_harm_nobody_else(api: FakeApi) -> None:
    api.put(PODS, thing("good"))
    api.put(PODS, thing("bad", size="not a number"))

    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        api.put(PODS, thing("bad", size="still not"))
        api.put(PODS, thing("other"))
        await seen.until(lambda: len(seen.events) == 2)

        assert seen.events == [("ADDED", "good"), ("ADDED", "other")]
        assert informer.bad_objects == len(seen.bad) == 2


async def test_object_that_turns_bad_is_kept_until_it_is_gone(api: FakeApi) -> None:
    api.put(PODS, thing("p", size=1))

    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        api.put(PODS, thing("p", size="bad"))
        await seen.until(lambda: len(seen.bad) == 1)
        api.compact()
        api.end_watches()
        await seen.until(lambda: seen.syncs == 2)
        assert informer.store["uid-p"].spec == {"size": 1}
        await api.until_watched(PODS, 3)
        api.remove(PODS, "p")
        await seen.until(lambda: ("DELETED", "p") in seen.events)

        assert informer.store == {}


async def test_trouble_at_the_start_is_waited_out(api: FakeApi) -> None:
    api.fail_next("GET", PODS, Refusal(503, headers={"Retry-After": "0"}))
    api.fail_next("GET", PODS, Cut.BEFORE)
    api.fail_next("GET", PODS, Refusal(403, "Forbidden"))

    async with informing(api) as (informer, _):
        async with asyncio.timeout(10):
            await informer.synced.wait()

        assert informer.failures == 3


async def test_garbled_watch_line_reconnects(api: FakeApi) -> None:
    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        api.send_line(PODS, b"<html>\n")
        await api.until_watched(PODS, 2)
        api.put(PODS, thing("p"))
        await seen.until(lambda: seen.events == [("ADDED", "p")])

        assert informer.failures == 1


async def test_unknown_event_types_are_passed_over(api: FakeApi) -> None:
    async with informing(api) as (_, seen):
        await api.until_watched(PODS)
        api.send_line(PODS, json.dumps({"type": "NEWER", "object": {}}).encode() + b"\n")
        api.put(PODS, thing("p"))
        await seen.until(lambda: seen.events == [("ADDED", "p")])


async def test_events_may_be_written_in_any_form(api: FakeApi) -> None:
    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        stored = {**thing("p"), "metadata": {**thing("p")["metadata"], "resourceVersion": "77"}}
        turned = {"object": stored, "type": "ADDED"}
        api.send_line(PODS, json.dumps(turned, indent=None).encode() + b"\n")
        more = {"type": "MODIFIED", "object": stored, "more": {}}
        api.send_line(PODS, json.dumps(more).encode() + b"\n")
        await seen.until(lambda: seen.events == [("ADDED", "p"), ("MODIFIED", "p")])

        assert (informer.resource_version, informer.failures) == ("77", 0)


async def test_an_event_that_is_cut_is_not_taken_for_its_object(api: FakeApi) -> None:
    async with informing(api) as (informer, seen):
        await api.until_watched(PODS)
        api.send_line(PODS, b'{"type":"ADDED","object":{"metadata":{"name":"cut","uid":"u"}\n')
        await api.until_watched(PODS, 2)
        api.put(PODS, thing("p"))
        await seen.until(lambda: seen.events == [("ADDED", "p")])

        assert informer.failures == 1


class High(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def times(*moments_s: float) -> Callable[[], float]:
    held: Iterator[float] = iter(moments_s)
    return lambda: next(held)


def test_backoff_doubles_up_to_its_cap() -> None:
    backoff = Backoff(rng=High(), clock=lambda: 0.0)

    waits_s = [backoff.next_s() for _ in range(8)]

    assert waits_s == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_backoff_forgets_after_health_and_honours_the_server() -> None:
    backoff = Backoff(rng=High(), clock=times(0.0, 0.0, 1.0, 122.6, 123.0))

    waits_s = [backoff.next_s(), backoff.next_s(), backoff.next_s(), backoff.next_s(17.0)]

    assert waits_s == [0.8, 1.6, 0.8, 17.0]


def test_backoff_does_not_wait_for_a_wish_without_measure() -> None:
    assert Backoff(rng=High(), clock=lambda: 0.0).next_s(3600.0) == 30.0


async def test_a_kind_whose_crd_was_deleted_is_looked_for_often(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berthmaster.cluster.informers.LOST_PAUSE_S", 0.01)
    api.put(PODS, thing("a"))
    for _ in range(8):
        api.fail_next("GET", PODS, NOT_FOUND)

    # By its backoff alone it would wait for minutes.
    async with informing(api, backoff=Backoff(first_s=30.0, rng=High())) as (informer, seen):
        await until(lambda: informer.is_absent)
        await seen.until(lambda: seen.events == [("ADDED", "a")])
        await seen.until(lambda: seen.syncs == 1)
        assert informer.failures == 8
        assert not informer.is_absent


async def test_a_kind_that_is_not_installed_has_no_objects_until_it_is(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berthmaster.cluster.informers.ABSENT_PAUSE_S", 0.01)
    api.put(PODS, thing("a"))
    for _ in range(2):
        api.fail_next("GET", PODS, NOT_FOUND)
    async with informing(api, is_optional=True) as (informer, seen):
        async with asyncio.timeout(10):
            await informer.synced.wait()
        assert informer.store == {}
        await seen.until(lambda: seen.events == [("ADDED", "a")])
        assert informer.failures == 0

    api.fail_next("GET", PODS, NOT_FOUND)
    async with informing(api) as (informer, seen):
        await seen.until(lambda: seen.syncs == 1)
        assert informer.failures == 1
