"""Nodes with XPUs on the real control plane: kubelets, plugins that may die, and the judge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.xpu import XpuWorld
from berthmaster_sandbox.world.xpu_books import Fault
from berthmaster_sandbox.world.xpu_hosts import HANDSHAKE, Dialect, Habits, make_host
from support.xpu_pods import (
    make_share_pod,
    make_slice_pod,
    share_annotations,
    slice_annotations,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

# Keeps other tests' pods away.
TAINT = {"key": "test", "value": "xpu", "effect": "NoSchedule"}
TOLERATION = {"key": "test", "operator": "Exists"}


@pytest_asyncio.fixture(loop_scope="session")
async def world(sandbox: Sandbox) -> AsyncIterator[XpuWorld]:
    """A world with a node for each of two dialects, whose plugins are back after half a second."""
    habits = Habits(restart_s=0.5, allocate_s=0.1)
    hosts = [
        make_host("xpu-share", habits=habits),
        make_host("xpu-slice", dialects=[Dialect.VXPU], devices=2, habits=habits),
    ]
    async with XpuWorld(sandbox.client) as running:
        try:
            for host in hosts:
                await running.add_host(host, taints=[TAINT])
            await wait_nodes_ready(sandbox.client, [it.name for it in hosts])
            yield running
        finally:
            for host in hosts:
                await sandbox.client.delete(f"/api/v1/nodes/{host.name}")


async def until(
    sandbox: Sandbox, path: str, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found = await sandbox.client.get(path)
        if is_so(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def create(sandbox: Sandbox, namespace: str, pod: dict[str, Any], node: str) -> str:
    """Create a pod that names its node, and return its path."""
    name = pod["metadata"]["name"]
    pod["metadata"] = {
        "name": name, "annotations": pod["metadata"].get("annotations", {})
    }  # fmt: skip
    pod["spec"] |= {"nodeName": node, "tolerations": [TOLERATION]}
    path = f"/api/v1/namespaces/{namespace}/pods"
    await sandbox.client.create(path, {"apiVersion": "v1", "kind": "Pod", **pod, "status": {}})
    return f"{path}/{name}"


def has_phase(phase: str) -> Callable[[dict[str, Any]], bool]:
    return lambda pod: bool(pod["status"].get("phase") == phase)


async def test_share_pods_get_devices_until_none_is_left(
    sandbox: Sandbox, world: XpuWorld, namespace: str
) -> None:
    node = await sandbox.client.get("/api/v1/nodes/xpu-share")
    assert node["status"]["capacity"]["baidu.com/xpu-mem"] == "32256"
    assert node["status"]["capacity"]["baidu.com/xpu-count"] == "4"

    for at in range(4):
        annotations = share_annotations(str(at), 8000, assumed_ns=at)
        pod = make_share_pod(f"p{at}", 8000, annotations=annotations)
        path = await create(sandbox, namespace, pod, "xpu-share")
        running = await until(sandbox, path, has_phase("Running"))
        assert running["metadata"]["annotations"]["BAIDU_COM_XPU_MEM_ASSIGNED"] == "true"
    await world.settled()
    assert [world.kubelet("xpu-share").books.used(it) for it in range(4)] == [8000] * 4
    assert world.findings == []

    over = make_share_pod("over", 64, annotations=share_annotations("0", 65))
    over["spec"]["containers"][0]["resources"]["limits"] = {"baidu.com/xpu-mem": "65"}
    over["spec"]["containers"][0]["resources"]["requests"] = {"baidu.com/xpu-mem": "65"}
    path = await create(sandbox, namespace, over, "xpu-share")
    await until(sandbox, path, has_phase("Running"))
    await world.settled()
    assert [it.device for it in world.found(Fault.OVERCOMMITTED)] == [0]

    await sandbox.client.delete(f"/api/v1/namespaces/{namespace}/pods/p0")
    deadline = time.monotonic() + 30
    while world.kubelet("xpu-share").books.used(0) != 65:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert world.admitted == 5


async def test_dead_plugin_takes_its_resource_away_and_comes_back(
    sandbox: Sandbox, world: XpuWorld, namespace: str
) -> None:
    path = "/api/v1/nodes/xpu-slice"
    node = await sandbox.client.get(path)
    assert node["metadata"]["annotations"][HANDSHAKE].startswith("Reported ")
    one = slice_annotations("xpu-slice", "xpu-slice-board0-0,XPU,24576,25:;")

    world.crash("xpu-slice", Dialect.VXPU)
    early = make_slice_pod("early", 1, annotations=one)
    failed = await until(
        sandbox, await create(sandbox, namespace, early, "xpu-slice"), has_phase("Failed")
    )
    assert failed["status"]["reason"] == "UnexpectedAdmissionError"
    assert "no healthy devices present" in failed["status"]["message"]

    await until(
        sandbox, path, lambda it: bool(it["status"]["allocatable"]["kunlunxin.com/vxpu"] == "8")
    )
    late = make_slice_pod("late", 1, annotations=one)
    running = await until(
        sandbox, await create(sandbox, namespace, late, "xpu-slice"), has_phase("Running")
    )
    assert running["metadata"]["annotations"]["hami.io/bind-phase"] == "success"
    assert world.findings == []
    assert list(world.rejections) == [f"{namespace}/early"]


async def test_broken_device_is_told_of(sandbox: Sandbox, world: XpuWorld) -> None:
    await world.set_health("xpu-share", 3, is_healthy=False)

    node = await sandbox.client.get("/api/v1/nodes/xpu-share")
    assert node["status"]["allocatable"]["baidu.com/xpu-mem"] == "24192"
    assert node["status"]["capacity"]["baidu.com/xpu-mem"] == "32256"


async def test_only_nodes_that_kwok_leaves_alone_can_have_xpus(world: XpuWorld) -> None:
    with pytest.raises(ValueError, match="xpu-"):
        await world.add_host(make_host("sim-0001"))
