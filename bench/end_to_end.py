"""From created to bound: pods by kube-scheduler alone beside ours, in turns, on one control plane.

    python bench/end_to_end.py                      1,000 simulated nodes, 3 turns of 1,000 pods each
    python bench/end_to_end.py --disks              every node has a disk and an IO driver
    python bench/end_to_end.py --zones 8            every node has eight NUMA zones, which its topology tells

A sandbox with Berthmaster installed from config/ runs throughout. In turns, 32 hands create pods of each
of the `--modes` at once; *plain* pods do not opt in and never reach us. Between turns all pods are
deleted. Pods per second count from the first create to the last pod bound.

CPU is what each process used above its idle consumption, until `SETTLE_S` after the last pod was bound,
divided by the pods: it depends less than the clock on who else uses the machine. *Sandbox* is the
process that stands for the kubelets, the service proxy and, with `--disks`, the drivers; a cluster has
those elsewhere. Writes are requests that change something, as the API server counts them, above those of
an idle cluster, without Leases; requests are these and those that only read, without watches. Bytes are what
etcd writes to its log.

The mode *queue* is `required` without the call of the webhook while a pod is created: every pod is stored
behind its gate, and placed by the queue.

With `--disks` pods ask for bandwidth (plain ones do not, but drivers are told of them too), and each
placed pod costs a new list of pods, the driver's answer and a NodeInventory: writes of the vendor's
protocol that the old scheduler needed as well.

With `--zones` pods are Guaranteed, every kubelet's policy is single-numa-node, and every decision looks at
all zones of all nodes. Topologies are written once: what runs since is in our books alone, as between two
reports of an updater, and nothing but the placement costs anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from benching import creating, figures, topologies
from benching.readings import Usage
from benching.worlds import MetricsPage
from berthmaster.cluster.errors import OutcomeUnknownError
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import IMAGES, install
from berthmaster_sandbox.processes import build_environment
from berthmaster_sandbox.scraping import METRICS_PORT, make_reader
from berthmaster_sandbox.world.disk_books import FAKE_DISKS
from berthmaster_sandbox.world.diskio import DiskWorld

SYSTEM = "berthmaster-system"
NAMESPACE = "bench"
HOOK = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz-berthmaster"
QUEUE = "queue"
READS, BYTES = "reads", "bytes"
IDLE_S = 10.0
SETTLE_S = 3.0
DEADLINE_S = 300.0
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
    "spec": {"exclusiveTaints": [TAINT]},
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The figures of one mode in one turn."""

    pods_per_s: float
    latencies_ms: list[float]
    cpu_ms: Mapping[str, float]
    waited: float
    counts: Mapping[str, float]
    outcomes: Mapping[str, float]

    @property
    def writes(self) -> dict[str, float]:
        """Return the requests per pod that change something."""
        return {name: count for name, count in self.counts.items() if name not in (READS, BYTES)}


class Cluster:
    """The sandbox with everything whose costs count."""

    def __init__(
        self,
        sandbox: Sandbox,
        pids: Mapping[str, int],
        page: MetricsPage,
    ) -> None:
        self.sandbox = sandbox
        self.pids = pids
        self._page = page
        self._idle_cpu: dict[str, float] = {}
        self._idle_counts: dict[str, float] = {}

    async def learn_idle(self) -> None:
        """Measure what everything uses while nothing happens."""
        used, counts, seconds = await self._span(asyncio.sleep(IDLE_S))
        self._idle_cpu = {name: it.cpu_s / seconds for name, it in used.items()}
        self._idle_counts = {name: count / seconds for name, count in counts.items()}

    async def turn(self, plan: Plan, mode: str) -> Turn:
        """Create pods of a mode, wait until they are bound, and read what that cost."""
        printed: list[Any] = []
        decided = await self._count_decisions()

        async def run() -> None:
            printed.append(await self._create(plan, mode))
            await asyncio.sleep(SETTLE_S)

        async with self._uncalled() if mode == QUEUE else nullcontext():
            used, counts, seconds = await self._span(run())
        outcomes = await self._count_decisions()
        outcomes.subtract(decided)
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
            *("--kubeconfig", str(self.sandbox.kubeconfig), "--namespace", NAMESPACE),
            *("--pod", json.dumps(make_pod(mode, plan))),
            *("--count", str(plan.pods), "--hands", str(plan.hands)),
            env=build_environment({"PYTHONPATH": str(Path(__file__).parent)}),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"the pods of mode {mode} were not all bound")
        return json.loads(out)

    async def _clear(self) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        client = self.sandbox.client
        async with asyncio.timeout(DEADLINE_S):
            while (await client.get(path, {"limit": 1}, timeout_s=60))["items"]:
                with suppress(OutcomeUnknownError):
                    await client.delete(path, query={"gracePeriodSeconds": 0}, timeout_s=120)
                await asyncio.sleep(0.5)
        await asyncio.sleep(SETTLE_S)


def make_pod(mode: str, plan: Plan) -> dict[str, Any]:
    """Return a pod of a mode; all modes ask for the same CPU and memory."""
    annotations = {}
    if mode != "plain":
        annotations["berthmaster.io/placement"] = "required" if mode == QUEUE else mode
        if plan.disks:
            request = {"rbps": "5Mi", "wbps": "5Mi", "blocksize": "32k"}
            annotations["blockio.kubernetes.io/resources"] = json.dumps(request)
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}}
    if plan.zones:
        whole = {"cpu": "1", "memory": "1Gi"}
        resources = {"requests": whole, "limits": whole}
    container = {"name": "c", "image": "registry.k8s.io/pause:3.10", "resources": resources}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"annotations": annotations, "labels": {"app": "bench"}},
        "spec": {"containers": [container], "tolerations": [TOLERATION]},
    }


async def measure(plan: Plan) -> dict[str, list[Turn]]:
    """Return the turns by mode; all nodes are ours alone, which only `bind` makes use of."""
    turns: dict[str, list[Turn]] = {mode: [] for mode in plan.modes}
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(
            Sandbox.start(process_nodes=2, images=IMAGES, verbose=True)
        )
        await install(sandbox)
        nodes = await _create_nodes(sandbox, plan)
        await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(POLICY))
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await sandbox.client.create("/api/v1/namespaces", namespace)
        if plan.disks:
            await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(MODELS))
            world = await stack.enter_async_context(DiskWorld(sandbox.client))
            for node in nodes:
                await world.add_node(node)
            await topologies.until_published(
                sandbox.client, plan.nodes, field="disks", deadline_s=DEADLINE_S
            )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        page = await _find_page(sandbox, session)
        cluster = Cluster(sandbox, await _find_pids(sandbox), page)
        # The first pods of each mode warm caches, and nobody counts them.
        few = replace(plan, pods=50, turns=1)
        await cluster.learn_idle()
        for mode in plan.modes:
            await cluster.turn(few, mode)
        await cluster.learn_idle()
        for _ in range(plan.turns):
            for mode in plan.modes:
                turn = await cluster.turn(plan, mode)
                print(f"{mode}: {turn.pods_per_s:.0f} pods/s", file=sys.stderr)
                turns[mode].append(turn)
    return turns


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


def _summary(plan: Plan, turns: Mapping[str, list[Turn]]) -> str:
    rows = []
    first = turns[plan.modes[0]]
    for mode, its in turns.items():
        latencies = [ms for turn in its for ms in turn.latencies_ms]
        ratios = [
            turn.pods_per_s / other.pods_per_s for turn, other in zip(its, first, strict=True)
        ]
        cpu = [sum(turn.cpu_ms.values()) for turn in its]
        rows.append(
            (
                mode,
                figures.spread([turn.pods_per_s for turn in its], 0),
                "1.00" if its is first else figures.spread(ratios, 2),
                f"{figures.percentile(latencies, 50):.0f}",
                f"{figures.percentile(latencies, 99):.0f}",
                figures.spread(cpu),
                figures.spread([sum(turn.writes.values()) for turn in its], 2),
                figures.spread(
                    [sum(turn.writes.values()) + turn.counts.get(READS, 0.0) for turn in its], 2
                ),
                figures.spread([turn.counts[BYTES] / 1024 for turn in its]),
                figures.spread([turn.waited for turn in its], 1),
            )
        )
    header = (
        *("mode", "pods/s", f"ratio to {plan.modes[0]}", "p50 ms", "p99 ms", "CPU ms/pod"),
        *("writes/pod", "requests/pod", "etcd KiB/pod", "processes waiting for a core"),
    )
    return figures.table(header, rows)


def _by_process(plan: Plan, turns: Mapping[str, list[Turn]]) -> str:
    names = list(first_of(turns).cpu_ms)
    rows = [
        (name, *(figures.spread([turn.cpu_ms[name] for turn in turns[mode]], 2) for mode in turns))
        for name in names
    ]
    return figures.table(("CPU ms per pod", *plan.modes), rows)


def _by_write(plan: Plan, turns: Mapping[str, list[Turn]]) -> str:
    medians = {
        mode: {
            name: statistics.median(turn.writes.get(name, 0.0) for turn in its)
            for name in sorted({name for turn in its for name in turn.writes})
        }
        for mode, its in turns.items()
    }
    names = sorted(
        {name for its in medians.values() for name, count in its.items() if count >= 0.01}
    )
    rows = [
        (f"`{name}`", *(f"{medians[mode].get(name, 0.0):.2f}" for mode in turns)) for name in names
    ]
    return figures.table(("writes per pod", *plan.modes), rows)


def _by_outcome(turns: Mapping[str, list[Turn]]) -> str:
    """Say what the webhook answered, in the modes that reach it."""
    rows = []
    for mode, its in turns.items():
        names = sorted({name for turn in its for name in turn.outcomes})
        for name in names:
            shares = [turn.outcomes.get(name, 0.0) for turn in its]
            rows.append((mode, name, figures.spread(shares, 3)))
    return figures.table(("mode", "outcome", "answers per pod"), rows) if rows else ""


def first_of(turns: Mapping[str, list[Turn]]) -> Turn:
    """Return any turn."""
    return next(iter(turns.values()))[0]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=1000, help="of each mode, each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["plain", "required"],
        help="plain, required, preferred, bind, queue",
    )
    parser.add_argument("--disks", action="store_true", help="disks and drivers on every node")
    parser.add_argument("--zones", type=int, default=0, help="NUMA zones of each node")
    parser.add_argument("--hands", type=int, default=32, help="creates at the same time")
    given = parser.parse_args()
    plan = Plan(
        nodes=given.nodes,
        pods=given.pods,
        turns=given.turns,
        modes=tuple(given.modes),
        disks=given.disks,
        zones=given.zones,
        hands=given.hands,
    )
    turns = asyncio.run(measure(plan))
    figures.report(
        "From created to bound",
        _summary(plan, turns),
        _by_process(plan, turns),
        _by_write(plan, turns),
        _by_outcome(turns),
    )


if __name__ == "__main__":
    main()
