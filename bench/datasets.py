"""What decisions by datasets cost: of a shape that is known, and where a gateway moves before each.

    python bench/datasets.py 5000

Nodes lie in three regions of three zones. Each dataset has one gateway; a pod names some of them, up to the most
that count. Only this concern and resources are asked. Times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import gc

from benching import figures
from benching.deciding import decide_and_charge
from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.objects import Node, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.concerns import dataset, resources
from berthmaster.concerns.dataset.request import MOST_DATASETS
from berthmaster.placement.engine import Engine

POLICY = PlacementPolicySpec()


def make_node(index: int) -> Node:
    """Return a node in one of nine zones."""
    name = f"node-{index:05d}"
    labels = {
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": f"zone-{index % 9}",
        "topology.kubernetes.io/region": f"region-{index % 3}",
    }
    allocatable = {"cpu": "64", "memory": "256Gi", "pods": "1000"}
    return node_from_manifest(
        {
            "metadata": {"name": name, "uid": name, "labels": labels},
            "status": {"allocatable": allocatable},
        }
    )


def put_gateway(engine: Engine, node: Node, *datasets: int) -> None:
    """Let a node be the gateway of these datasets and of no others."""
    entries = [{"namespace": "ml", "name": f"d{it}", "role": "gateway"} for it in datasets]
    status = NodeInventoryStatus.model_validate({"datasets": entries})
    engine.ledger.write_node(node, NodeInventory(name=node.metadata.name, status=status))


def measure(size: int, named: int, rounds: int, *, moves: bool) -> list[float]:
    """Return milliseconds of CPU per decision for a pod that names so many datasets."""
    engine = Engine([resources.CONCERN, dataset.CONCERN])
    nodes = [make_node(index) for index in range(size)]
    for index, node in enumerate(nodes):
        put_gateway(engine, node, *([index] if index < named else []))
    gc.collect()
    gc.freeze()
    spent = []
    for number in range(rounds):
        if moves:
            put_gateway(engine, nodes[named + (number + 1) % 2])
            put_gateway(engine, nodes[named + number % 2], 0)
        labels = {f"dataset.{it}.id": f"d{it}" for it in range(named)}
        metadata = {"namespace": "ml", "name": f"p{number}", "uid": str(number), "labels": labels}
        requests = {"requests": {"cpu": "10m", "memory": "16Mi"}}
        spec = {"containers": [{"name": "c", "resources": requests}]}
        pod = pod_from_manifest({"metadata": metadata, "spec": spec})
        spent.append(decide_and_charge(engine, pod, POLICY))
    return spent[1:]


def main() -> None:
    """Print a row per number of nodes, of datasets, and kind of change."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[500, 5000], metavar="NODES")
    rows = []
    for size in parser.parse_args().sizes:
        for named in (1, 8, MOST_DATASETS):
            for what, moves in (("none", False), ("a gateway moves", True)):
                spent = measure(size, named, 300, moves=moves)
                times = (*(figures.percentile(spent, it) for it in (50, 99)), max(spent))
                texts = tuple(f"{it:.2f}" for it in times)
                rows.append((f"{size:,}", str(named), what, *texts, f"{len(spent):,}"))
    header = ("nodes", "datasets", "change", "p50 ms", "p99 ms", "max ms", "decisions")
    figures.report("Decisions by datasets", figures.table(header, rows))


if __name__ == "__main__":
    main()
