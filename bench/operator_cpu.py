"""What the operator costs while every node's IO driver reports, and what it makes the API server do.

    python bench/operator_cpu.py                    5,000 nodes against an API server of paper
    python bench/operator_cpu.py --sandbox --nodes 500      a real API server, simulated nodes and drivers

The real operator process. Every driver reports each `--periods` seconds. A share `--news` of the
reports says something else than before; the others tremble by less than 1 % of the capacity, which the
operator must look at but need not publish. Costs are cores: CPU seconds per second, after all nodes
were published once. *Published* are writes of NodeInventories per second.

With `--sandbox` the API server's and etcd's cores stand beside the operator's, once with reports and once
without, because simulated nodes cost them something too. The drivers write each report with a PATCH, as
the real ones do, so most of what reports cost an API server is not our doing; *per publication* is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp

from benching import figures, objects
from benching.readings import Usage, resident_mib
from benching.worlds import (
    MetricsPage,
    PaperWorld,
    free_port,
    paper_world,
    program_path,
    stopped_at_end,
    wait_answer,
)
from berthmaster.cluster.client import Client, PatchKind
from berthmaster_sandbox.cluster import Sandbox
from berthmaster_sandbox.installing import PROJECT
from berthmaster_sandbox.processes import build_environment, start_process
from berthmaster_sandbox.scraping import make_reader

PUBLISHED = 'berthmaster_operator_writes_total{kind="NodeInventory",verb="patch"}'
SETTLED_S = 5.0
PUBLISHING_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How often drivers report, and how often that is news."""

    period_s: float
    news: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure."""

    nodes: int
    pods: int
    cases: tuple[Case, ...]
    seconds: float


@dataclass(slots=True, kw_only=True)
class Costs:
    """What was used in a stretch of time, by program, and how many writes it had."""

    seconds: float
    used: Mapping[str, Usage]
    published: float
    reports: float
    mib: float

    def cores(self, program: str) -> float:
        """Return CPU seconds per second."""
        return self.used[program].cpu_s / self.seconds


class Paper:
    """Nodes, drivers and API server as one process of paper."""

    programs: Mapping[str, int] = {}

    def __init__(self, world: PaperWorld) -> None:
        self._world = world

    async def report(self, case: Case | None) -> None:
        """Let the drivers report so, or not at all."""
        wish = {} if case is None else {"periodS": case.period_s, "news": case.news}
        await self._world.post("reports", json.dumps(wish).encode())

    async def count_reports(self) -> float:
        """Return how many reports there were."""
        reports: float = (await self._world.counters())["reports"]
        return reports


class Real:
    """A sandbox's API server with simulated nodes; the drivers are tasks of this process."""

    def __init__(self, client: Client, nodes: list[str], programs: Mapping[str, int]) -> None:
        self.programs = programs
        self._client = client
        self._nodes = nodes
        self._reports = 0
        self._free: dict[str, int] = {}
        self._rng = random.Random(1)  # noqa: S311 - no secret
        self._reporting: asyncio.Task[None] | None = None

    async def report(self, case: Case | None) -> None:
        """As `Paper.report`."""
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.wait([self._reporting])
        self._reporting = None if case is None else asyncio.create_task(self._run(case))

    async def count_reports(self) -> float:
        """As `Paper.count_reports`."""
        return self._reports

    async def report_all(self, news: float) -> None:
        """Report once for every node, as fast as it goes."""
        rest = iter(self._nodes)

        async def some() -> None:
            for node in rest:
                await self._report(node, news)

        await asyncio.gather(*(some() for _ in range(16)))

    async def _run(self, case: Case) -> None:
        pause_s = case.period_s / len(self._nodes)
        next_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while True:
                for node in self._nodes:
                    next_s += pause_s
                    await asyncio.sleep(max(0.0, next_s - time.monotonic()))
                    tasks.create_task(self._report(node, case.news))

    async def _report(self, node: str, news: float) -> None:
        if node not in self._free or self._rng.random() < news:
            free = self._free[node] = self._rng.randrange(1500, 3800)
        else:
            free = self._free[node] + self._rng.randrange(30)
        share = {"read": f"{free}Mi", "write": f"{free}Mi", "total": f"{2 * free}Mi"}
        status = {"observedGeneration": 1, "allocableBandwidth": {"nvme0n1": share}}
        path = f"/apis/diskio.x-k8s.io/v1alpha1/namespaces/{objects.DRIVERS}/nodediskiostats"
        await self._client.patch(
            f"{path}/{node}-nodediskiostats/status", {"status": status}, PatchKind.MERGE
        )
        self._reports += 1


async def measure_on_paper(plan: Plan) -> list[tuple[object, ...]]:
    """Return the rows of a table."""
    async with (
        paper_world(plan.nodes, plan.pods, drivers=True) as world,
        aiohttp.ClientSession() as session,
    ):
        port = free_port()
        began_s = time.monotonic()
        page = MetricsPage(session=session, port=free_port())
        process = world.start(
            "berthmaster-operator", f"--health-port={port}", f"--metrics-port={page.port}"
        )
        async with stopped_at_end(process):
            await wait_answer(
                process,
                session,
                f"http://127.0.0.1:{port}/readyz",
                deadline_s=PUBLISHING_DEADLINE_S,
            )
            await _published(page, plan.nodes)
            _tell_start(time.monotonic() - began_s, process.pid, plan.nodes)
            return await _measure_cases(plan, Paper(world), page, process.pid)


async def measure_in_sandbox(plan: Plan) -> list[tuple[object, ...]]:
    """Return the rows of a table, with the API server's and etcd's cores."""
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox.start(process_nodes=0))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await sandbox.kubectl("apply", "-k", str(PROJECT / "config" / "default"))
        nodes = await sandbox.create_nodes(plan.nodes, pods=110)
        models = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "normalization-func", "namespace": objects.DRIVERS},
            "data": {"diskVendors": objects.disk_models()},
        }
        await sandbox.kubectl("apply", "-f", "-", stdin=json.dumps(models))
        for index, node in enumerate(nodes):
            device = objects.disk_device(index)
            device["metadata"] = {"name": f"{node}-nodediskdevice"}
            device["spec"]["nodeName"] = node
            device["spec"]["devices"]["nvme0n1"]["capacity"] = {
                "read": "4000Mi",
                "write": "4000Mi",
                "total": "8000Mi",
            }
            await sandbox.client.create(
                f"/apis/diskio.x-k8s.io/v1alpha1/namespaces/{objects.DRIVERS}/nodediskdevices",
                device,
            )
        port = free_port()
        token = await make_reader(sandbox.client)
        page = MetricsPage(session=session, port=free_port(), token=token)
        began_s = time.monotonic()
        process = start_process(
            "operator",
            [
                program_path("berthmaster-operator"),
                f"--health-port={port}",
                f"--metrics-port={page.port}",
                "--bind-address=127.0.0.1",
            ],
            folder=sandbox.folder,
            environment=build_environment({"KUBECONFIG": str(sandbox.kubeconfig)}),
        )
        await stack.enter_async_context(stopped_at_end(process))
        await wait_answer(
            process, session, f"http://127.0.0.1:{port}/readyz", deadline_s=PUBLISHING_DEADLINE_S
        )
        pids = {name: it.pid for name, it in sandbox.list_processes().items()}
        programs = {name: pids[name] for name in ("kube-apiserver", "etcd")}
        real = Real(sandbox.client, nodes, programs)
        await _published(page, plan.nodes)
        await real.report_all(1.0)
        await _quiet(page)
        _tell_start(time.monotonic() - began_s, process.pid, plan.nodes)
        rows = await _measure_cases(plan, real, page, process.pid)
        await real.report(None)
        return rows


async def _published(page: MetricsPage, nodes: int) -> None:
    """Wait until every node has been published."""
    async with asyncio.timeout(PUBLISHING_DEADLINE_S):
        while (await page.read()).get(PUBLISHED, 0) < nodes:
            await asyncio.sleep(0.25)
    await _quiet(page)


async def _quiet(page: MetricsPage) -> None:
    """Wait until nothing is published any more."""
    seen, since_s = -1.0, time.monotonic()
    while time.monotonic() - since_s < SETTLED_S:
        now = (await page.read()).get(PUBLISHED, 0)
        if now != seen:
            seen, since_s = now, time.monotonic()
        await asyncio.sleep(0.5)


def _tell_start(seconds: float, pid: int, nodes: int) -> None:
    cpu_s = Usage.of(pid).cpu_s
    print(
        f"all {nodes:,} nodes are published {seconds:.0f} s after the start, for {cpu_s:.1f} s of CPU "
        f"({cpu_s * 1000 / nodes:.1f} ms each)"
    )


async def _measure_cases(
    plan: Plan, source: Paper | Real, page: MetricsPage, pid: int
) -> list[tuple[object, ...]]:
    rows = []
    programs = {"operator": pid, **source.programs}
    for case in (None, *plan.cases):
        await source.report(case)
        await asyncio.sleep(SETTLED_S)
        before = {name: Usage.of(it) for name, it in programs.items()}
        published = (await page.read()).get(PUBLISHED, 0)
        reports, began_s = await source.count_reports(), time.monotonic()
        await asyncio.sleep(plan.seconds)
        costs = Costs(
            seconds=time.monotonic() - began_s,
            used={name: Usage.of(it).since(before[name]) for name, it in programs.items()},
            published=(await page.read()).get(PUBLISHED, 0) - published,
            reports=await source.count_reports() - reports,
            mib=resident_mib(pid),
        )
        rows.append(_row(plan, case, costs))
    return rows


def _row(plan: Plan, case: Case | None, costs: Costs) -> tuple[object, ...]:
    per_report = "-"
    if costs.reports:
        per_report = f"{costs.used['operator'].cpu_s * 1000 / costs.reports:.2f}"
    return (
        f"{plan.nodes:,}",
        "-" if case is None else f"{case.period_s:g}",
        "-" if case is None else f"{case.news:.0%}",
        f"{costs.reports / costs.seconds:.0f}",
        f"{costs.published / costs.seconds:.1f}",
        *(f"{costs.cores(name):.2f}" for name in costs.used),
        per_report,
        f"{costs.mib:.0f}",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sandbox", action="store_true", help="a real API server")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=40_000, help="on paper only")
    parser.add_argument("--periods", type=float, nargs="+", default=[60.0, 15.0], metavar="S")
    parser.add_argument("--news", type=float, nargs="+", default=[0.05, 0.5], metavar="SHARE")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    given = parser.parse_args()
    plan = Plan(
        nodes=given.nodes,
        pods=given.pods,
        cases=tuple(Case(period_s=it, news=news) for it in given.periods for news in given.news),
        seconds=given.seconds,
    )
    run = measure_in_sandbox if given.sandbox else measure_on_paper
    rows = asyncio.run(run(plan))
    others = ["API server cores", "etcd cores"] if given.sandbox else []
    header = (
        *("nodes", "period s", "news", "reports/s", "published/s", "operator cores", *others),
        *("operator ms per report", "MiB"),
    )
    figures.report("The operator under reports", figures.table(header, rows))


if __name__ == "__main__":
    main()
