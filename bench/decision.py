"""How long a decision takes: a new request shape and a repeated one, by number of nodes.

    python bench/decision.py 500 5000 50000

Every node has a disk with a model and
eight pods on it. A repeated shape is a burst of equal pods, each charged before the next is decided;
a new shape is one that the engine has not seen, so that every row is computed. Times are CPU time of
this process, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import numpy as np

from benching import figures
from berthmaster.api.inventory import Bandwidth, Disk, DiskModel, NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import registry
from berthmaster.placement.engine import Engine

PODS_PER_NODE = 8
MIB = 2**20
RATIOS = {"512": "15", "1k": "10", "4k": "6", "8k": "4", "16k": "2", "32k": "1"}


def build_engine(nodes: int) -> Engine:
    """Return an engine with that many nodes, each with a disk and `PODS_PER_NODE` pods."""
    engine = Engine(registry.load())
    random = np.random.default_rng(1)
    for index in range(nodes):
        name = f"node-{index:05d}"
        node = node_from_manifest(
            {
                "metadata": {
                    "name": name,
                    "uid": name,
                    "labels": {
                        "kubernetes.io/hostname": name,
                        "topology.kubernetes.io/zone": f"zone-{index % 3}",
                    },
                },
                "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "110"}},
            }
        )
        speed = int(random.integers(2000, 8000)) * MIB
        disk = Disk(
            id="sda",
            type="emptyDir",
            vendor="Acme",
            model=f"X{index % 4}",
            capacity=Bandwidth(read=speed, write=speed, total=2 * speed),
            function=DiskModel(read_ratio=RATIOS, write_ratio=RATIOS),
        )
        engine.ledger.write_node(
            node, NodeInventory(name=name, status=NodeInventoryStatus(disks=(disk,)))
        )
        for number in range(PODS_PER_NODE):
            engine.ledger.see(pod_from_manifest(_pod(f"{name}-{number}", 5, node=name)))
    return engine


def _pod(name: str, rate_mib: int, *, node: str = "") -> dict[str, object]:
    return {
        "metadata": {
            "namespace": "default",
            "name": name,
            "uid": name,
            "annotations": {
                "blockio.kubernetes.io/resources": (
                    f'{{"rbps": "{rate_mib}Mi", "wbps": "{rate_mib}Mi", "blocksize": "32k"}}'
                )
            },
        },
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}
            ],
        },
    }


def measure(engine: Engine, rounds: int, rate_of: Callable[[int], int]) -> list[float]:
    """Return milliseconds of CPU per decision, reading the pod and charging the answer included."""
    spent = []
    for index in range(rounds):
        pod = pod_from_manifest(_pod(f"new-{len(engine.ledger)}", rate_of(index)))
        started = time.process_time_ns()
        request = engine.read_request(pod, PlacementPolicySpec())
        decision = engine.decide(request, pod.metadata.name)
        assert decision.node is not None
        engine.ledger.assume(
            decision.id,
            node=decision.node,
            usages=engine.ledger.usages_of(pod, decision.allocated),
            namespace="default",
            name=pod.metadata.name,
            owner=None,
            now_s=0.0,
        )
        spent.append((time.process_time_ns() - started) / 1e6)
    return spent


def main() -> None:
    """Print a row per number of nodes and kind of shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[500, 5000], metavar="NODES")
    rows = []
    for size in parser.parse_args().sizes:
        engine = build_engine(size)
        # As the webhook does when it has listed everything.
        gc.collect()
        gc.freeze()
        measure(engine, 50, lambda _: 3)
        for shape, rounds, rate_of in (
            ("repeated", 2000, lambda _: 3),
            ("new", 300, lambda index: 4 + index),
        ):
            spent = measure(engine, rounds, rate_of)
            p50, p99 = (figures.percentile(spent, it) for it in (50, 99))
            rows.append(
                (f"{size:,}", shape, f"{p50:.2f}", f"{p99:.2f}", f"{max(spent):.2f}", f"{rounds:,}")
            )
    header = ("nodes", "shape", "p50 ms", "p99 ms", "max ms", "decisions")
    figures.report("Decisions", figures.table(header, rows))


if __name__ == "__main__":
    main()
