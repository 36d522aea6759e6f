"""What `kubectl berth observe-report` needs: memory of the whole, CPU of listing, and CPU per pod that is judged.

    python bench/observe_report.py                 5,000 nodes, 150,000 pods, of which 2,000 are judged
    python bench/observe_report.py --nodes 500 --pods 15000

In one process, without an API server: pods are made and read one by one, as pages bring them, once for the books
and once for the tally. All of them observe and are one node further than they were to be. What an API server
and the network add is left out. Times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator

from benching import figures, objects
from benching.readings import resident_mib
from berthmaster.api.inventory import inventory_from_manifest
from berthmaster.api.names import ALLOCATION, PLACEMENT
from berthmaster.api.objects import Pod, decode_pod, node_from_manifest
from berthmaster.api.policy import PolicySet
from berthmaster.cli.observe_report import build_report
from berthmaster.cli.observed import Tally
from berthmaster.cluster.snapshot import Snapshot, build_engine
from berthmaster.concerns import registry


def observing(pods: int, nodes: int) -> Iterator[Pod]:
    """Yield pods that observe and run on the node after the one that was chosen."""
    for index in range(pods):
        pod = decode_pod(objects.running_pod(index, nodes))
        chosen = {
            "v": 1,
            "id": f"{index:012x}",
            "node": objects.node_name((index + nodes - 1) % nodes),
            "mode": "observe",
            "scores": {"diskio": 100.0, "resources": 50.0},
        }
        pod.annotations.update({PLACEMENT: "observe", ALLOCATION: json.dumps(chosen)})
        yield pod


def measure(nodes: int, pods: int, judged: int) -> tuple[str, ...]:
    """Return one row of the table."""
    engine = build_engine(
        registry.load(),
        nodes=(node_from_manifest(objects.node(it)) for it in range(nodes)),
        inventories=(inventory_from_manifest(objects.inventory(it, [])) for it in range(nodes)),
        policies=PolicySet(),
    )
    began_s = time.process_time()
    for pod in observing(pods, nodes):
        engine.ledger.see(pod)
    read_s = time.process_time() - began_s
    counted = Tally(
        Snapshot(engine=engine, policies=PolicySet(), namespace_labels={}), most_judged=0
    )
    began_s = time.process_time()
    for pod in observing(pods, nodes):
        counted.take(pod)
    counted_s = time.process_time() - began_s
    tally = Tally(
        Snapshot(engine=engine, policies=PolicySet(), namespace_labels={}), most_judged=judged
    )
    began_s = time.process_time()
    for pod in observing(judged, nodes):
        tally.take(pod)
    build_report(tally)
    judged_s = time.process_time() - began_s
    return (
        f"{nodes:,}",
        f"{pods:,}",
        f"{read_s:.1f}",
        f"{counted_s:.1f}",
        f"{judged_s * 1000 / max(tally.judged, 1):.2f}",
        f"{resident_mib(os.getpid(), peak=True):.0f}",
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--judge", type=int, default=2000)
    given = parser.parse_args()
    header = (
        *("nodes", "pods", "CPU s to read all into the books", "CPU s to count all"),
        *("CPU ms per pod judged", "MiB at its peak"),
    )
    row = measure(given.nodes, given.pods, given.judge)
    figures.report("observe-report", figures.table(header, [row]))


if __name__ == "__main__":
    main()
