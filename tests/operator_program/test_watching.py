"""Kopf where a container puts it, with nothing but a pod's name, and beside kinds that come and go."""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import kopf
import pytest
import yaml

from berthmaster.cluster.backoffs import Backoff
from berthmaster.cluster.client import Client
from berthmaster.cluster.connections import Connection
from berthmaster_operator import watching
from berthmaster_operator.kinds import DEFINITIONS, Kinds, decode_definition
from berthmaster_operator.program import Program
from berthmaster_operator.settings import Settings
from support.fake_api import FakeApi, Json, Refusal

CRDS = Path(__file__).parents[2] / "crds"
GROUP = "a.example"
THINGS = f"/apis/{GROUP}/v1/things"


async def nobody(_: bool) -> None:
    return None


def connection_to(url: str) -> Connection:
    return Connection(base_url=url, origin="the test", authorization=nobody)


async def test_user_of_a_container_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's uid is no line of /etc/passwd, and a cluster may choose another one."""

    def refuse() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr(getpass, "getuser", refuse)
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**_: object) -> kopf.ConnectionInfo:
        # Nobody listens there, and nobody has to: Kopf is stopped before it has asked.
        return kopf.ConnectionInfo(server="http://127.0.0.1:1")

    stop = asyncio.Event()
    stop.set()

    async with asyncio.timeout(60):
        async with Client(connection_to("http://127.0.0.1:1"), user_agent="test") as client:
            await watching.run(
                registry, Kinds(client), name="operator-1", stop=stop, restore_signals=lambda: None
            )


def definition(plural: str, *, group: str = GROUP, established: str = "True") -> Json:
    """Return a CRD of two versions, of which one is served."""
    return {
        "metadata": {"name": f"{plural}.{group}", "uid": f"uid-{plural}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": plural.title()},
            "versions": [{"name": "v1", "served": True}, {"name": "v0", "served": False}],
        },
        "status": {"conditions": [{"type": "Established", "status": established}]},
    }


def thing(name: str) -> Json:
    return {"metadata": {"name": name, "namespace": "a", "uid": f"uid-{name}"}}


def resources(*plurals: str) -> Json:
    return {
        "resources": [
            {
                "name": it,
                "kind": it.title(),
                "singularName": "",
                "namespaced": False,
                "verbs": ["list", "watch"],
            }
            for it in plurals
        ]
    }


class Watched:
    """Kopf with a handler for things, and what it was told of."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.changes = 0
        self._changed = asyncio.Event()
        self.registry = kopf.OperatorRegistry()
        watching.register_login(self.registry)

        async def changed(event: kopf.RawEvent, **_: object) -> None:
            self.told.append(event["object"]["metadata"]["name"])
            self._changed.set()

        kopf.on.event(GROUP, "v1", "things", registry=self.registry)(changed)

    def count_change(self) -> None:
        self.changes += 1
        self._changed.set()

    async def until_told(self, name: str) -> None:
        await self.until(lambda: name in self.told)

    async def until_changed(self) -> None:
        before = self.changes
        await self.until(lambda: self.changes > before)

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def kopf_beside(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, *, watch_pause_s: float = 0.0
) -> AsyncIterator[Watched]:
    """Run Kopf; the API server's own list of kinds has nothing of ours, ever."""

    async def connect() -> Connection:
        return connection_to(api.url)

    monkeypatch.setattr(watching, "load_connection", connect)
    monkeypatch.setattr(watching, "RETRY_PAUSES_S", (0.02,))
    monkeypatch.setattr(watching, "WATCH_PAUSE_S", watch_pause_s)
    extensions = {
        "name": "apiextensions.k8s.io",
        "versions": [{"version": "v1"}],
        "preferredVersion": {"version": "v1"},
    }
    api.answers["GET", "/api"] = {"versions": ["v1"]}
    api.answers["GET", "/api/v1"] = resources("namespaces", "events")
    api.answers["GET", "/apis"] = {"groups": [extensions]}
    api.answers["GET", "/apis/apiextensions.k8s.io/v1"] = resources("customresourcedefinitions")
    watched, stop = Watched(), asyncio.Event()
    async with (
        Client(connection_to(api.url), user_agent="test") as client,
        asyncio.TaskGroup() as tasks,
    ):
        kinds = Kinds(client, on_change=watched.count_change)
        listing = tasks.create_task(kinds.informer.run())
        tasks.create_task(
            watching.run(watched.registry, kinds, name="x", stop=stop, restore_signals=lambda: None)
        )
        yield watched
        stop.set()
        listing.cancel()


async def test_kind_is_watched_once_its_crd_is_established(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the API server's list of kinds says, and though the path answers a moment later."""
    async with FakeApi() as api:
        api.objects[DEFINITIONS] = {}
        async with kopf_beside(api, monkeypatch) as watched:
            await api.until_watched(DEFINITIONS)
            api.put(DEFINITIONS, definition("things", established="False"))
            api.put(DEFINITIONS, definition("others"))
            api.put(DEFINITIONS, definition("things"))
            await api.until(lambda: api.count("GET", THINGS) >= 2)
            api.put(THINGS, thing("one"))
            await watched.until_told("one")
            await api.until_watched(THINGS)

        assert api.count("GET", f"/apis/{GROUP}/v1/others") == 0
        assert api.count("GET", f"/apis/{GROUP}/v0/things") == 0


async def test_list_whose_next_page_is_gone_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAGE_LIMIT", 1)
    async with FakeApi() as api:
        api.put(DEFINITIONS, definition("things"))
        for name in ("one", "two"):
            api.put(THINGS, thing(name))
        api.refuse_pages = 1
        async with kopf_beside(api, monkeypatch) as watched:
            await watched.until_told("two")

        assert api.refuse_pages == 0
        assert watched.told.count("one") == 2


async def test_watches_that_end_at_once_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something between us and the API server may end each answer."""
    async with FakeApi() as api:
        api.put(DEFINITIONS, definition("things"))
        api.put(THINGS, thing("one"))
        api.brief.add(THINGS)
        async with kopf_beside(api, monkeypatch, watch_pause_s=0.05):
            await api.until_watched(THINGS)
            began_s = time.monotonic()
            await api.until_watched(THINGS, times=6)

        assert time.monotonic() - began_s > 4 * 0.05


async def test_refused_logins_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kopf asks again at once, for as long as it is refused."""
    pauses: list[float] = []

    class Counted(Backoff):
        def next_s(self, at_least_s: float | None = None) -> float:
            pauses.append(super().next_s(at_least_s))
            return 0.0

    async with FakeApi() as api:
        monkeypatch.setattr(watching, "Backoff", Counted)
        for _ in range(20):
            api.fail_next("GET", "/api", Refusal(401, "Unauthorized"))
        api.put(DEFINITIONS, definition("things"))
        api.put(THINGS, thing("one"))
        async with kopf_beside(api, monkeypatch) as watched:
            await watched.until_told("one")

    # Some of the refusals meet others, or two requests that are under way at once.
    assert 5 <= len(pauses) <= 20


async def test_each_handler_has_its_kind_among_the_crds() -> None:
    """As the files have them, which are what the API server stores but for the condition."""
    established = {"conditions": [{"type": "Established", "status": "True"}]}
    async with Client(connection_to("http://127.0.0.1:1"), user_agent="test") as client:
        registry = Program(Settings(), client, identity="me").build_registry()
        kinds = Kinds(client)
        for path in CRDS.rglob("*_*.yaml"):
            manifest = yaml.safe_load(path.read_text())
            found = decode_definition(json.dumps({**manifest, "status": established}).encode())
            kinds.informer.store[found.name] = found

        wanted = registry._watching.get_all_selectors()
        there = kinds.select(wanted)

    assert len(kinds.informer.store) == len(there) + 1 == len(wanted) + 1
    assert "nodeinventories.v1alpha1.berthmaster.io" not in map(repr, there)
    namespaced = {it.plural for it in there if it.namespaced}
    assert "nodediskdevices" in namespaced
    assert "placementpolicies" not in namespaced


async def test_kind_that_goes_and_comes_back_ends_nothing_and_is_watched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its path is gone before anybody hears that its CRD is."""
    async with FakeApi() as api:
        api.put(DEFINITIONS, definition("things"))
        api.put(THINGS, thing("first"))
        async with kopf_beside(api, monkeypatch) as watched:
            await watched.until_told("first")
            for name in ("second", "third"):
                await api.until(lambda: api.is_watched(THINGS))
                api.remove_kind(THINGS)
                await api.until_asked_again(THINGS, times=2)
                api.remove(DEFINITIONS, f"things.{GROUP}")
                if name == "third":
                    # Else the kind may be back before Kopf has heard that it was gone.
                    await watched.until_changed()
                api.absent.discard(THINGS)
                api.put(THINGS, thing(name))
                api.put(DEFINITIONS, definition("things"))
                await watched.until_told(name)
