"""How long an admission takes over TLS, as kube-apiserver sees it, at a steady rate.

    python bench/admission.py               5,000 nodes, 40,000 pods, 300 requests/s for 60 s

The real webhook process, with its cluster from an API server of paper, gets AdmissionReviews of pods
as a ReplicaSet's controller creates them: 7 KB with managedFields, over HTTP/1.1 and kept connections.
Open loop: see benching/load.py. Nine of ten requests (`--new`) are of 50 shapes that keep coming, the
others each of a shape never seen. Every pod that was let pass then lives: the watch shows it created,
bound, started, running and, after `--life` seconds, gone, so the webhook follows five changes for each
request that it answers, and all of that is in its CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import msgspec

from benching import figures, load, objects
from benching.readings import Usage, resident_mib
from benching.worlds import (
    HOOK,
    SERVICE,
    MetricsPage,
    PaperWorld,
    free_port,
    paper_world,
    stopped_at_end,
    wait_answer,
)

WORKLOADS = 50
WARM_UP_S = 5.0
# Answers are handed to the API server of paper in bundles, as a busy one's watch cache does it.
_HAND_ON_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send."""

    nodes: int
    pods: int
    rate: float
    seconds: float
    new: float
    life_s: float


class Creator:
    """Stores what was let pass: hands placed pods on to the API server of paper."""

    def __init__(self, world: PaperWorld, pods: list[objects.NewPod]) -> None:
        self._world = world
        self._pods = pods
        self._placed: list[tuple[object, ...]] = []
        self.outcomes: Counter[str] = Counter()

    def take(self, exchange: load.Exchange) -> None:
        """Note an answer."""
        if exchange.status != 200:
            self.outcomes["not answered in time" if not exchange.status else "failed"] += 1
            return
        text = exchange.answer.partition(b'"patch":"')[2].partition(b'"')[0]
        allocation = _allocation_in(base64.b64decode(text))
        if not allocation:
            self.outcomes["left at the gate"] += 1
            return
        self.outcomes["placed"] += 1
        pod = self._pods[exchange.number]
        node = _read_node(allocation.encode()).node
        self._placed.append((pod.number, pod.workload, pod.cpu_millicores, node, allocation))

    async def run(self) -> None:
        """Hand on until cancelled."""
        while True:
            await asyncio.sleep(_HAND_ON_S)
            placed, self._placed = self._placed, []
            if placed:
                await self._world.post("created", msgspec.json.encode(placed))


class _Operation(msgspec.Struct):
    path: str
    value: object = None


class _Allocation(msgspec.Struct):
    node: str


_read_patch = msgspec.json.Decoder(list[_Operation]).decode
_read_node = msgspec.json.Decoder(_Allocation).decode


def _allocation_in(patch: bytes) -> str:
    """Return the allocation annotation that a patch writes, empty if it writes none."""
    for operation in _read_patch(patch) if patch else ():
        if operation.path == "/metadata/annotations/berthmaster.io~1allocation":
            return str(operation.value)
        if operation.path == "/metadata/annotations" and isinstance(operation.value, dict):
            return str(operation.value.get(objects.ALLOCATION, ""))
    return ""


def make_pods(plan: Plan, seconds: float, first: int) -> list[tuple[objects.NewPod, bool]]:
    """Return pods to create, each with whether its shape is new."""
    rng = random.Random(first)  # noqa: S311 - no secret
    pods = []
    for number in range(first, first + int(seconds * plan.rate)):
        workload = rng.randrange(WORKLOADS)
        pod = objects.NewPod(number, workload, 50 + workload % 40 * 5)
        is_new = rng.random() < plan.new
        if is_new:
            pod = objects.NewPod(number, WORKLOADS + number, 500 + number)
        pods.append((pod, is_new))
    return pods


async def send(
    plan: Plan, world: PaperWorld, target: load.Target, pods: list[objects.NewPod]
) -> tuple[list[load.Exchange], int, Counter[str]]:
    """Send reviews of pods as planned; return the exchanges, the connections made, and how they ended."""
    creator = Creator(world, pods)
    creating = asyncio.create_task(creator.run())
    bodies = [pod.review() for pod in pods]
    exchanges, connections = await load.run(target, bodies, plan.rate, on_answer=creator.take)
    creating.cancel()
    return exchanges, connections, creator.outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """A webhook that decides: its world and process, where its metrics are, and where to send reviews."""

    world: PaperWorld
    pid: int
    page: MetricsPage
    target: load.Target


@asynccontextmanager
async def deciding(plan: Plan, *, deadline_s: float = 300) -> AsyncIterator[Deciding]:
    """Start a webhook, wait at most so long until it is ready, and then until it decides."""
    async with (
        paper_world(plan.nodes, plan.pods, life_s=plan.life_s) as world,
        aiohttp.ClientSession() as session,
    ):
        port, probe_port, metrics_port = free_port(), free_port(), free_port()
        process = world.start_webhook(port, probe_port, metrics_port)
        async with stopped_at_end(process):
            url = f"http://127.0.0.1:{probe_port}/readyz"
            await wait_answer(process, session, url, deadline_s=deadline_s)
            page = MetricsPage(session=session, port=metrics_port)
            target = load.Target(
                host="127.0.0.1",
                port=port,
                path=f"{await _find_path(world, page)}?timeout=1s",
                server_name=SERVICE,
                context=world.server_context(),
            )
            yield Deciding(world=world, pid=process.pid, page=page, target=target)


async def measure(plan: Plan) -> list[tuple[object, ...]]:
    """Return the rows of the table: all requests, repeated shapes, new shapes."""
    async with deciding(plan) as it:
        warm = make_pods(plan, WARM_UP_S, 0)
        await send(plan, it.world, it.target, [pod for pod, _ in warm])
        pods = make_pods(plan, plan.seconds, len(warm))
        before, metrics = Usage.of(it.pid), await it.page.read()
        exchanges, connections, outcomes = await send(
            plan, it.world, it.target, [pod for pod, _ in pods]
        )
        usage = Usage.of(it.pid).since(before)
        moved = _moved(metrics, await it.page.read())
        print(_remarks(exchanges, outcomes, usage, moved, connections, resident_mib(it.pid)))
        parts = [
            ("all", exchanges),
            ("repeated", [exchanges[i] for i, (_, new) in enumerate(pods) if not new]),
            ("new", [exchanges[i] for i, (_, new) in enumerate(pods) if new]),
        ]
        return [_row(plan, shape, its, usage) for shape, its in parts if its]


async def _find_path(world: PaperWorld, page: MetricsPage) -> str:
    """Wait until the webhook decides; return the path that it turned requests to."""
    async with asyncio.timeout(60):
        while (await page.read()).get("berthmaster_leader") != 1:
            await asyncio.sleep(0.1)
    async with world.session.get(f"{world.url}{HOOK}") as response:
        hook = (await response.json())["webhooks"][0]
        path: str = hook["clientConfig"]["service"]["path"]
        return path


def _row(
    plan: Plan, shape: str, exchanges: list[load.Exchange], usage: Usage
) -> tuple[object, ...]:
    latencies = [it.latency_ms for it in exchanges]
    p50, p90, p99 = (figures.percentile(latencies, it) for it in (50, 90, 99))
    late = figures.percentile([(it.sent_s - it.due_s) * 1000 for it in exchanges if it.sent_s], 99)
    per_request = (
        f"{usage.cpu_s * 1000 / (plan.seconds * plan.rate):.2f}" if shape == "all" else "-"
    )
    return (
        *(f"{plan.nodes:,}", f"{plan.rate:.0f}", shape, f"{len(exchanges):,}"),
        *(f"{p50:.1f}", f"{p90:.1f}", f"{p99:.1f}", f"{max(latencies):.1f}"),
        *(f"{late:.1f}", per_request),
    )


def _moved(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _remarks(
    exchanges: list[load.Exchange],
    outcomes: Counter[str],
    usage: Usage,
    moved: dict[str, float],
    connections: int,
    mib: float,
) -> str:
    ends = ", ".join(f"{count:,} {it}" for it, count in outcomes.most_common())
    decided_s = moved["berthmaster_decision_duration_seconds_sum"]
    count = max(1.0, moved["berthmaster_decision_duration_seconds_count"])
    span_s = exchanges[-1].answered_s - exchanges[0].due_s
    return (
        f"{ends}; {connections} connections; the webhook used {usage.cpu_s / span_s:.2f} "
        f"cores, waited {usage.waited_s / span_s * 100:.0f} % of the time for one, and holds "
        f"{mib:.0f} MiB; a decision took {decided_s / count * 1000:.2f} ms on average"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=40_000)
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--new", type=float, default=0.1, help="share of shapes never seen")
    parser.add_argument("--life", type=float, default=20.0, help="seconds a created pod lives")
    given = parser.parse_args()
    plan = Plan(
        nodes=given.nodes,
        pods=given.pods,
        rate=given.rate,
        seconds=given.seconds,
        new=given.new,
        life_s=given.life,
    )
    rows = asyncio.run(measure(plan))
    header = (
        *("nodes", "per s", "shape", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms"),
        *("sent late p99 ms", "webhook CPU ms"),
    )
    figures.report("Admission over TLS", figures.table(header, rows))


if __name__ == "__main__":
    main()
