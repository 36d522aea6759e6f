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
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from benching import creating, figures, topologies, turns
from benching.counting import Ground, find_faults
from benching.fleets import CONCERNS, WORKLOADS, create_fleet, gateways_of
from benching.hands import for_each
from benching.readings import Usage
from benching.turns import BYTES, READS, Turn
from benching.worlds import MetricsPage
from berthmaster.api import names
from berthmaster.cluster.errors import ApiError, OutcomeUnknownError
from berthmaster_sandbox.chaos.recount import decided
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from berthmaster_sandbox.processes import build_environment
from berthmaster_sandbox.scraping import METRICS_PORT, make_reader
from berthmaster_sandbox.world.disk_books import FAKE_DISKS
from berthmaster_sandbox.world.diskio import DiskWorld

SYSTEM = "berthmaster-system"
NAMESPACE, FIVE_NAMESPACE = "bench", "bench-five"
HOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-berthmaster"
QUEUE, FIVE = "queue", "five"
MODES = ("plain", "required", "preferred", "bind", QUEUE, FIVE)
OF_ALL = ("plain", "required", "bind", QUEUE, FIVE)
OF_PARTS = ("plain", "required")
ZONES_OF_FIVE = 2
IDLE_S = 10.0
SETTLE_S = 3.0
# What may still be written, in requests per second, when everything is told: kwok's nodes look well now and then.
QUIET_WRITES, QUIET_WRITES_PER_NODE = 3.0, 1 / 400
DEADLINE_S = 600.0
LASTING = "24h"
# How long things take on a quiet machine of two cores, to say at the start how long a run will.
START_S, NODE_S, NODE_OF_FIVE_S, TURN_S, POD_S = 45.0, 0.02, 0.22, 14.0, 0.014
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
# A taint of nodes that are ours alone: `bind` wants it, and it changes nothing for the others.
TAINT = {"key": "example.com/berthmaster-only", "effect": "NoSchedule"}
TOLERATION = {"key": TAINT["key"], "operator": "Exists"}
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
_REQUEST = re.compile(r"apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>\S+)")
_LOGGED = re.compile(r"^etcd_disk_wal_write_bytes_total (?P<count>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_DECISION = re.compile(r'berthmaster_decisions_total\{mode="[^"]*",outcome="(?P<outcome>[^"]*)"\}')
_VERBS = {"POST", "PUT", "PATCH", "DELETE", "APPLY"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure."""

    nodes: int
    pods: int
    turns: int
    modes: tuple[str, ...]
    disks: bool
    zones: int
    hands: int

    @property
    def has_fleet(self) -> bool:
        """Return whether every concern is to know something of each node."""
        return FIVE in self.modes

    @property
    def expected_s(self) -> float:
        """Return how long it will take, about, on a quiet machine of two cores."""
        set_up_s = START_S + self.nodes * (NODE_OF_FIVE_S if self.has_fleet else NODE_S)
        turn_s = TURN_S + self.pods * POD_S
        return set_up_s + len(self.modes) * (TURN_S + self.turns * turn_s)


class Cluster:
    """The sandbox with everything whose costs count."""

    def __init__(
        self,
        sandbox: Sandbox,
        pids: Mapping[str, int],
        page: MetricsPage,
        ground: Ground,
    ) -> None:
        self.sandbox = sandbox
        self.pids = pids
        self._ground = ground
        self._page = page
        self._idle_cpu: dict[str, float] = {}
        self._idle_counts: dict[str, float] = {}

    async def learn_idle(self) -> None:
        """Measure what everything uses while nothing happens."""
        used, counts, seconds = await self._span(asyncio.sleep(IDLE_S))
        self._idle_cpu = {name: it.cpu_s / seconds for name, it in used.items()}
        self._idle_counts = {name: count / seconds for name, count in counts.items()}

    async def turn(self, plan: Plan, mode: str) -> Turn:
        """Create pods of a mode, wait until they are bound, read what that cost, and count them anew."""
        printed: list[Any] = []
        decided = await self._count_decisions()

        async def run() -> None:
            printed.append(await self._create(plan, mode))
            await self.settled()

        async with self._uncalled() if mode == QUEUE else nullcontext():
            used, counts, seconds = await self._span(run())
        outcomes = await self._count_decisions()
        outcomes.subtract(decided)
        await self._recount(plan, mode)
        await self._clear()
        found = printed[0]
        return Turn(
            pods_per_s=plan.pods / found["seconds"],
            latencies_ms=found["latencies"],
            cpu_ms={
                name: max(0.0, it.cpu_s - self._idle_cpu[name] * seconds) * 1000 / plan.pods
                for name, it in used.items()
            },
            waited=sum(it.waited_s for it in used.values()) / seconds,
            counts={
                name: (count - self._idle_counts.get(name, 0.0) * seconds) / plan.pods
                for name, count in counts.items()
            },
            outcomes={name: count / plan.pods for name, count in outcomes.items() if count},
        )

    async def settled(self) -> None:
        """Wait until hardly anything is written any more."""
        quiet = QUIET_WRITES + QUIET_WRITES_PER_NODE * len(self._ground.nodes)
        before = _writes(await self._count())
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await asyncio.sleep(SETTLE_S)
                now = _writes(await self._count())
                if (now - before) / SETTLE_S <= quiet:
                    return
                before = now

    async def _recount(self, plan: Plan, mode: str) -> None:
        """End the run if a pod is missing or any node is past its line."""
        pods: list[Any] = []
        async for page in self.sandbox.client.list_pages(_pods_of(mode)):
            pods += json.loads(page)["items"]
        faults = find_faults(self._ground, pods, expected=plan.pods, at_s=time.time())
        if faults:
            more = f"\nand {len(faults) - 20} more" if len(faults) > 20 else ""
            raise SystemExit(f"mode {mode}, counted anew:\n" + "\n".join(faults[:20]) + more)

    async def _count_decisions(self) -> Counter[str]:
        """Return the webhook's answers by outcome, those of its queue as well."""
        counts: Counter[str] = Counter()
        for name, count in (await self._page.read()).items():
            match = _DECISION.fullmatch(name)
            if match is not None:
                counts[match["outcome"]] += int(count)
        return counts

    async def _span(self, work: Any) -> tuple[dict[str, Usage], Counter[str], float]:
        before = {name: Usage.of(pid) for name, pid in self.pids.items()}
        counts, began_s = await self._count(), time.monotonic()
        await work
        seconds = time.monotonic() - began_s
        used = {name: Usage.of(pid).since(before[name]) for name, pid in self.pids.items()}
        after = await self._count()
        after.subtract(counts)
        return used, after, seconds

    async def _count(self) -> Counter[str]:
        """Return writes by name, all other requests, and bytes."""
        raw = await self.sandbox.client.request("GET", "/metrics", timeout_s=60)
        counts: Counter[str] = Counter()
        for match in _REQUEST.finditer(raw.decode()):
            labels = dict(_LABEL.findall(match["labels"]))
            resource, sub, verb = (labels.get(it, "") for it in ("resource", "subresource", "verb"))
            if resource in ("leases", "") or verb == "WATCH":
                continue
            name = f"{verb} {resource}{'/' + sub if sub else ''}" if verb in _VERBS else READS
            counts[name] += int(float(match["count"]))
        url = f"http://127.0.0.1:{self.sandbox.slot.etcd_client_port}/metrics"
        async with self._page.session.get(url) as answer:
            found = _LOGGED.search(await answer.text())
        counts[BYTES] = int(float(found["count"])) if found else 0
        return counts

    @asynccontextmanager
    async def _uncalled(self) -> AsyncIterator[None]:
        """Have the API server not call the webhook."""
        stored = await self.sandbox.client.get(HOOK)
        await self._set_rules([])
        yield
        await self._set_rules(stored["webhooks"][0]["rules"])

    async def _set_rules(self, rules: list[Any]) -> None:
        operation = {"op": "replace", "path": "/webhooks/0/rules", "value": rules}
        patch = ("patch", "mutatingwebhookconfiguration", "zz-berthmaster", "--type=json")
        await self.sandbox.kubectl(*patch, "-p", json.dumps([operation]))
        # Until the API server's own watch has shown it to it.
        await asyncio.sleep(SETTLE_S)

    async def _create(self, plan: Plan, mode: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", creating.__name__),
            *("--kubeconfig", str(self.sandbox.kubeconfig), "--namespace", _namespace_of(mode)),
            *("--pods", json.dumps(make_pods(mode, plan))),
            *("--count", str(plan.pods), "--hands", str(plan.hands)),
            env=build_environment({"PYTHONPATH": str(Path(__file__).parent)}),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"the pods of mode {mode} were not all bound")
        return json.loads(out)

    async def _clear(self) -> None:
        client = self.sandbox.client
        async with asyncio.timeout(DEADLINE_S):
            for namespace in (NAMESPACE, FIVE_NAMESPACE):
                path = f"/api/v1/namespaces/{namespace}/pods"
                while (await client.get(path, {"limit": 1}, timeout_s=60))["items"]:
                    # Deleting many takes the API server longer than it gives a request; what is left is asked for again.
                    with suppress(OutcomeUnknownError, ApiError):
                        await client.delete(path, query={"gracePeriodSeconds": 0}, timeout_s=120)
                    await asyncio.sleep(0.5)
        await self.settled()


def _writes(counts: Mapping[str, float]) -> float:
    return sum(count for name, count in counts.items() if name not in (READS, BYTES))


def _namespace_of(mode: str) -> str:
    return FIVE_NAMESPACE if mode == FIVE else NAMESPACE


def _pods_of(mode: str) -> str:
    return f"/api/v1/namespaces/{_namespace_of(mode)}/pods"


def make_pods(mode: str, plan: Plan) -> list[dict[str, Any]]:
    """Return the pods of a mode, to be created in turn; all but `five` ask for the same CPU and memory."""
    spec = {"tolerations": [TOLERATION]}
    if mode == FIVE:
        metadata = {"annotations": {names.PLACEMENT: "required"}, "labels": {"app": "bench"}}
        return [it.pod(metadata, spec) for it in WORKLOADS]
    annotations = {}
    if mode != "plain":
        annotations[names.PLACEMENT] = "required" if mode == QUEUE else mode
        if plan.disks:
            request = {"rbps": "5Mi", "wbps": "5Mi", "blocksize": "32k"}
            annotations[names.DISKIO_REQUEST] = json.dumps(request)
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}}
    if plan.zones and not plan.has_fleet:
        whole = {"cpu": "1", "memory": "1Gi"}
        resources = {"requests": whole, "limits": whole}
    container = {"name": "c", "image": "registry.k8s.io/pause:3.10", "resources": resources}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"annotations": annotations, "labels": {"app": "bench"}},
            "spec": {"containers": [container], **spec},
        }
    ]


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
                seen = await sandbox.client.create(_pods_of(FIVE), probe, {"dryRun": "All"})
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
