"""What can be seen of a running harbour: every query of the dashboard, the page, who came past us."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from berthmaster_sandbox.addresses import bind_address
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.stage import disk
from berthmaster_sandbox.processes import build_environment
from berthmaster_sandbox.scraping import make_reader, read_metrics
from berthmaster_sandbox.world.diskio import DiskWorld
from support.commands import BERTH, ask, ask_for_data
from support.harbour import (
    PROGRAMS,
    apply_models,
    create,
    io,
    make_pod,
    new_namespace,
    own_installation,
    program_pods,
    until,
    until_bound,
    until_event,
    until_reason,
    until_waiting,
)
from support.promql import Page, Question
from support.promql import ask as ask_prometheus

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

NAMESPACE, NODE = "observing", "observed"
MIB = 2**20
DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "config/components/prometheus/dashboard.json").read_text()
)
PANELS = {it["title"]: it for it in DASHBOARD["panels"] if it["type"] != "row"}
# With all inventories well there is nothing to show.
MAY_BE_EMPTY = {"Inventories that cannot be relied upon"}


async def address_of(harbour: Sandbox, program: str) -> tuple[str, str]:
    """Return the name and the loopback address of a program's pod."""
    (pod,) = await program_pods(harbour, program)
    ip = pod["status"]["podIP"]
    return pod["metadata"]["name"], bind_address(ip, int(ip.split(".")[1]))


async def scrape(harbour: Sandbox) -> list[Page]:
    """Return the pages of both programs with the labels that the PodMonitors give."""
    token = await make_reader(harbour.client)
    pages = []
    async with aiohttp.ClientSession() as session:
        for program in PROGRAMS:
            pod, address = await address_of(harbour, program)
            text = await read_metrics(session, address, token)
            labels = {"job": f"berthmaster-system/{program}", "pod": pod}
            pages.append(Page(time.time(), labels, text))
    return pages


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harbour() -> AsyncIterator[Sandbox]:
    """An installation of our own, in which there is nothing that others left: it is counted."""
    async with own_installation() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pages(harbour: Sandbox) -> AsyncIterator[list[Page]]:
    """A disk of 100 with a pod of 60, another of 60 that was let go past us, and one that waits."""
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    await harbour.create_nodes(1, name=NODE)
    async with DiskWorld(harbour.client) as world:
        await world.add_node(NODE, devices={"d": disk(100, 100, 200)})
        await until_reason(harbour, NODE, "Reported")
        found = await scrape(harbour)
        await create(harbour, NAMESPACE, make_pod("placed", request=io("60Mi"), on=NODE))
        assert await until_bound(harbour, NAMESPACE, "placed") == NODE
        for name in ("past", "waits"):
            await create(harbour, NAMESPACE, make_pod(name, request=io("60Mi"), on=NODE))
            await until_waiting(harbour, NAMESPACE, name)
        await ask(harbour, "ungate", "past", "-n", NAMESPACE)
        assert await until_bound(harbour, NAMESPACE, "past") == NODE
        await until_event(
            harbour, "past", f"runs on {NODE} without a decision", namespace=NAMESPACE
        )
        # A rate takes two samples of a series, and some began after the first scrape.
        for _ in range(2):
            found += await scrape(harbour)
        yield found


def queries(panel: dict[str, Any]) -> list[str]:
    return [it["expr"].replace("$__rate_interval", "5m") for it in panel["targets"]]


def series_of(query: str) -> set[str]:
    """Return the names of the metrics that a query reads."""
    bare = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\bby \([^)]*\)', "", query)
    return {it for it in re.findall(r"\b(?:berthmaster|process)_\w+", bare)}


async def test_every_query_of_the_dashboard_is_answered(
    harbour: Sandbox, pages: list[Page]
) -> None:
    now_s = max(page.at for page in pages)
    asked = [(title, query) for title, panel in PANELS.items() for query in queries(panel)]

    answers = ask_prometheus(pages, [Question(query, now_s) for _, query in asked])

    text = "\n".join(page.text for page in pages)
    for (title, query), answer in zip(asked, answers, strict=True):
        for name in series_of(query):
            family = re.sub("_(total|bucket|count|sum)$", "", name)
            assert re.search(f"^# TYPE {family}(_total)? ", text, re.MULTILINE), f"{title}: {name}"
        # What nobody has counted yet has no series to answer with.
        has_series = all(re.search(f"^{it}[ {{]", text, re.MULTILINE) for it in series_of(query))
        assert answer or not has_series or title in MAY_BE_EMPTY, f"{title}: {query}"


async def test_panels_show_what_is_so(harbour: Sandbox, pages: list[Page]) -> None:
    now_s = max(page.at for page in pages)

    async def show(title: str) -> list[tuple[dict[str, str], float]]:
        (answer,) = ask_prometheus(pages, [Question(queries(PANELS[title])[0], now_s)])
        return [(dict(it.labels), it.value) for it in answer]

    assert await show("Deciding") == [({}, 1)]
    assert await show("Waiting") == [({}, 1)]
    assert await show("Past us") == [({}, 1)]
    assert await show("Nodes past the line") == [({}, 1)]
    assert await show("Operator") == [({}, 1)]
    ((_, left_s),) = await show("Certificate ends in")
    assert 80 * 86400 < left_s < 91 * 86400
    taken = {
        (it["concern"], it["resource"]): value for it, value in await show("Taken by pods past us")
    }
    assert taken["diskio", "read"] == 60 * MIB
    over = await show("Nodes past the line, by resource")
    # Equal values come in no order.
    assert sorted((it["concern"], it["resource"]) for it, value in over if value) == [
        ("diskio", "read"),
        ("diskio", "write"),
    ]


async def test_bypass_tells_who_took_what(harbour: Sandbox, pages: list[Page]) -> None:
    text = await ask(harbour, "bypass")
    data = await ask_for_data(harbour, "bypass")

    assert text.startswith("1 pod runs past Berthmaster on 1 node, 1 of them past their line.\n")
    (node,) = data["nodes"]
    assert node["name"] == NODE
    assert [(it["pod"], it["how"]) for it in node["pods"]] == [
        (f"{NAMESPACE}/past", "without a decision")
    ]
    crossed = {it["resource"]: (it["used"], it["capacity"]) for it in node["crossed"]}
    assert crossed["read"] == (120 * MIB, 100 * MIB)


async def test_why_shows_the_table_that_the_leader_kept(
    harbour: Sandbox, pages: list[Page]
) -> None:
    _, address = await address_of(harbour, "berthmaster-webhook")
    way = ("--full", "--address", f"{address}:8443", "--recorded")

    placed = await ask_for_data(harbour, "why", "placed", "-n", NAMESPACE, *way)
    waits = await ask_for_data(harbour, "why", "waits", "-n", NAMESPACE, *way)

    table = placed["table"]
    assert table["id"] == placed["allocation"]["id"]
    rows = {it["node"]: it for it in table["table"]}
    assert rows[NODE]["scores"]["diskio"] == 40
    assert all("refused" in it for name, it in rows.items() if name != NODE)
    assert waits["table"]["node"] is None
    rows = {it["node"]: it for it in waits["table"]["table"]}
    assert rows[NODE] == {"node": NODE, "refused": "disk IO read bandwidth is not enough"}


@asynccontextmanager
async def page_of(harbour: Sandbox) -> AsyncIterator[str]:
    """Run `kubectl berth page`, and yield the address that it prints."""
    _, address = await address_of(harbour, "berthmaster-webhook")
    process = await asyncio.create_subprocess_exec(
        BERTH,
        "page",
        "--address",
        f"{address}:8443",
        env=build_environment({"KUBECONFIG": str(harbour.kubeconfig), "PATH": os.environ["PATH"]}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def test_page_shows_the_harbour(harbour: Sandbox, pages: list[Page]) -> None:
    async with page_of(harbour) as url, aiohttp.ClientSession() as session:

        async def state() -> dict[str, Any]:
            async with session.get(f"{url}.json") as answer:
                found: dict[str, Any] = await answer.json()
                return found

        async with session.get(url) as answer:
            assert "<title>Berthmaster</title>" in await answer.text()
        found = await until(state, lambda it: it["waitingCount"] == 1, 10)

    assert found["deciding"] == ""
    assert found["bypassedCount"] == 1
    assert found["nodes"][0]["name"] == NODE
    assert found["waiting"][0]["pod"] == f"{NAMESPACE}/waits"
    assert "disk IO read bandwidth is not enough" in found["waiting"][0]["message"]
    assert (f"{NAMESPACE}/placed", NODE) in [(it["pod"], it["node"]) for it in found["decisions"]]


async def test_nobody_reads_without_the_right(harbour: Sandbox, pages: list[Page]) -> None:
    """The role for metrics does not show decisions."""
    _, address = await address_of(harbour, "berthmaster-webhook")
    token = await make_reader(harbour.client)
    async with aiohttp.ClientSession() as session:
        for path, headers, status in (
            ("/harbour.json", {}, 401),
            ("/decisions", {"Authorization": f"Bearer {token}"}, 403),
            ("/harbour", {"Authorization": f"Bearer {token}"}, 403),
        ):
            url = f"https://{address}:8443{path}"
            async with session.get(url, headers=headers, ssl=False) as answer:
                assert answer.status == status
