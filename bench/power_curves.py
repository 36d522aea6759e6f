"""What one curve of a model server costs the operator, by KServe V2, TensorFlow Serving's REST and its gRPC, in turns.

    python bench/power_curves.py --curves 500 --turns 5

Another process plays the three servers. CPU is that of this process alone, all its threads counted, for a question of
26 points and its answer as a curve; one after the other, over connections that stay. A turn asks so many curves of
each. *MiB* is what the process holds more once the first curve is in.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from aiohttp import web

from benching import figures
from benching.readings import Usage, resident_mib
from berthmaster.api.inventory import Reading
from berthmaster.api.power import EndpointTerm
from berthmaster.api.quantities import NANO
from berthmaster.concerns.power.questions import ask_by_term
from berthmaster_operator.power.asking import Asker
from berthmaster_operator.power.fetching import Fetcher
from berthmaster_sandbox.world.tf_serving import serve_tf

READINGS = {key: Reading(value=it, sampled_s=0.0) for key, it in (("inlet", 22.0), ("deltaP", 1.0))}
CAPACITY = 32 * NANO


async def _serve(pipe: Connection) -> None:
    async def infer(request: web.Request) -> web.Response:
        rows = (await request.json())["inputs"][0]["data"]
        return web.json_response({"outputs": [{"data": [100 + 10 * row[0] for row in rows]}]})

    async def predict(request: web.Request) -> web.Response:
        rows = (await request.json())["inputs"]
        return web.json_response({"outputs": [[100 + 10 * row[0]] for row in rows]})

    app = web.Application()
    app.router.add_post("/v2/models/konohana/infer", infer)
    app.router.add_post("/v1/models/konohana:predict", predict)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with serve_tf() as server:
        server.watts = lambda row: 100 + 10 * row[0]
        pipe.send((f"127.0.0.1:{runner.addresses[0][1]}", server.origin))
        while True:
            await asyncio.sleep(1)
            server.asked.clear()


def play(pipe: Connection) -> None:
    """Be the servers; send where, then serve until ended."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(pipe))


class NoSecrets:
    """No endpoint here names a Secret."""

    async def get(self, path: str, query: object = None, *, timeout_s: float) -> dict[str, Any]:
        raise AssertionError(path)


async def measure(
    terms: dict[str, EndpointTerm], curves: int, turns: int
) -> dict[str, tuple[list[float], float]]:
    """Return by name the CPU milliseconds of a curve in each turn, and the MiB of the first."""
    fetcher = Fetcher()
    asker = Asker(fetcher, NoSecrets())
    costs: dict[str, list[float]] = {name: [] for name in terms}
    held: dict[str, float] = {}
    for turn in range(turns + 1):
        for name, term in terms.items():
            before, memory = Usage.of(os.getpid()), resident_mib(os.getpid())
            # The first turn only connects.
            for _ in range(curves if turn else 1):
                curve = await asker.curve(ask_by_term(term, READINGS, CAPACITY), term, "")
                assert curve is not None
                assert curve.watts[-1] == 420
            if turn:
                costs[name].append(Usage.of(os.getpid()).since(before).cpu_s * 1000 / curves)
            else:
                held[name] = resident_mib(os.getpid()) - memory
    await fetcher.close()
    return {name: (costs[name], held[name]) for name in terms}


def main() -> None:
    """Print a row per protocol."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--curves", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=play, args=(there,), daemon=True)
    server.start()
    web_origin, grpc_origin = here.recv()
    kinds = {
        "KServe V2": ("V2InferenceProtocol", f"http://{web_origin}/v2/models/konohana/infer"),
        "TF Serving, REST": ("TensorFlowServing", f"http://{web_origin}/v1/models/konohana"),
        "TF Serving, gRPC": ("TensorFlowServing", f"grpc://{grpc_origin}/models/konohana"),
    }
    terms = {name: EndpointTerm(type=kind, endpoint=url) for name, (kind, url) in kinds.items()}
    found = asyncio.run(measure(terms, options.curves, options.turns))
    server.kill()
    server.join()
    rows = [
        (name, figures.spread(costs, digits=2), f"{held:.1f}")
        for name, (costs, held) in found.items()
    ]
    header = ("server", "CPU ms a curve", "MiB")
    figures.report("A curve of a model server", figures.table(header, rows))


if __name__ == "__main__":
    main()
