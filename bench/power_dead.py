"""Admission latency while meters and model servers answer, and while all of them are dead, in turns in one run.

    python bench/power_dead.py               5,000 nodes, 100 requests/s for 20 s in each turn

The webhook is the real one, over TLS, with its cluster from an API server of paper, as in admission.py. Beside
it the operator's collector, as a process of its own, reads a meter, a pressure sensor and a model server for every node.
*Alive* they answer, and every inventory has a curve and a usage. *Dead* the process that plays them is stopped:
its sockets are open and hang. The inventories are then what the operator publishes when all readings are too old.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

import power_collecting
from admission import WARM_UP_S, Plan, deciding, make_pods, send
from benching import figures, load, objects
from benching.readings import Usage
from benching.worlds import (
    PaperWorld,
)
from berthmaster.api.inventory import PowerLink
from berthmaster.api.power import CpuUsage
from berthmaster.api.quantities import NANO
from berthmaster.concerns.power.inventory import Candidate, build_power
from berthmaster.concerns.power.questions import curve_of
from berthmaster_operator.power.book import PowerBook
from berthmaster_operator.power.fetching import Fetcher

INVENTORIES = "/apis/berthmaster.io/v1alpha1/nodeinventories"
GRID = np.linspace(0, power_collecting.CORES, 27)
# The collector is in the middle of its pauses by then.
SETTLE_S = 10.0
# The webhook has taken over what was published once it uses less of a core.
_QUIET_SHARE, _LOOK_S, _LONGEST_S = 0.05, 3.0, 300.0
_WRITERS = 16


def collect(nodes: int, origin: str) -> None:
    """Read for as long as the process is there."""

    async def run() -> None:
        book = PowerBook()
        power_collecting.fill(book, nodes, origin)
        await power_collecting.make_collector(book, Fetcher(), nodes).run()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


@contextmanager
def peers(nodes: int) -> Iterator[int]:
    """Run servers and collector; yield the process id of the servers."""
    spawn = multiprocessing.get_context("spawn")
    here, there = multiprocessing.Pipe()
    servers = spawn.Process(target=power_collecting.play, args=(there,))
    servers.start()
    collector = spawn.Process(target=collect, args=(nodes, f"http://127.0.0.1:{here.recv()}"))
    collector.start()
    try:
        yield servers.pid or 0
    finally:
        for process in (collector, servers):
            process.kill()
            process.join()


def power_of(index: int, *, is_alive: bool) -> dict[str, Any]:
    """Return what the operator publishes for a node."""
    watts = 100 + 8 * GRID + (index % 5) * GRID**1.5
    usage = CpuUsage(nanocores=(1 + index % 16) * NANO, sampled_s=0.0, window_s=15.0)
    built = build_power(
        usage=usage if is_alive else None,
        readings={},
        candidates=[
            Candidate(
                link=PowerLink.MODEL_SERVER,
                model="m" if is_alive else "",
                curve=curve_of(list(GRID), watts.tolist()) if is_alive else None,
            )
        ],
    )
    assert built.power is not None
    return built.power.model_dump(mode="json", by_alias=True)


async def publish(world: PaperWorld, nodes: int, *, is_alive: bool) -> None:
    """Write every inventory's power."""
    numbers = iter(range(nodes))

    async def some() -> None:
        for index in numbers:
            url = f"{world.url}{INVENTORIES}/{objects.node_name(index)}/status"
            patch = {"status": {"power": power_of(index, is_alive=is_alive)}}
            headers = {"Content-Type": "application/merge-patch+json"}
            async with world.session.patch(url, json=patch, headers=headers) as response:
                response.raise_for_status()

    await asyncio.gather(*(some() for _ in range(_WRITERS)))


async def until_quiet(pid: int) -> None:
    """Return when the process has nothing to do."""
    async with asyncio.timeout(_LONGEST_S):
        while True:
            before = Usage.of(pid)
            await asyncio.sleep(_LOOK_S)
            if Usage.of(pid).since(before).cpu_s < _QUIET_SHARE * _LOOK_S:
                return


async def measure(plan: Plan, turns: int, servers_pid: int) -> list[tuple[object, ...]]:
    """Return a row per turn."""
    rows: list[tuple[object, ...]] = []
    async with deciding(plan, deadline_s=600) as it:
        first = 0
        for turn in range(2 * turns):
            is_alive = turn % 2 == 0
            os.kill(servers_pid, signal.SIGCONT if is_alive else signal.SIGSTOP)
            await publish(it.world, plan.nodes, is_alive=is_alive)
            await asyncio.sleep(SETTLE_S)
            await until_quiet(it.pid)
            for seconds in (WARM_UP_S, plan.seconds):
                pods = [pod for pod, _ in make_pods(plan, seconds, first)]
                first += len(pods)
                before = Usage.of(it.pid)
                exchanges, _, outcomes = await send(plan, it.world, it.target, pods)
                used = Usage.of(it.pid).since(before)
            rows.append(_row("alive" if is_alive else "dead", exchanges, outcomes, used))
    return rows


def _row(
    servers: str, exchanges: list[load.Exchange], outcomes: dict[str, int], used: Usage
) -> tuple[object, ...]:
    latencies = [it.latency_ms for it in exchanges]
    p50, p90, p99 = (figures.percentile(latencies, it) for it in (50, 90, 99))
    return (
        *(servers, f"{len(exchanges):,}", f"{outcomes.get('placed', 0):,}"),
        *(f"{p50:.1f}", f"{p90:.1f}", f"{p99:.1f}", f"{max(latencies):.1f}"),
        f"{used.cpu_s * 1000 / len(exchanges):.2f}",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    plan = Plan(
        nodes=given.nodes,
        pods=given.pods,
        rate=given.rate,
        seconds=given.seconds,
        new=0.1,
        life_s=20.0,
    )
    with peers(given.nodes) as servers_pid:
        rows = asyncio.run(measure(plan, given.turns, servers_pid))
    header = ("servers", "requests", "placed", "p50 ms", "p90 ms", "p99 ms", "max ms", "CPU ms")
    figures.report(
        "Admission, meters and model servers alive and dead", figures.table(header, rows)
    )


if __name__ == "__main__":
    main()
