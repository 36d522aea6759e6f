"""Nodes with NUMA zones on the real control plane: kubelets, updaters, and the judge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from berthmaster.cluster.client import ApiError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import install_kinds
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.numa import REPORTS, NumaWorld, UpdaterHabits
from berthmaster_sandbox.world.numa_fingerprints import fingerprint
from berthmaster_sandbox.world.numa_machines import Device, KubeletSettings, Machine, Zone
from berthmaster_sandbox.world.numa_reports import Dialect, ReportHabits, amounts_of

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

CRD = Path(__file__).parents[2] / "crds" / "topology.node.k8s.io_noderesourcetopologies.yaml"
GI = 2**30
GPU = "vendor.example/gpu"
MACHINE = Machine(
    zones=(
        Zone(id=0, cpus=5, memory=17 * GI, reserved_cpus=1, reserved_memory={"memory": GI}),
        Zone(id=1, cpus=5, memory=17 * GI, reserved_cpus=1, reserved_memory={"memory": GI}),
    ),
    devices=(Device(resource=GPU, id="g", zones=(1,)),),
    settings=KubeletSettings(
        topology_manager_policy="single-numa-node",
        cpu_manager_policy="static",
        memory_manager_policy="Static",
    ),
)
# Keeps other tests' pods away.
TAINT = {"key": "test", "value": "numa", "effect": "NoSchedule"}
NFD = UpdaterHabits(delay_s=0.2)
RTE = UpdaterHabits(delay_s=0.2, report=ReportHabits(dialect=Dialect.RTE))


@pytest_asyncio.fixture(loop_scope="session")
async def world(sandbox: Sandbox) -> AsyncIterator[NumaWorld]:
    """A world with the node `numa-a`, told of by NFD, and `numa-b`, by RTE."""
    await install_kinds(sandbox, CRD)
    async with NumaWorld(sandbox.client) as running:
        try:
            await running.add_node("numa-a", MACHINE, habits=NFD, taints=[TAINT])
            await running.add_node("numa-b", MACHINE, habits=RTE, taints=[TAINT])
            await wait_nodes_ready(sandbox.client, ["numa-a", "numa-b"])
            yield running
        finally:
            for node in ("numa-a", "numa-b"):
                await sandbox.client.delete(f"/api/v1/nodes/{node}")
                with suppress(ApiError):
                    await sandbox.client.delete(f"{REPORTS}/{node}")


def make_pod(name: str, node: str, *, cpu: int, **extra: str) -> dict[str, Any]:
    """Return a Guaranteed pod that a required node affinity pins."""
    limits = {"cpu": str(cpu), "memory": "2Gi", **extra}
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "main", "image": "any", "resources": {"limits": limits}}],
            "tolerations": [{"key": "test", "operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
            },
        },
    }


async def until_pod(
    sandbox: Sandbox, path: str, is_so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        pod = await sandbox.client.get(path)
        if is_so(pod["status"]):
            return pod
        assert time.monotonic() < deadline, pod["status"]
        await asyncio.sleep(0.05)


async def until_free(
    sandbox: Sandbox, node: str, expected: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """Wait until a report has these amounts available, among others."""
    deadline = time.monotonic() + 60
    found: dict[str, dict[str, int]] = {}
    while True:
        reports = await sandbox.client.get(REPORTS)
        for report in (it for it in reports["items"] if it["metadata"]["name"] == node):
            found = amounts_of(report)
            if all(found[zone].items() >= amounts.items() for zone, amounts in expected.items()):
                return dict(report)
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


def attributes_of(report: dict[str, Any]) -> dict[str, str]:
    return {it["name"]: it["value"] for it in report["attributes"]}


async def test_zones_fill_and_one_too_many_is_rejected(
    sandbox: Sandbox, world: NumaWorld, namespace: str
) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await until_free(sandbox, "numa-a", {"node-0": {"cpu": 4}, "node-1": {"cpu": 4, GPU: 1}})

    for name in ("first", "second"):
        await sandbox.client.create(pods, make_pod(name, "numa-a", cpu=3))
        await until_pod(sandbox, f"{pods}/{name}", lambda it: it["phase"] == "Running")
    # Two CPUs are free on the node, and so kube-scheduler sends it, but one in each zone.
    await sandbox.client.create(pods, make_pod("third", "numa-a", cpu=2))
    third = await until_pod(sandbox, f"{pods}/third", lambda it: it["phase"] == "Failed")

    assert third["spec"]["nodeName"] == "numa-a"
    assert third["status"]["reason"] == "TopologyAffinityError"
    assert third["status"]["message"] == (
        "Pod was rejected: Resources cannot be allocated with Topology locality"
    )
    assert "containerStatuses" not in third["status"]
    assert (world.admitted, dict(world.rejected)) == (2, {"TopologyAffinityError": 1})
    assert world.overfilled == ()
    assert await world.judge() == []

    report = await until_free(
        sandbox,
        "numa-a",
        {"node-0": {"cpu": 1, "memory": 14 * GI}, "node-1": {"cpu": 1, "memory": 14 * GI}},
    )
    assert report["topologyPolicies"] == ["SingleNUMANodeContainerLevel"]
    assert attributes_of(report) == {
        "topologyManagerPolicy": "single-numa-node",
        "topologyManagerScope": "container",
        "nodeTopologyPodsFingerprint": fingerprint([(namespace, "first"), (namespace, "second")]),
    }

    # What is deleted is free again, for the next pod and in the next report.
    await sandbox.client.delete(f"{pods}/first")
    await until_free(sandbox, "numa-a", {"node-0": {"cpu": 4, "memory": 16 * GI}})
    await sandbox.client.create(pods, make_pod("fourth", "numa-a", cpu=4))
    await until_pod(sandbox, f"{pods}/fourth", lambda it: it["phase"] == "Running")
    await world.settled()
    assert world.kubelet("numa-a").free_cpus(0) == 0


async def test_report_is_as_late_as_its_updater(
    sandbox: Sandbox, world: NumaWorld, namespace: str
) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await world.settled()
    world.set_habits("numa-b", UpdaterHabits(lag_s=3600, report=RTE.report))

    await sandbox.client.create(pods, make_pod("held", "numa-b", cpu=4, **{GPU: "1"}))
    await until_pod(sandbox, f"{pods}/held", lambda it: it["phase"] == "Running")

    assert amounts_of(await sandbox.client.get(f"{REPORTS}/numa-b"))["node-1"][GPU] == 1
    with pytest.raises(TimeoutError):
        await world.settled(deadline_s=0.5)
    world.stop_updater("numa-b")
    world.set_habits("numa-b", RTE)
    world.start_updater("numa-b")

    report = await until_free(sandbox, "numa-b", {"node-1": {"cpu": 0, GPU: 0}})
    assert attributes_of(report)["nodeTopologyPodsFingerprintMethod"] == "with-exclusive-resources"
    assert report["metadata"]["ownerReferences"][0]["kind"] == "Node"
    assert "topologyPolicies" not in report


async def test_pods_that_were_there_before_are_admitted(
    sandbox: Sandbox, world: NumaWorld, namespace: str
) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await sandbox.create_nodes(1, name="numa-c", cpu="8", memory="32Gi")
    try:
        await sandbox.client.create(pods, make_pod("early", "numa-c", cpu=2))
        await until_pod(sandbox, f"{pods}/early", lambda it: bool(it.get("conditions")))

        await world.add_node("numa-c", MACHINE, habits=NFD)

        await until_pod(sandbox, f"{pods}/early", lambda it: it["phase"] == "Running")
        await until_free(sandbox, "numa-c", {"node-0": {"cpu": 2}})
    finally:
        await sandbox.client.delete("/api/v1/nodes/numa-c")
        await sandbox.client.delete(f"{REPORTS}/numa-c")


async def test_only_nodes_that_kwok_leaves_alone_can_have_zones(world: NumaWorld) -> None:
    with pytest.raises(ValueError, match="numa-"):
        await world.add_node("sim-0001", MACHINE)
