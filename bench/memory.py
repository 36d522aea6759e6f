"""What the webhook needs of a big cluster: resident memory, and the time from start to ready.

    python bench/memory.py                  5,000 nodes with inventories, 150,000 pods
    python bench/memory.py --nodes 500 --pods 15000

The real webhook process lists everything from an API server of paper (benching/fake_cluster.py) over
TLS, pages and all. Pods are 5 to 8 KB of JSON each, with managedFields; every ten have an owner, labels
and images of their own, and a quarter carry an allocation of ours. *Ready* is /readyz answering 200;
*settled* is the memory some seconds later (`--settle`). The API server here is cheaper
than a real one, which would take some seconds longer to encode the same lists.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import aiohttp

from benching import figures
from benching.readings import Usage, resident_mib
from benching.worlds import free_port, paper_world, stopped_at_end, wait_answer


async def measure(nodes: int, pods: int, settle_s: float) -> tuple[str, ...]:
    """Return one row of the table."""
    async with paper_world(nodes, pods) as world, aiohttp.ClientSession() as session:
        port, probe_port = free_port(), free_port()
        before = Usage.of(world.api.pid)
        began_s = time.monotonic()
        process = world.start_webhook(port, probe_port, free_port())
        async with stopped_at_end(process):
            url = f"http://127.0.0.1:{probe_port}/readyz"
            ready_s = await wait_answer(process, session, url, deadline_s=300) - began_s
            usage, api = Usage.of(process.pid), Usage.of(world.api.pid).since(before)
            at_ready = resident_mib(process.pid)
            await asyncio.sleep(settle_s)
            return (
                f"{nodes:,}",
                f"{pods:,}",
                f"{ready_s:.1f}",
                f"{usage.cpu_s:.1f}",
                f"{usage.waited_s:.1f}",
                f"{api.cpu_s:.1f}",
                f"{at_ready:.0f}",
                f"{resident_mib(process.pid):.0f}",
                f"{resident_mib(process.pid, peak=True):.0f}",
            )


def main() -> None:
    """Print a row per run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--settle", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    rows = [asyncio.run(measure(given.nodes, given.pods, given.settle)) for _ in range(given.runs)]
    header = (
        *("nodes", "pods", "ready after s", "CPU s", "waited for a core s", "API server CPU s"),
        *("MiB when ready", "MiB settled", "MiB at its peak"),
    )
    figures.report("Memory and cold start of the webhook", figures.table(header, rows))


if __name__ == "__main__":
    main()
