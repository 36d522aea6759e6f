"""The page of the harbour and its figures: behind the door, bounded, and nothing users name is markup."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from berthmaster.api.inventory import inventory_from_manifest
from berthmaster.cluster.events import EventRecorder
from berthmaster.cluster.informers import EventKind
from berthmaster.cluster.reviews import Doorkeeper
from berthmaster_webhook import harbour, reading
from berthmaster_webhook.bypassing import BypassedPods
from berthmaster_webhook.harbour import Harbour
from berthmaster_webhook.measuring import Books
from berthmaster_webhook.outcomes import Outcome
from berthmaster_webhook.reporting import Reporter
from berthmaster_webhook.waiting import WaitingPods
from support.builders import make_pod_manifest
from support.review_api import GOOD_TOKEN, ReviewApi, shown
from support.waiting import until
from support.webhook_world import PodServer, World, ask, gated_manifest

PATHS = ("/harbour", "/harbour.css", "/harbour.js", "/harbour.json", "/decisions")


class Pier:
    """A world with what the page is made from; the queue runs while `queueing`."""

    def __init__(self, world: World) -> None:
        self.world = world
        server = PodServer(world)
        events = EventRecorder(server, "test")
        self.reporter = Reporter(
            server, events, may_write=lambda: True, clock=lambda: world.now_s, patience_s=0.0
        )
        self.queue = WaitingPods(world.tools, world.term, server, self.reporter)
        filling = Books(world.state, world.tools.metrics).filling
        bypassed = BypassedPods(
            world.tools.metrics, world.state.ledger, filling, events, may_tell=lambda: False
        )
        world.state.on_pod += [self.queue.take_pod, bypassed.take_pod]
        self.harbour = Harbour(world.tools, world.term, self.queue, filling, bypassed)

    @asynccontextmanager
    async def queueing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.queue.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def pier(world: World) -> Pier:
    return Pier(world)


@asynccontextmanager
async def served(pier: Pier, *may: str) -> AsyncIterator[TestClient[Any, Any]]:
    async with ReviewApi(may=list(may)) as api:
        app = reading.build_app(Doorkeeper(api.client), pier.world.tools.metrics)
        pier.harbour.add_routes(app)
        async with TestClient(TestServer(app)) as client:
            yield client


@contextmanager
def fewer(monkeypatch: pytest.MonkeyPatch, **limits: int) -> Iterator[None]:
    for name, limit in limits.items():
        monkeypatch.setattr(harbour, name, limit)
    yield


async def test_every_path_needs_its_right(pier: Pier) -> None:
    async with served(pier, "/metrics") as client:
        for path in PATHS:
            assert (await client.get(path)).status == 401
            assert (await client.get(path, headers=shown(GOOD_TOKEN))).status == 403


async def test_answers_forbid_whatever_the_page_does_not_need(pier: Pier) -> None:
    async with served(pier, *PATHS) as client:
        for path in PATHS:
            answer = await client.get(path, headers=shown(GOOD_TOKEN))
            assert answer.status == 200, path
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"


def test_page_has_no_outside_assets_no_inline_code_and_makes_no_markup_of_text() -> None:
    files = {it.name: it.read_text() for it in resources.files(harbour).iterdir() if it.is_file()}
    html, css, script = files["page.html"], files["page.css"], files["page.js"]

    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == {"harbour.css", "harbour.js"}
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", html)
    assert "://" not in html + css + script
    assert "url(" not in css
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|\.style\b", script
    )
    assert sum(map(len, (html, css, script))) < 20_000


async def test_state_shows_nodes_pods_that_wait_and_decisions(pier: Pier) -> None:
    world = pier.world
    world.add_node("n1", cpu="4")
    world.add_node("n2", cpu="4")
    conditions = [{"type": "DiskIOReady", "status": "Unknown", "reason": "Stale", "message": "m"}]
    told = {"metadata": {"name": "n2"}, "status": {"conditions": conditions}}
    world.state.inventories._put(EventKind.ADDED, "n2", inventory_from_manifest(told))
    world.show(make_pod_manifest("busy", cpu="3", node="n2"))
    ask(world, gated_manifest("placed", cpu="2"))
    async with pier.queueing():
        world.show(gated_manifest("<img src=x onerror=alert(1)>", cpu="9"))
        await until(lambda: "Insufficient" in json.dumps(pier.harbour.state()["waiting"]))
    state = pier.harbour.state()

    assert state["deciding"] == ""
    assert state["nodeCount"] == 2
    # The fullest first.
    assert [it["name"] for it in state["nodes"]] == ["n2", "n1"]
    cpu = next(it for it in state["nodes"][0]["levels"] if it["resource"] == "cpu")
    assert (cpu["capacity"], cpu["used"], cpu["unit"]) == (4, 3, "cores")
    assert state["nodes"][0]["troubles"] == ["DiskIOReady Stale"]
    whole = next(it for it in state["resources"] if it["resource"] == "cpu")
    assert (whole["capacity"], whole["used"], whole["over"]) == (8, 5, 0)
    (waiting,) = state["waiting"]
    assert waiting["pod"] == "default/<img src=x onerror=alert(1)>"
    assert waiting["message"] == "0/2 nodes: 2 (n1, n2) Insufficient cpu"
    decisions = [(it["pod"], it["node"]) for it in state["decisions"]]
    assert decisions[-1] == ("default/placed", "n1")
    assert decisions[0] == (waiting["pod"], None)
    json.dumps(state, allow_nan=False)

    world.term.forbids = Outcome.NOT_LEADER
    assert pier.harbour.state()["deciding"] == "not_leader"


async def test_state_is_bounded_whatever_the_size(
    pier: Pier, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pier.world
    for number in range(30):
        world.add_node(f"n{number}", cpu="4")
        world.show(gated_manifest(f"p{number}", cpu="9"))
        ask(world, gated_manifest(f"q{number}", cpu="1"))
    with fewer(monkeypatch, MOST_NODES=4, MOST_WAITING=5, MOST_DECISIONS=1):
        state = pier.harbour.state()

    assert (len(state["nodes"]), state["nodeCount"]) == (4, 30)
    assert (len(state["waiting"]), state["waitingCount"]) == (5, 30)
    assert len(state["decisions"]) == 1


async def test_decision_is_given_with_its_table_by_id_and_by_pod(pier: Pier) -> None:
    world = pier.world
    world.add_node("n1", cpu="4")
    world.add_node("n2", cpu="1")
    ask(world, gated_manifest("p", cpu="2"))
    async with served(pier, "/decisions") as client:

        async def get(**query: str) -> tuple[int, Any]:
            answer = await client.get("/decisions", params=query, headers=shown(GOOD_TOKEN))
            return answer.status, await answer.json() if answer.status == 200 else None

        _, latest = await get()
        status, found = await get(pod="default/p")
        assert status == 200
        assert found["node"] == "n1"
        assert [(it["node"], it.get("refused")) for it in found["table"]] == [
            ("n1", None),
            ("n2", "Insufficient cpu"),
        ]
        assert latest["decisions"] == [{key: it for key, it in found.items() if key != "table"}]
        assert (await get(id=found["id"])) == (200, found)
        assert (await get(id="absent")) == (404, None)
