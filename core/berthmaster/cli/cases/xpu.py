"""Decision cases of XPU: nodes, NodeXPUs and ConfigMaps of a case to inventories, as the operator does it.

Beyond what all cases expect, these name the devices of each node that fits, in the order written, and the
annotations that the pod gets on the node that it goes to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from berthmaster.api.inventory import NodeInventory, NodeInventoryStatus
from berthmaster.api.names import UNHEALTHY_XPUS_NAMESPACE
from berthmaster.api.node_xpus import node_xpu_from_manifest
from berthmaster.api.objects import Pod, node_from_manifest
from berthmaster.api.policy import ConcernSettings
from berthmaster.api.settings.xpu import XPUSettings
from berthmaster.api.xpu_names import XPUNames
from berthmaster.cli.cases.worlds import Case, CaseWorld, as_read, check_keys, check_no_metrics
from berthmaster.concerns import xpu
from berthmaster.concerns.shape import Placed
from berthmaster.concerns.xpu.inventory import NodeDevices, build_xpus, read_unhealthy
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import PodRequest

_DEVICE_STRATEGIES = {
    "binpack": "Binpack",
    "spread": "Spread",
    "numa": "NUMANode",
    "board": "Board",
}
_NODE_STRATEGIES = {"binpack": "Binpack", "spread": "Spread", "leastFragment": "LeastFragment"}
_NAMES = {
    "resourceCountName": "cards",
    "resourceVCountName": "slices",
    "resourceVMemoryName": "sliceMemory",
    "resourceMemoryName": "shareMemory",
}
_CONFIG_KEYS = {"dialect", "policy", "nodePolicy", "topologyScore", "maxHandles", *_NAMES}


def load(case: Case) -> CaseWorld:
    """Return the world of a case."""
    check_no_metrics(case)
    check_keys(case["config"], _CONFIG_KEYS, "config")
    settings = _read_settings(case["config"])
    return CaseWorld(
        concern=xpu.CONCERN,
        settings=ConcernSettings(xpu=settings),
        inventories=_build_inventories(case["cluster"], settings.names_in_force),
        compare=_find_differences,
    )


def _read_settings(config: Mapping[str, Any]) -> XPUSettings:
    """Return a case's settings. Which pods are in flight is no matter of these cases."""
    names = {field: config[key] for key, field in _NAMES.items() if key in config}
    return XPUSettings.model_validate(
        {
            "deviceStrategy": _DEVICE_STRATEGIES[config.get("policy", "binpack")],
            "nodeStrategy": _NODE_STRATEGIES[config.get("nodePolicy", "leastFragment")],
            "topologyScore": config.get("topologyScore", "documented").capitalize(),
            "maxHandles": config.get("maxHandles", 0),
            "pluginsWithoutIdentity": (),
            "names": names or None,
        }
    )


def _build_inventories(cluster: Mapping[str, Any], names: XPUNames) -> dict[str, NodeInventory]:
    """Return an inventory per node."""
    node_xpus, unhealthy = {}, {}
    for resource in cluster["resources"]:
        kind, metadata = resource["kind"], resource["metadata"]
        if kind == "NodeXPU":
            node_xpus[metadata["name"]] = node_xpu_from_manifest(resource)
        elif kind == "ConfigMap":
            is_there = metadata.get("namespace") == UNHEALTHY_XPUS_NAMESPACE
            if is_there and metadata["name"].startswith(names.unhealthy_prefix):
                node = metadata["name"].removeprefix(names.unhealthy_prefix)
                text = (resource.get("data") or {}).get(names.unhealthy_key, "")
                unhealthy[node], _ = read_unhealthy(text)
        else:
            raise ValueError(f"cluster.resources: unknown kind {kind}")
    inventories = {}
    for manifest in cluster["nodes"]:
        node = node_from_manifest(manifest)
        name = node.metadata.name
        built = build_xpus(
            NodeDevices.of(node),
            node_xpus.get(name),
            names,
            unhealthy=unhealthy.get(name, ()),
        )
        status = NodeInventoryStatus(xpu=built.xpu, xpus=built.xpus)
        inventories[name] = as_read(name, status)
    return inventories


def _find_differences(
    expect: Mapping[str, Any],
    engine: Engine,
    request: PodRequest,
    pod: Pod,
    fitting: Mapping[str, float],
) -> Iterator[str]:
    """Yield what differs of devices and annotations; `fitting` are the scores of nodes that fit."""
    given = {node: engine.allocate_on(request, node).get(xpu.CONCERN.name) for node in fitting}
    for node, indices in expect.get("devices", {}).items():
        found = [it["i"] for it in (given.get(node) or {}).get("devices", ())]
        if found != indices:
            yield f"devices[{node}]: expected {indices}, actual {found}"
    wanted = expect.get("annotations", {})
    if not wanted:
        return
    best = max(fitting, key=lambda node: (fitting[node], node), default="")
    chosen = expect.get("best") or best
    allocated = given.get(chosen)
    annotations: Mapping[str, str] = {}
    if allocated:
        columns = engine.table.columns[xpu.CONCERN.name]
        placed = Placed(node=chosen, at_ns=0)
        annotations = xpu.CONCERN.annotations(columns, pod, allocated, placed)
    for key, value in wanted.items():
        if annotations.get(key) != value:
            yield f'annotations[{key}]: expected "{value}", actual "{annotations.get(key)}"'
