"""Old manifests for accelerators run unchanged, and their device plugins find nothing wrong."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from berthmaster.cluster.client import PatchKind
from berthmaster.cluster.errors import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.xpu import XpuWorld
from berthmaster_sandbox.world.xpu_hosts import Dialect, Habits, make_host
from support.harbour import (
    POLICIES,
    inventory_of,
    make_pod,
    new_namespace,
    until,
    until_bound,
    until_waiting,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(240),
]

PROJECT = Path(__file__).parents[2]
SAMPLE = PROJECT / "config/samples/placement-policy-xpu.yaml"
NAMESPACE = "accelerators"
NODE_XPUS = "/apis/berthmaster.io/v1alpha1/nodexpus"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
TAINT = {"key": "accelerators", "effect": "NoSchedule"}
TOLERATION = {"key": "accelerators", "operator": "Exists"}
RESOURCES = {
    "share": "baidu.com/xpu-mem",
    "slices": "kunlunxin.com/vxpu",
    "memory": "kunlunxin.com/vxpu-memory",
}
SHARE, SLICES = "xpu-end-share", "xpu-end-slices"


def old_pod(name: str, **amounts: int) -> dict[str, Any]:
    """Return a pod that asks for nothing but devices, as users of the old systems wrote it."""
    limits = {RESOURCES[key]: str(it) for key, it in amounts.items()}
    found = make_pod(name, placement=None, limits=limits, tolerations=[TOLERATION])
    del found["metadata"]["annotations"]
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(harbour: Sandbox) -> AsyncIterator[XpuWorld]:
    """A host of four shared devices and one of two sliced cards, and the policies in force."""
    await new_namespace(harbour, NAMESPACE)
    await harbour.kubectl("apply", "-f", str(SAMPLE))
    habits = Habits(allocate_s=0.2, pickup_jitter_s=0.2)
    hosts = [
        make_host(SHARE, memory_mib=8064, habits=habits),
        make_host(SLICES, dialects=[Dialect.VXPU], devices=2, memory_mib=98304, habits=habits),
    ]
    async with XpuWorld(harbour.client) as running:
        for host in hosts:
            await running.add_host(host, taints=[TAINT])
        await wait_nodes_ready(harbour.client, [it.name for it in hosts])

        async def is_taken_over() -> bool:
            stored = await harbour.client.create(PODS, old_pod("probe", share=1), {"dryRun": "All"})
            annotations = stored["metadata"].get("annotations", {})
            return bool(annotations.get("berthmaster.io/policy") == "xpu")

        await until(is_taken_over, bool, 30)
        for host in hosts:
            await until(partial(inventory_of, harbour, host.name), has_xpus, 30)
        yield running
        for host in hosts:
            await harbour.client.delete(f"/api/v1/nodes/{host.name}")
    for policy in ("xpu", "old-hami-scheduler"):
        await harbour.client.delete(f"{POLICIES}/{policy}")


def has_xpus(status: dict[str, Any]) -> bool:
    return bool(status.get("xpus"))


async def pod_of(harbour: Sandbox, name: str) -> dict[str, Any]:
    return await harbour.client.get(f"{PODS}/{name}")


async def until_running(harbour: Sandbox, name: str) -> dict[str, Any]:
    found: dict[str, Any] = await until(
        lambda: pod_of(harbour, name), lambda it: bool(it["status"].get("phase") == "Running"), 40
    )
    return found


async def test_seeds_deployment_runs_unchanged(harbour: Sandbox, world: XpuWorld) -> None:
    """Two replicas of 4500 MiB: one device each, one after the other past a plugin without identity."""
    page = (PROJECT / "docs/xpu.md").read_text(encoding="utf-8")
    deployment = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    spec = deployment["spec"]["template"]["spec"]
    spec["tolerations"] = [TOLERATION]
    await harbour.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=json.dumps(deployment))

    async def running() -> list[dict[str, Any]]:
        found = await harbour.client.get(PODS, {"labelSelector": "app=xpu-pod"})
        return [it for it in found["items"] if it["status"].get("phase") == "Running"]

    pods = await until(running, lambda it: len(it) == 2, 60)

    marks = [it["metadata"]["annotations"] for it in pods]
    assert sorted(it["BAIDU_COM_XPU_MEM_IDX"] for it in marks) == ["0", "1"]
    assert {it["BAIDU_COM_XPU_MEM_ASSIGNED"] for it in marks} == {"true"}
    assert {it["spec"]["nodeName"] for it in pods} == {SHARE}
    assert (world.findings, world.rejections) == ([], {})

    async def shown() -> dict[str, Any]:
        found = await harbour.client.get(f"{NODE_XPUS}/{SHARE}")
        totals: dict[str, Any] = found.get("status", {}).get("totals", {})
        return totals

    await until(shown, lambda it: bool(it.get("allocatedMiB") == 9000), 30)
    done = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "berthmaster.cli.inspect_xpushare", SHARE),
        env={"KUBECONFIG": str(harbour.kubeconfig), "PATH": ""},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(done.communicate(), 60)
    row = out.decode().splitlines()[1].split()
    assert row[2:] == ["4500/8064", "4500/8064", "0/8064", "0/8064", "9000/32256"]


async def test_pod_waits_for_room_on_one_device_and_says_so(
    harbour: Sandbox, world: XpuWorld
) -> None:
    for name in ("large-a", "large-b"):
        await harbour.client.create(PODS, old_pod(name, share=8000))
        await until_running(harbour, name)
    await harbour.client.create(PODS, old_pod("waits", share=7000))

    _, message = await until_waiting(harbour, NAMESPACE, "waits")
    assert "Insufficient XPU Memory in one device" in message

    await harbour.client.delete(f"{PODS}/large-b")
    await until_running(harbour, "waits")
    assert (world.findings, world.rejections) == ([], {})


async def test_slices_with_memory_are_bound_without_hamis_scheduler(
    harbour: Sandbox, world: XpuWorld
) -> None:
    names = [f"slice-{number}" for number in range(4)]
    for name in names:
        pod = old_pod(name, slices=1, memory=30000)
        pod["spec"]["schedulerName"] = "hami-scheduler"
        await harbour.client.create(PODS, pod)
    for name in names:
        found = await until_running(harbour, name)
        assert found["metadata"]["annotations"]["berthmaster.io/policy"] == "old-hami-scheduler"

    async def shown() -> list[tuple[int, int]]:
        found = await harbour.client.get(f"{NODE_XPUS}/{SLICES}")
        devices = found.get("status", {}).get("devices", ())
        return [(it["allocatedMiB"], it.get("sliceMiB", 0)) for it in devices]

    await until(shown, lambda it: it == [(98304, 49152)] * 2, 30)
    assert (world.findings, world.rejections) == ([], {})


async def test_what_a_user_says_of_devices_is_dropped_and_noted(
    harbour: Sandbox, world: XpuWorld
) -> None:
    pod = old_pod("forger", share=100)
    pod["metadata"]["annotations"] = {
        "BAIDU_COM_XPU_MEM_IDX": "77",
        "BAIDU_COM_XPU_MEM_ASSIGNED": "true",
        "hami.io/bind-phase": "success",
    }
    await harbour.client.create(PODS, pod)
    await until_bound(harbour, NAMESPACE, "forger")

    marks = (await pod_of(harbour, "forger"))["metadata"]["annotations"]
    assert marks["BAIDU_COM_XPU_MEM_IDX"] in {"0", "1", "2", "3"}
    assert "hami.io/bind-phase" not in marks
    assert marks["berthmaster.io/dropped"].startswith("BAIDU_COM_XPU_MEM_IDX,")
    await until_running(harbour, "forger")
    assert (world.findings, world.rejections) == ([], {})


@pytest.mark.usefixtures("world")
async def test_devices_that_somebody_took_off_the_list_come_back_and_wishes_stay(
    harbour: Sandbox,
) -> None:
    path = f"{NODE_XPUS}/{SLICES}"

    async def devices() -> list[tuple[int, bool]]:
        found = await harbour.client.get(path)
        return [(it["index"], it["cordoned"]) for it in found["spec"]["devices"]]

    await until(devices, lambda it: len(it) == 2, 30)
    first = (await harbour.client.get(path))["spec"]["devices"][0]

    edited = {"spec": {"devices": [{**first, "cordoned": True}]}}
    await harbour.client.patch(path, edited, PatchKind.MERGE)

    await until(devices, lambda it: it == [(0, True), (1, False)], 30)
    await harbour.client.patch(path, {"spec": {"devices": [first]}}, PatchKind.MERGE)
    await until(devices, lambda it: it == [(0, False), (1, False)], 30)


@pytest.mark.usefixtures("world")
async def test_devices_of_one_id_are_refused_in_words(harbour: Sandbox) -> None:
    async def attempt(*ids: str) -> None:
        devices = [{"index": index, "id": it, "memoryMiB": 8} for index, it in enumerate(ids)]
        node_xpu = {
            "apiVersion": "berthmaster.io/v1alpha1",
            "kind": "NodeXPU",
            "metadata": {"name": "tried"},
            "spec": {"devices": devices},
        }
        await harbour.client.create(NODE_XPUS, node_xpu, {"dryRun": "All"})

    await attempt("a", "b", "c")
    with pytest.raises(ApiError, match=r"spec\.devices: .*ids must be unique"):
        await attempt("a", "b", "a")
    with pytest.raises(ApiError, match=r"spec\.devices: .*ids must be unique"):
        await attempt("a", "a")
