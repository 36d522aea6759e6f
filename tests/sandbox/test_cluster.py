"""The cluster answers, runs pods, and survives the loss of its API server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from berthmaster.cluster.client import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.errors import SandboxError

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


def make_pod(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "any"}], **spec},
    }


async def wait_phase(sandbox: Sandbox, path: str, phase: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        pod = await sandbox.client.get(path)
        if pod["status"].get("phase") == phase:
            return pod
        assert time.monotonic() < deadline, pod["status"]
        await asyncio.sleep(0.05)


async def test_nodes_of_both_kinds_are_ready(sandbox: Sandbox) -> None:
    done = await sandbox.kubectl("get", "nodes", "--no-headers")

    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    expected = {"sandbox-1", "sandbox-2", "sandbox-3", "sim-0001", "sim-0004"}
    assert expected <= set(rows)
    assert {rows[name] for name in expected} == {"Ready"}


async def test_server_tells_the_pinned_version(sandbox: Sandbox) -> None:
    version = await sandbox.client.get("/version")

    assert version["gitVersion"].startswith("v1.36")


async def test_pod_runs_on_a_simulated_node(sandbox: Sandbox, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await sandbox.client.create(pods, make_pod("ship"))

    pod = await wait_phase(sandbox, f"{pods}/ship", "Running")

    assert pod["spec"]["nodeName"].startswith("sim-")
    assert pod["status"]["podIP"].startswith("10.200.")


async def test_pod_of_a_process_node_is_a_process(sandbox: Sandbox, namespace: str) -> None:
    container = {
        "name": "main",
        "image": "berthmaster.io/sandbox/shell",
        "args": ["echo arrived; sleep 600"],
    }
    pod = make_pod(
        "process",
        containers=[container],
        nodeSelector={"kubernetes.io/hostname": "sandbox-1"},
        tolerations=[{"key": "berthmaster.io/sandbox", "operator": "Exists"}],
        terminationGracePeriodSeconds=0,
    )
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await sandbox.client.create(pods, pod)

    await wait_phase(sandbox, f"{pods}/process", "Running")

    assert sandbox.kubelets["sandbox-1"].find_process(namespace, "process") is not None


async def test_created_nodes_have_what_was_asked(sandbox: Sandbox) -> None:
    names = await sandbox.create_nodes(
        2,
        name="crane-{index}",
        cpu="4",
        labels={"pier": "east"},
        extended={"example.com/xpu": "2"},
    )

    try:
        node = await sandbox.client.get(f"/api/v1/nodes/{names[1]}")
        assert node["metadata"]["labels"]["pier"] == "east"
        assert node["status"]["capacity"]["cpu"] == "4"
        assert node["status"]["allocatable"]["example.com/xpu"] == "2"
    finally:
        for name in names:
            await sandbox.client.delete(f"/api/v1/nodes/{name}")


async def test_users_have_no_rights_of_their_own(sandbox: Sandbox) -> None:
    async with await sandbox.connect_as("stranger", "stranger") as client:
        with pytest.raises(ApiError, match="Forbidden"):
            await client.get("/api/v1/nodes")


async def test_kubectl_failure_carries_its_words(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="not found"):
        await sandbox.kubectl("get", "node", "absent")

    done = await sandbox.kubectl("get", "node", "absent", check=False)
    assert done.returncode == 1


async def test_unknown_process_is_named(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match=r"expected one of .*kwok"):
        sandbox.pause("kubelet")


async def test_objects_survive_an_api_server_restart(sandbox: Sandbox, namespace: str) -> None:
    before = sandbox.list_processes()["kube-apiserver"].pid

    await sandbox.restart_apiserver()

    assert sandbox.list_processes()["kube-apiserver"].pid != before
    assert await sandbox.client.get(f"/api/v1/namespaces/{namespace}")
    # The scheduler, kwok and the proxies find their way back.
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await sandbox.client.create(pods, make_pod("late"))
    await wait_phase(sandbox, f"{pods}/late", "Running")
    sandbox.tasks.check()
