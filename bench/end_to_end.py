"""From created to bound: pods by kube-scheduler alone beside ours, in turns, on one control plane.

    python bench/end_to_end.py                      1,000 simulated nodes, 5 turns of 1,000 pods for each of 5 modes
    python bench/end_to_end.py --nodes 5000         the same with 5,000
    python bench/end_to_end.py --modes plain bind   nodes without disks, zones, accelerators, data and meters
    python bench/end_to_end.py --disks              every node has a disk and an IO driver
    python bench/end_to_end.py --zones 8            every node has eight NUMA zones, which its topology tells

A sandbox with Berthmaster installed from config/ runs throughout. In turns, 32 hands create pods of each
of the `--modes` at once; between turns all pods are deleted. Pods per second count from the first create to
the last pod bound.

    (a) plain      does not opt in, and never reaches us
    (b) required   asks for CPU and memory alone
    (c) bind       the same on nodes that are ours alone
    (d) queue      `required` without the call of the webhook while a pod is created: every pod is stored behind
                   its gate, and placed by the queue
    (e) five       asks disk IO, NUMA, XPU, dataset and power at once (`benching/fleets.py`)

With `five` among the modes, every node has what five concerns tell of, in all modes. Pods of the others lie in a
namespace that is left out of the disk books, so that drivers are not told of them; watts are foreseen for them,
as for every pod.

After each turn every pod is counted anew (`benching/counting.py`), and the run ends if one is missing or any node
is past its line, or if a pod of `five` has not got an answer of each concern.

CPU is what each process used above its idle consumption, until hardly anything is written any more, divided
by the pods: it depends less than the clock on who else uses the machine. *Sandbox* is the process that stands
for the kubelets, the service proxy and the drivers; a cluster has those elsewhere. Writes are requests that
change something, as the API server counts them, above those of an idle cluster, without Leases; requests are
these and those that only read, without watches. Bytes are what etcd writes to its log.

With `--disks` pods ask for bandwidth (plain ones do not, but drivers are told of them too), and each
placed pod costs a new list of pods, the driver's answer and a NodeInventory: writes of the vendor's
protocol that the old scheduler needed as well. So it does with `five`, and the status of a NodeXPU besides.

With `--zones` and without `five` (whose nodes have two zones, or so many) pods are Guaranteed, every kubelet's
policy is single-numa-node, and every decision looks at all zones of all nodes. Topologies are written once:
what runs since is in our books alone, as between two reports of an updater, and nothing but the placement
costs anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import aiohttp

from benching import figures, topologies, turns
from benching.counting import Ground
from benching.fleets import CONCERNS, create_fleet, gateways_of
from benching.hands import for_each
from benching.live import DEADLINE_S, Cluster
from benching.modes import (
    FIVE,
    FIVE_NAMESPACE,
    MODES,
    NAMESPACE,
    OF_ALL,
    OF_PARTS,
    TAINT,
    Plan,
    make_pods,
    pods_of,
)
from benching.turns import Turn
from benching.worlds import MetricsPage
from berthmaster_sandbox.chaos.recount import decided
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from berthmaster_sandbox.scraping import METRICS_PORT, make_reader
from berthmaster_sandbox.world.disk_books import FAKE_DISKS
from berthmaster_sandbox.world.diskio import DiskWorld

SYSTEM = "berthmaster-system"
ZONES_OF_FIVE = 2
LASTING = "24h"
# The model of the simulated world's disks: every access costs what it says.
MODELS = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "normalization-func", "namespace": "ioi-system"},
    "data": {
        "diskVendors": json.dumps(
            [
                {"vendor": disk.vendor, "model": disk.model, "readRatio": {}, "writeRatio": {}}
                for disk in FAKE_DISKS.values()
            ]
        )
    },
}
POLICY = {
    "apiVersion": "berthmaster.io/v1alpha1",
    "kind": "PlacementPolicy",
    "metadata": {"name": "bench"},
    "spec": {
        "exclusiveTaints": [TAINT],
        # For mode `five`: see the top, and what is told of nodes once is told for good.
        "concerns": {
            "diskio": {"nsWhiteList": [NAMESPACE], "staleAfter": LASTING},
            "numa": {"staleAfter": LASTING},
            "power": {"staleAfter": LASTING},
        },
    },
}


async def measure(plan: Plan) -> dict[str, list[Turn]]:
    """Return the turns by mode; all nodes are ours alone, which only `bind` makes use of."""
    found: dict[str, list[Turn]] = {mode: [] for mode in plan.modes}
    began_s = time.monotonic()
    _say(
        f"{plan.nodes:,} nodes, {plan.turns} turns of {plan.pods:,} pods for each of {len(plan.modes)} modes: "
        f"about {plan.expected_s / 60:.0f} minutes on two quiet cores"
    )
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(
            Sandbox.start(process_nodes=2, images=IMAGES, verbose=True)
        )
        await install(sandbox)
        ground = await _make_ground(stack, sandbox, plan)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        page = await _find_page(sandbox, session)
        cluster = Cluster(sandbox, await _find_pids(sandbox), page, ground)
        await cluster.settled()
        _say(f"nodes, and what is told of them, stand after {time.monotonic() - began_s:.0f} s")
        # The first pods of each mode warm caches, and nobody counts them.
        few = replace(plan, pods=50, turns=1)
        await cluster.learn_idle()
        for mode in plan.modes:
            await cluster.turn(few, mode)
        await cluster.learn_idle()
        rounds_s = time.monotonic()
        for number in range(1, plan.turns + 1):
            for mode in plan.modes:
                turn = await cluster.turn(plan, mode)
                _say(f"turn {number} of {plan.turns}, {mode}: {turn.pods_per_s:.0f} pods/s")
                found[mode].append(turn)
            left_s = (time.monotonic() - rounds_s) / number * (plan.turns - number)
            _say(f"{left_s / 60:.1f} minutes to go")
    return found


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


async def _make_ground(stack: AsyncExitStack, sandbox: Sandbox, plan: Plan) -> Ground:
    """Make the nodes and everything that is told of them, and the namespaces of the pods."""
    client = sandbox.client
    await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(POLICY))
    for name in (NAMESPACE, FIVE_NAMESPACE):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await client.create("/api/v1/namespaces", namespace)
    machine = None
    if plan.disks or plan.has_fleet:
        await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(MODELS))
        disks = await stack.enter_async_context(
            DiskWorld(client, uncounted=(NAMESPACE,) if plan.has_fleet else ())
        )
    if plan.has_fleet:
        machine = await create_fleet(
            sandbox,
            disks,
            count=plan.nodes,
            zones=plan.zones or ZONES_OF_FIVE,
            namespace=FIVE_NAMESPACE,
            taints=[TAINT],
            deadline_s=DEADLINE_S,
        )
        await _until_answered(sandbox, plan)
    else:
        nodes = await _create_nodes(sandbox, plan)
        if plan.disks:
            await for_each(nodes, disks.add_node)
            await topologies.until_published(
                client, plan.nodes, field="disks", deadline_s=DEADLINE_S
            )
    stored: list[Any] = []
    async for page in client.list_pages("/api/v1/nodes"):
        stored += json.loads(page)["items"]
    return Ground(nodes=stored, machine=machine, gateways=gateways_of(plan.nodes))


async def _until_answered(sandbox: Sandbox, plan: Plan) -> None:
    """Wait until the webhook's answer to a pod of each workload has a word of each concern."""
    for pod in make_pods(FIVE, plan):
        probe = {**pod, "metadata": {**pod["metadata"], "name": "probe"}}
        answer: Mapping[str, Any] = {}
        async with asyncio.timeout(DEADLINE_S):
            while not answer.get("scores", {}).keys() >= CONCERNS:
                await asyncio.sleep(0.5)
                seen = await sandbox.client.create(pods_of(FIVE), probe, {"dryRun": "All"})
                answer = decided(seen)


async def _create_nodes(sandbox: Sandbox, plan: Plan) -> list[str]:
    """Return the nodes' names once they are Ready and, with zones, known with them."""
    if not plan.zones:
        return await sandbox.create_nodes(plan.nodes, taints=[TAINT])
    machine = topologies.build_machine(plan.zones)
    there = {name: str(amount) for name, amount in machine.allocatable().items()}
    nodes = await sandbox.create_nodes(
        plan.nodes,
        cpu=there.pop("cpu"),
        memory=there.pop("memory"),
        pods=int(there.pop("pods")),
        extended=there,
        taints=[TAINT],
    )
    await topologies.write_topologies(sandbox.client, nodes, machine)
    await topologies.until_published(
        sandbox.client, plan.nodes, field="zones", deadline_s=DEADLINE_S
    )
    return nodes


async def _find_pids(sandbox: Sandbox) -> dict[str, int]:
    pids = {name: it.pid for name, it in sandbox.list_processes().items()}
    found = await sandbox.client.get(f"/api/v1/namespaces/{SYSTEM}/pods")
    for pod in found["items"]:
        kubelet = sandbox.kubelets.get(pod["spec"].get("nodeName", ""))
        pid = kubelet and kubelet.find_process(SYSTEM, pod["metadata"]["name"])
        if pid:
            name = pod["metadata"]["labels"]["app.kubernetes.io/name"]
            pids[name.removeprefix("berthmaster-")] = pid
    pids["sandbox"] = os.getpid()
    return pids


async def _find_page(sandbox: Sandbox, session: aiohttp.ClientSession) -> MetricsPage:
    """Return the webhook's metrics."""
    selector = {"labelSelector": "app.kubernetes.io/name=berthmaster-webhook"}
    found = await sandbox.client.get(f"/api/v1/namespaces/{SYSTEM}/pods", selector)
    address = next(it["status"]["podIP"] for it in found["items"] if it["status"].get("podIP"))
    # A pod's address stands for a process that listens on its loopback twin.
    return MetricsPage(
        session=session,
        host=f"127.{address.partition('.')[2]}",
        port=METRICS_PORT,
        token=await make_reader(sandbox.client),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=1000, help="of each mode, each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        help="default: the five of (a) to (e), with --disks or --zones plain and required",
    )
    parser.add_argument("--disks", action="store_true", help="disks and drivers on every node")
    parser.add_argument("--zones", type=int, default=0, help="NUMA zones of each node")
    parser.add_argument("--hands", type=int, default=32, help="creates at the same time")
    given = parser.parse_args()
    modes = given.modes or (OF_PARTS if given.disks or given.zones else OF_ALL)
    if given.disks and FIVE in modes:
        parser.error("with mode five every node has a disk, and pods of other modes ask none of it")
    plan = Plan(
        nodes=given.nodes,
        pods=given.pods,
        turns=given.turns,
        modes=tuple(modes),
        disks=given.disks,
        zones=given.zones,
        hands=given.hands,
    )
    figures.report("From created to bound", *turns.all_tables(asyncio.run(measure(plan))))


if __name__ == "__main__":
    main()
