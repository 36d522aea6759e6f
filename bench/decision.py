"""How long a decision takes: a new request shape and a repeated one, by number of nodes.

    python bench/decision.py 500 5000 50000
    python bench/decision.py --zones 8 5000
    python bench/decision.py --power 5000
    python bench/decision.py --xpu xpushare 1000

Every node has a disk with a model and eight pods on it. With `--zones` every node has so many NUMA zones
as well, in all sorts of allocation, and the pods are Guaranteed, of two containers of which one asks a
device; each of the NUMA strategies is measured. With `--power` every node's power is known, by a curve of its own. With `--xpu` every
node has eight accelerators, and pods ask for some in that dialect; what is new of a shape is then how much memory they ask, or, where cards
are asked, which card they do not want. A repeated shape is a burst of equal pods, each charged before the next is decided;
a new shape is one that the engine has not seen, so that every row is computed. Times are CPU time of
this process, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from benching import figures
from benching.deciding import decide_and_charge
from berthmaster.api.inventory import (
    XPU,
    Bandwidth,
    Disk,
    DiskModel,
    NodeInventory,
    NodeInventoryStatus,
    Power,
    PowerCurve,
    Topology,
    XPUNode,
    Zone,
)
from berthmaster.api.names import (
    CARD_DIALECT,
    SHARE_DIALECT,
    SLICE_DIALECT,
    WHOLE_CARD_MIB,
    XPU_DIALECTS,
)
from berthmaster.api.objects import node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicySpec
from berthmaster.api.quantities import NANO
from berthmaster.api.settings.numa import NumaStrategy
from berthmaster.concerns import registry
from berthmaster.placement.engine import Engine

PODS_PER_NODE = 8
MIB = 2**20
GPU = "vendor.com/gpu"
DEVICES = 8
# Of a node's devices, the first ones have a pod at the start.
USED_DEVICES = 4
DEVICE_RESOURCES = (
    "baidu.com/xpu-mem",
    "kunlunxin.com/xpu",
    "kunlunxin.com/vxpu",
    "kunlunxin.com/vxpu-memory",
)
RATIOS = {"512": "15", "1k": "10", "4k": "6", "8k": "4", "16k": "2", "32k": "1"}


def build_engine(
    nodes: int, zones: int = 0, *, has_power: bool = False, has_xpus: bool = False
) -> Engine:
    """Return an engine with that many nodes, each with a disk, zones and `PODS_PER_NODE` pods."""
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
                "status": {
                    "capacity": {"cpu": str(max(64, 16 * zones))},
                    "allocatable": {
                        "cpu": str(max(64, 16 * zones)),
                        "memory": f"{max(256, 64 * zones)}Gi",
                        "pods": "1000",
                        GPU: str(2 * zones),
                        **dict.fromkeys(DEVICE_RESOURCES if has_xpus else (), "1000000"),
                    },
                },
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
        status = NodeInventoryStatus(
            disks=(disk,),
            power=_power(max(64, 16 * zones), random) if has_power else None,
            **_topology(index, zones, random),
            **(_xpus(name) if has_xpus else {}),
        )
        engine.ledger.write_node(node, NodeInventory(name=name, status=status))
        for number in range(PODS_PER_NODE):
            pod = _pod(f"{name}-{number}", 5, node=name)
            if has_xpus and number < USED_DEVICES:
                _asking(pod, SHARE_DIALECT, int(random.integers(1000, 90000)))
                pod["metadata"]["annotations"]["BAIDU_COM_XPU_MEM_IDX"] = str(number)
            engine.ledger.see(pod_from_manifest(pod))
    return engine


def _xpus(node: str) -> dict[str, Any]:
    """Return eight cards that are served whole, in slices and by memory."""
    return {
        "xpu": XPUNode(source="HAMiAnnotation", shared=True, cards=DEVICES, sliced=True),
        "xpus": tuple(
            XPU(
                index=it,
                id=f"{node}-{it}",
                registered_id=f"{node}-{it}",
                memory_mib=WHOLE_CARD_MIB,
                numa_node=it // 4,
            )
            for it in range(DEVICES)
        ),
    }


def _asking(pod: dict[str, Any], dialect: str, amount: int) -> dict[str, Any]:
    """Return the pod as one that asks for devices; `amount` is what makes one shape another."""
    limits = {
        SHARE_DIALECT: {"baidu.com/xpu-mem": str(amount)},
        CARD_DIALECT: {"kunlunxin.com/xpu": "1"},
        SLICE_DIALECT: {"kunlunxin.com/vxpu": "1", "kunlunxin.com/vxpu-memory": "24576"},
    }[dialect]
    container = pod["spec"]["containers"][0]
    own = {**container["resources"]["requests"], **limits}
    container["resources"] = {"requests": own, "limits": limits}
    if dialect != SHARE_DIALECT:
        pod["metadata"]["annotations"]["hami.io/no-use-xpu-uuid"] = f"node-{amount:05d}-7"
    return pod


def _power(cores: int, random: np.random.Generator) -> Power:
    grid = np.linspace(0, 1, 25)
    idle, rise, bend = random.uniform(50, 150), random.uniform(100, 400), random.uniform(0.6, 2)
    watts = idle + rise * grid**bend
    return Power(
        curve=PowerCurve(cores=tuple((grid * cores).tolist()), watts=tuple(watts.tolist())),
        usage=int(random.uniform(0, cores / 2) * NANO),
        usage_sampled_s=1.0,
    )


def _topology(index: int, zones: int, random: np.random.Generator) -> dict[str, Any]:
    if not zones:
        return {}
    scope: Literal["pod", "container"] = "pod" if index % 2 else "container"
    return {
        "topology": Topology(policy="single-numa-node", scope=scope),
        "zones": tuple(
            Zone(
                id=zone,
                capacity={"cpu": "16", "memory": "64Gi", GPU: "2"},
                allocatable={"cpu": "16", "memory": "64Gi", GPU: "2"},
                available={
                    "cpu": str(random.integers(4, 17)),
                    "memory": f"{random.integers(8, 65)}Gi",
                    GPU: str(random.integers(0, 3)),
                },
                costs={str(it): 10 if it == zone else 20 for it in range(zones)},
            )
            for zone in range(zones)
        ),
    }


def _aligned(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the pod as one that its kubelet aligns."""
    own = {"cpu": "1", "memory": "1Gi"}
    pod["spec"]["containers"] = [
        {"name": "main", "resources": {"requests": {**own, GPU: "1"}, "limits": {**own, GPU: "1"}}},
        {"name": "side", "resources": {"requests": own, "limits": own}},
    ]
    return pod


def _pod(name: str, rate_mib: int, *, node: str = "") -> dict[str, Any]:
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


def measure(
    engine: Engine,
    rounds: int,
    rate_of: Callable[[int], int],
    policy: PlacementPolicySpec,
    *,
    zones: int = 0,
    dialect: str = "",
) -> list[float]:
    """Return milliseconds of CPU per decision, reading the pod and charging the answer included."""
    spent = []
    for index in range(rounds):
        manifest = _pod(f"new-{len(engine.ledger)}", 3 if dialect else rate_of(index))
        if zones:
            manifest = _aligned(manifest)
        if dialect:
            manifest = _asking(manifest, dialect, rate_of(index))
        spent.append(decide_and_charge(engine, pod_from_manifest(manifest), policy))
    return spent


def main() -> None:
    """Print a row per number of nodes and kind of shape, with zones per strategy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[500, 5000], metavar="NODES")
    parser.add_argument("--zones", type=int, default=0, help="NUMA zones of each node")
    parser.add_argument("--power", action="store_true", help="give every node a power curve")
    parser.add_argument(
        "--xpu", choices=XPU_DIALECTS, default="", help="give every node eight accelerators"
    )
    options = parser.parse_args()
    strategies: Sequence[NumaStrategy] = tuple(NumaStrategy) if options.zones else ()
    rows = []
    for size in options.sizes:
        for strategy in strategies or (None,):
            engine = build_engine(
                size, options.zones, has_power=options.power, has_xpus=bool(options.xpu)
            )
            # As the webhook does when it has listed everything.
            gc.collect()
            gc.freeze()
            numa = {"scoringStrategy": {"type": strategy}} if strategy else {}
            # Nobody serves these pods, so that each goes where the one before went.
            xpu: dict[str, Any] = {"pluginsWithoutIdentity": []}
            policy = PlacementPolicySpec.model_validate({"concerns": {"numa": numa, "xpu": xpu}})
            how: dict[str, Any] = {"zones": options.zones, "dialect": options.xpu}
            measure(engine, 50, lambda _: 3, policy, **how)
            for shape, rounds, rate_of in (
                ("repeated", 2000, lambda _: 3),
                ("new", 300, lambda index: 4 + index),
            ):
                spent = measure(engine, rounds, rate_of, policy, **how)
                times = (*(figures.percentile(spent, it) for it in (50, 99)), max(spent))
                texts = tuple(f"{it:.2f}" for it in times)
                what = strategy or options.xpu or "-"
                rows.append((f"{size:,}", shape, *texts, f"{rounds:,}", what))
    header = ("nodes", "shape", "p50 ms", "p99 ms", "max ms", "decisions", "strategy or dialect")
    figures.report("Decisions", figures.table(header, rows))


if __name__ == "__main__":
    main()
