"""All five concerns in one pod on the real control plane: the demo's last story, and what `why` says of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.demo.pod_watch import NAMESPACE, PODS, PodWatch
from berthmaster_sandbox.demo.stage import FUNCTIONS, Stage, Worlds
from berthmaster_sandbox.demo.together_stories import LIMITS, NODES, REQUEST, train
from berthmaster_sandbox.installing import PROJECT
from berthmaster_sandbox.world.datashim import install_datashim
from berthmaster_sandbox.world.diskio import DiskWorld
from berthmaster_sandbox.world.numa import NumaWorld
from berthmaster_sandbox.world.power import PowerWorld
from berthmaster_sandbox.world.xpu import XpuWorld
from support.commands import ask, ask_for_data
from support.harbour import apply_models, create, make_pod, new_namespace, own_installation

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harbour() -> AsyncIterator[Sandbox]:
    """An installation of our own: these nodes would suit pods of others, too."""
    async with own_installation() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def told(harbour: Sandbox) -> AsyncIterator[Stage]:
    """Return the stage of the story once it has come out as written."""
    await harbour.kubectl("apply", "-k", str(PROJECT / "crds" / "wao"))
    await install_datashim(harbour)
    await apply_models(harbour)
    await new_namespace(harbour, NAMESPACE)
    async with AsyncExitStack() as stack:
        worlds = Worlds(
            disks=await stack.enter_async_context(DiskWorld(harbour.client, functions=FUNCTIONS)),
            numa=await stack.enter_async_context(NumaWorld(harbour.client)),
            power=await stack.enter_async_context(PowerWorld(harbour.client)),
            xpus=await stack.enter_async_context(XpuWorld(harbour.client)),
        )
        watch = PodWatch(harbour.client)
        watching = asyncio.create_task(watch.run())
        stack.callback(watching.cancel)
        await watch.synced()
        stage = Stage("together", harbour.client, worlds, watch)
        await train(stage)
        yield stage


async def test_it_lies_where_it_was_predicted_and_nobody_is_past_the_line(told: Stage) -> None:
    worlds = told.worlds
    (berth,) = told.berths
    (hold,) = told.holds

    assert berth.predicted == berth.chosen
    assert hold.decided == hold.given
    assert not worlds.numa.rejections
    assert not worlds.xpus.rejections
    assert [*worlds.disks.overflows, *worlds.xpus.findings, *worlds.numa.overfilled] == []


async def test_why_says_what_each_concern_says_of_each_node(harbour: Sandbox, told: Stage) -> None:
    data = await ask_for_data(harbour, "why", "train", "-n", NAMESPACE)
    nodes = {it["node"]: it for it in data["recomputed"]["nodes"]}
    ours = {it.name for it in NODES}

    assert data["node"] == "numa-best"
    fitting = [it for it in nodes if nodes[it]["fits"] and it in ours]
    assert fitting == ["numa-best", "numa-dear", "numa-far"]
    assert set(nodes["numa-best"]["scores"]) == {
        "resources", "numa", "xpu", "diskio", "dataset", "power",
    }  # fmt: skip
    assert {it: set(nodes[it]["refusedBy"]) for it in ours if not nodes[it]["fits"]} == {
        "numa-cache": {"diskio"},
        "numa-torn": {"numa"},
        "numa-card": {"xpu"},
    }

    output = await ask(harbour, "why", "train", "-n", NAMESPACE, "--nodes", "6")
    assert "Concerns by node, the best first:" in output
    assert "cannot align container" in output


async def test_a_pod_that_only_observes_is_told_of_the_same_choice(
    harbour: Sandbox, told: Stage
) -> None:
    labels = {"dataset.0.id": "corpus"}
    selector = {"demo.berthmaster.io/story": told.story}
    probe = make_pod(
        "observed",
        request=REQUEST,
        placement="observe",
        labels=labels,
        select=selector,
        limits=LIMITS,
    )
    created = await harbour.client.create(PODS, probe, {"dryRun": "All"})

    assert "affinity" not in created["spec"]
    assert '"node":"numa-best"' in created["metadata"]["annotations"]["berthmaster.io/allocation"]


async def test_the_report_on_observed_pods_says_what_was_missed(
    harbour: Sandbox, told: Stage
) -> None:
    """Two pods observe, and somebody binds one where it costs more, the other far from its data."""
    for name, node in (("seen-dear", "numa-dear"), ("seen-far", "numa-far")):
        pod = make_pod(
            name,
            request=REQUEST,
            placement="observe",
            labels={"dataset.0.id": "corpus"},
            select={"demo.berthmaster.io/story": told.story},
            limits={**LIMITS, "baidu.com/xpu-mem": "1000"},
            schedulerName="somebody-else",
        )
        await create(harbour, NAMESPACE, pod)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        await harbour.client.create(f"{PODS}/{name}/binding", binding)

    data = await ask_for_data(harbour, "observe-report", NAMESPACE)

    assert (data["agreeing"], data["elsewhere"], data["judged"]) == (0, 2, 2)
    report = await ask(harbour, "observe-report", NAMESPACE)
    assert report.startswith("2 of 2 observed pods are on another node than Berthmaster")
    assert data["concerns"]["dataset"]["saved"]["datasetsNearer"] == 1
    # numa-dear costs 6.25 W a core, numa-far 3.75, numa-best 4.6875, for six cores each.
    assert data["concerns"]["power"]["saved"]["watts"] == pytest.approx(37.5 + 22.5 - 2 * 28.1)
