"""`bypass`: who runs past us, on which node, what they took, and whether a line was crossed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from berthmaster.api.objects import Pod, pod_from_manifest
from berthmaster.cli import output
from berthmaster.cli.bypass import build_report, find, list_bound
from berthmaster.cluster.client import Client
from cli.harbour import PODS, allocation, manifest, rates
from support.fake_api import FakeApi
from support.webhook_world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    for name in ("node-a", "node-b"):
        made.add_node(name, cpu="4")
        made.add_disk(name, "100Mi")
    yield made
    await made.close()


def show(world: World, *pods: Pod) -> list[Pod]:
    return [world.show(pod) for pod in pods]


def running(name: str, size: str, node: str = "node-a", **fields: Any) -> Pod:
    """Return a pod that asked for so much disk, and runs."""
    return pod_from_manifest(
        manifest(name, request=rates(size, size), node=node, phase="Running", **fields)
    )


def test_pods_without_a_decision_are_told_with_what_they_took(world: World) -> None:
    pods = show(world, running("p", "60Mi"), running("q", "30Mi"))

    (node,) = nodes = find(pods, world.state.engine)
    report = build_report(nodes)

    assert [(it.pod, it.how) for it in node.pods] == [
        ("default/p", "without a decision"),
        ("default/q", "without a decision"),
    ]
    assert report.sentence == "2 pods run past Berthmaster on 1 node, none of them past its line."
    assert "disk IO read 90Mi/s, disk IO write 90Mi/s" in output.render_plain(report)
    (told,) = report.data["nodes"]
    read = next(it for it in told["taken"] if it["resource"] == "read")
    assert read == {
        "concern": "diskio",
        "resource": "read",
        "unit": "bytes_per_second",
        "amount": 90 * 2**20,
    }


def test_crossed_lines_come_first(world: World) -> None:
    pods = show(
        world, running("p", "60Mi"), running("q", "80Mi", "node-b"), running("r", "80Mi", "node-b")
    )

    report = build_report(find(pods, world.state.engine))

    assert report.sentence == "3 pods run past Berthmaster on 2 nodes, 1 of them past their line."
    assert [it["name"] for it in report.data["nodes"]] == ["node-b", "node-a"]
    assert "disk IO read 160Mi/s of 100Mi/s" in output.render_plain(report)


def test_pods_that_were_placed_are_not_told_and_strayed_ones_are(world: World) -> None:
    pods = show(
        world,
        running("placed", "20Mi", decision=allocation()),
        running("strayed", "20Mi", "node-b", decision=allocation(id="d-2")),
        running("prefers", "20Mi", "node-b", decision=allocation(id="d-3", mode="preferred")),
        running("plain", "20Mi", mode=None),
        running("off", "20Mi", mode="off"),
    )

    (node,) = find(pods, world.state.engine)

    assert [(it.pod, it.how) for it in node.pods] == [("default/strayed", "elsewhere than decided")]
    assert node.name == "node-b"


def test_nothing_found_is_one_sentence() -> None:
    report = build_report([])

    assert output.render_plain(report) == (
        "No pod runs past Berthmaster: all that ask were placed by it.\n"
    )
    assert report.data == {"pods": 0, "nodes": [], "notes": []}


async def test_unreadable_pods_do_not_stop_the_list() -> None:
    async with FakeApi() as api, Client.at(api.url) as client:
        api.put(PODS, manifest("good", node="node-a"))
        api.put(PODS, {"metadata": {"name": "bad", "namespace": "default"}, "spec": "x"})

        found = await list_bound(client)

    assert [it.key for it in found] == ["default/good"]
