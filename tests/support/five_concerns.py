"""A cluster in which all five concerns know every node, and a pod that asks something of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from berthmaster.api import names
from berthmaster.api.inventory import NodeInventory, inventory_from_manifest
from berthmaster.api.objects import Node, Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicy, PlacementPolicySpec, PolicySet
from berthmaster.cluster.snapshot import Snapshot, build_engine
from berthmaster.concerns import registry
from support.builders import make_container, make_node_manifest, make_pod_manifest

Manifest = dict[str, Any]
XPU_MEMORY = "baidu.com/xpu-mem"
SHARE_MIB, CARD_MIB = 2000, 8000


def make_node_of_five(
    name: str,
    *,
    zone: str = "a",
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
    cpu: str = "32",
    **inventory: Any,
) -> tuple[Node, NodeInventory]:
    """Return a node with its inventory; the fields are those of `make_inventory`."""
    placed = {names.HOSTNAME_LABEL: name, names.ZONE: zone, names.REGION: "eu"}
    mib = inventory.get("card_mib", CARD_MIB)
    node = make_node_manifest(
        name,
        cpu=cpu,
        memory="128Gi",
        labels={**placed, **(labels or {})},
        taints=taints,
        others={XPU_MEMORY: str(mib), "baidu.com/xpu-count": "1"},
    )
    return node_from_manifest(node), inventory_from_manifest(make_inventory(name, **inventory))


def make_inventory(
    name: str,
    *,
    disk: str = "1000Mi",
    free_cpus: Sequence[int] = (16, 16),
    card_mib: int = CARD_MIB,
    watts_per_core: float | None = 5.0,
    **datasets: str,
) -> Manifest:
    """Return the inventory of a node with a disk, two NUMA zones, an accelerator and a power curve.

    `datasets` are the node's roles by dataset of the namespace `default`.
    """
    capacity = {"read": disk, "write": disk, "total": "1Ti"}
    status: Manifest = {
        "disks": [{"id": "d", "type": "emptyDir", "capacity": capacity, "function": {}}],
        "topology": {"policy": "single-numa-node"},
        "zones": [
            {
                "id": id_,
                "capacity": {"cpu": str(max(16, cpus))},
                "allocatable": {"cpu": str(max(16, cpus))},
                "available": {"cpu": str(cpus)},
            }
            for id_, cpus in enumerate(free_cpus)
        ],
        "xpu": {"shared": True},
        "xpus": [{"index": 0, "id": f"{name}-0", "memoryMiB": card_mib, "numaNode": 0}],
        "datasets": [
            {"namespace": "default", "name": it, "role": role} for it, role in datasets.items()
        ],
    }
    if watts_per_core is not None:
        watts = [100.0, 100.0 + 32 * watts_per_core]
        status["power"] = {
            "link": "Model",
            "curve": {"cores": [0.0, 32.0], "watts": watts},
            "usage": "0",
        }
    return {"metadata": {"name": name}, "status": status}


def make_pod_of_five(
    name: str = "train",
    *,
    rate: str = "100Mi",
    cpu: str = "4",
    share_mib: int = SHARE_MIB,
    dataset: str = "corpus",
    mode: str = "required",
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Manifest:
    """Return a Guaranteed pod that asks for bandwidth, whole CPUs, a share of an accelerator and a dataset."""
    limits = {"cpu": cpu, "memory": "1Gi"}
    if share_mib:
        limits[XPU_MEMORY] = str(share_mib)
    request = {"rbps": rate, "wbps": rate, "blocksize": "4k"}
    pod = make_pod_manifest(
        name,
        annotations={
            names.PLACEMENT: mode,
            names.DISKIO_REQUEST: json.dumps(request),
            **(annotations or {}),
        },
        **{"containers": [make_container(requests=limits, limits=limits)], **spec},
    )
    if dataset:
        pod["metadata"]["labels"] = {"dataset.0.id": dataset}
    return pod


def read_pod_of_five(**fields: Any) -> Pod:
    """Return the same as an object; the fields are those of `make_pod_of_five`."""
    return pod_from_manifest(make_pod_of_five(**fields))


def make_snapshot(
    nodes: Mapping[str, Mapping[str, Any]], *pods: Pod, concerns: Mapping[str, Any] | None = None
) -> Snapshot:
    """Return a cluster of such nodes, by name with the fields of `make_node_of_five`, and pods there.

    `concerns` are the settings of a policy for every pod.
    """
    built = [make_node_of_five(name, **fields) for name, fields in nodes.items()]
    spec = PlacementPolicySpec.model_validate({"concerns": concerns or {}})
    policies = PolicySet([PlacementPolicy(name="all", spec=spec)])
    engine = build_engine(
        registry.load(),
        nodes=[node for node, _ in built],
        inventories=[inventory for _, inventory in built],
        policies=policies,
        pods=pods,
    )
    return Snapshot(engine=engine, policies=policies, namespace_labels={"default": {}})
