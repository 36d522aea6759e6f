"""The same bursts on a real control plane with Berthmaster installed; what came of them is read from the API server.

Nodes, their kubelets' answers and their updaters' lateness are the simulated world's (`world/numa.py`), which
knows nothing of us. Pods come from several hands at once, so neither their order nor that of their kubelets is
exactly the plan's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from benching.bursts import Manifest, Outcome, Plan, draw
from benching.topologies import until_published
from berthmaster.api import names
from berthmaster.cluster.client import Client
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from berthmaster_sandbox.simnodes import wait_nodes_ready
from berthmaster_sandbox.world.numa import NumaWorld, UpdaterHabits

NAMESPACE = "bench"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
HANDS = 16
DEADLINE_S = 600.0
# Nothing has changed for so long: longer than a report is late, and waits to be published.
QUIET_S = 20.0
_POLL_S = 2.0


async def play_on_a_cluster(plan: Plan) -> Outcome:
    """Return what came of a plan, as the API server's objects and the kubelets' books tell it.

    Raises SandboxError, ClusterError, TimeoutError.
    """
    drawn = draw(plan)
    async with Sandbox.start(process_nodes=2, images=IMAGES, verbose=True) as sandbox:
        await install(sandbox)
        async with NumaWorld(sandbox.client, seed=plan.seed) as world:
            for name, (machine, report) in drawn.nodes.items():
                habits = UpdaterHabits(report=report, delay_s=plan.look_s, lag_s=plan.lag_s)
                await world.add_node(name, machine, habits=habits)
            await wait_nodes_ready(sandbox.client, list(drawn.nodes))
            await until_published(sandbox.client, plan.nodes, field="zones", deadline_s=DEADLINE_S)
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
            await sandbox.client.create("/api/v1/namespaces", namespace)
            await _create(sandbox.client, plan, drawn.pods)
            pods = await _until_quiet(sandbox.client)
            outcome = Outcome(overfilled={*world.overfilled, *await world.judge()})
    policies = {
        name: machine.settings.topology_manager_policy for name, (machine, _) in drawn.nodes.items()
    }
    _count(outcome, pods, policies)
    return outcome


async def _create(client: Client, plan: Plan, pods: list[Manifest]) -> None:
    began_s = time.monotonic()
    for number, start in enumerate(range(0, len(pods), plan.burst)):
        await asyncio.sleep(max(0.0, began_s + number * plan.every_s - time.monotonic()))
        left = iter(pods[start : start + plan.burst])
        async with asyncio.TaskGroup() as hands:
            for _ in range(HANDS):
                hands.create_task(_create_some(client, left))


async def _create_some(client: Client, pods: Iterable[Manifest]) -> None:
    for pod in pods:
        metadata = {
            "name": pod["metadata"]["name"],
            "annotations": {names.PLACEMENT: "required"},
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}
        await client.create(PODS, body, timeout_s=60)


async def _until_quiet(client: Client) -> list[Manifest]:
    """Return the pods once none of them has changed for `QUIET_S`."""
    seen: dict[str, str] = {}
    changed_s = time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            pods: list[Manifest] = (await client.get(PODS, timeout_s=60))["items"]
            now = {
                it["metadata"]["name"]: f"{it['spec'].get('nodeName')} {it['status'].get('phase')}"
                for it in pods
            }
            if now != seen:
                seen, changed_s = now, time.monotonic()
            elif time.monotonic() - changed_s > QUIET_S:
                return pods
            await asyncio.sleep(_POLL_S)


def _count(outcome: Outcome, pods: Iterable[Manifest], policies: dict[str, str]) -> None:
    for pod in pods:
        policy = policies.get(pod["spec"].get("nodeName", ""))
        if policy is None:
            continue
        if pod["status"].get("phase") == "Failed":
            outcome.rejections[policy, pod["status"].get("reason", "")] += 1
        else:
            outcome.placed[policy] += 1
