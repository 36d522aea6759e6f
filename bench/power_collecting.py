"""What reading power costs the operator: CPU and memory of its collector for a fleet of nodes.

    python bench/power_collecting.py --nodes 5000 --seconds 60

Another process plays the BMCs, the pressure API and a model server, and gives the pages of `metrics.k8s.io` with
usages that move. Each node has a NodeConfig. Nobody writes inventories here: their price is in `operator_cpu.py`.
CPU is that of this process alone, after the first answers are in; memory is what it holds more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from aiohttp import web

from benching import figures
from benching.readings import Usage, resident_mib
from berthmaster.api.power import PowerNode
from berthmaster.api.quantities import NANO
from berthmaster_operator.handlers import node_configs
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.power.asking import Asker
from berthmaster_operator.power.book import PowerBook
from berthmaster_operator.power.collecting import Collector
from berthmaster_operator.power.fetching import Fetcher

CORES = 32
PAGE = 500


async def _serve(pipe: Connection) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/api/"):
            return web.json_response({"code": 200, "sensor": [{"pressure": 0.01}]})
        if request.method == "POST":
            rows = (await request.json())["inputs"][0]["data"]
            watts = [100 + 10 * row[0] + row[1] for row in rows]
            return web.json_response({"outputs": [{"data": watts}]})
        return web.json_response({"Reading": 22 + time.time() % 3})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pipe.send(runner.addresses[0][1])
    await asyncio.Event().wait()


def play(pipe: Connection) -> None:
    """Be every meter and model server; send the port, then serve until ended."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(pipe))


class PaperMetrics:
    """Pages of NodeMetrics, as the API server would send them."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._random = np.random.default_rng(1)

    async def get(self, path: str, query: object = None, *, timeout_s: float) -> dict[str, Any]:
        raise AssertionError(f"nothing has a Secret here: {path}")

    async def list_pages(self, path: str) -> AsyncIterator[bytes]:
        now = datetime.now(UTC).isoformat()
        for first in range(0, self._nodes, PAGE):
            items = [
                {
                    "metadata": {"name": f"node-{index}"},
                    "timestamp": now,
                    "window": "15s",
                    "usage": {"cpu": f"{int(self._random.integers(10**9, 2 * 10**10))}n"},
                }
                for index in range(first, min(first + PAGE, self._nodes))
            ]
            yield json.dumps({"items": items}).encode()


def node_config(index: int, origin: str) -> dict[str, Any]:
    """Return a node's NodeConfig."""
    name = f"node-{index}"
    return {
        "metadata": {"name": name, "namespace": "wao-system"},
        "spec": {
            "nodeName": name,
            "metricsCollector": {
                "inletTemp": {"type": "Redfish", "endpoint": f"{origin}/bmc/{index}"},
                "deltaP": {"type": "DifferentialPressureAPI", "endpoint": origin},
            },
            "predictor": {
                "powerConsumption": {
                    "type": "V2InferenceProtocol",
                    "endpoint": f"{origin}/v2/models/m{index % 5}/infer",
                }
            },
        },
    }


def fill(book: PowerBook, nodes: int, origin: str) -> None:
    """Give the book so many nodes, each with a NodeConfig."""
    for index in range(nodes):
        book.see_node(PowerNode(name=f"node-{index}", capacity_nanocores=CORES * NANO))
        node_configs.take_config(book, "wao.bitmedia.co.jp", node_config(index, origin))


def make_collector(book: PowerBook, fetcher: Fetcher, nodes: int) -> Collector:
    """Return what reads all of it."""
    api = PaperMetrics(nodes)
    return Collector(
        book,
        Asker(fetcher, api),
        api,
        may_collect=lambda: True,
        metrics=Metrics(),
        clock=time.monotonic,
        wall_clock=time.time,
    )


async def measure(nodes: int, seconds: float, origin: str) -> tuple[float, float, int]:
    """Return percent of a core, MiB, and how many nodes were told of."""
    gc.collect()
    before = resident_mib(os.getpid())
    dirty: set[str] = set()
    book = PowerBook(on_dirty=dirty.add)
    fill(book, nodes, origin)
    fetcher = Fetcher()
    task = asyncio.create_task(make_collector(book, fetcher, nodes).run())
    await asyncio.sleep(seconds / 4)
    started, cpu = time.monotonic(), _cpu_s()
    await asyncio.sleep(seconds)
    percent = 100 * (_cpu_s() - cpu) / (time.monotonic() - started)
    held = resident_mib(os.getpid()) - before
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await fetcher.close()
    return percent, held, len(dirty)


def _cpu_s() -> float:
    return Usage.of(os.getpid()).cpu_s


def main() -> None:
    """Print a row per number of nodes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[5000])
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=play, args=(there,))
    server.start()
    origin = f"http://127.0.0.1:{here.recv()}"
    rows = []
    for nodes in options.nodes:
        percent, held, _ = asyncio.run(measure(nodes, options.seconds, origin))
        rows.append((f"{nodes:,}", f"{percent:.1f} %", f"{held:.0f}"))
    server.terminate()
    figures.report("Reading power", figures.table(("nodes", "of one core", "MiB more"), rows))


if __name__ == "__main__":
    main()
