"""Nodes with accelerators and pods that ask for them, as their device plugins and users write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from berthmaster.api.inventory import NodeInventoryStatus
from berthmaster.api.node_xpus import node_xpu_from_manifest
from berthmaster.api.objects import Node, Pod, node_from_manifest, pod_from_manifest
from berthmaster.api.policy import PlacementPolicy, PlacementPolicySpec, PolicySet
from berthmaster.cli.cases.worlds import as_read
from berthmaster.concerns.shape import AnyConcern, Placed
from berthmaster.concerns.xpu import CONCERN
from berthmaster.concerns.xpu.inventory import NodeDevices, XPUInventory, build_xpus
from berthmaster.placement.engine import Engine
from berthmaster.placement.shapes import PodRequest

Manifest = dict[str, Any]

MEM, COUNT, CARDS = "baidu.com/xpu-mem", "baidu.com/xpu-count", "kunlunxin.com/xpu"
SLICES, SLICE_MEM = "kunlunxin.com/vxpu", "kunlunxin.com/vxpu-memory"
REGISTER = "hami.io/node-register-xpu"
PREFIX = "BAIDU_COM_XPU_MEM"


def make_xpu_node(
    name: str = "n1",
    *,
    mem: int | str | None = None,
    count: int | str | None = None,
    cards: int | None = None,
    registered: Iterable[Mapping[str, Any]] | str | None = None,
    annotations: Mapping[str, str] | None = None,
    others: Mapping[str, str] | None = None,
) -> Manifest:
    """Return a Node; what is None is not on it."""
    amounts = {MEM: mem, COUNT: count, CARDS: cards}
    capacity = {key: str(it) for key, it in amounts.items() if it is not None}
    marks = dict(annotations or {})
    if registered is not None:
        text = registered if isinstance(registered, str) else json.dumps(list(registered))
        marks[REGISTER] = text
        capacity[SLICES] = "32"
    capacity.update({"cpu": "64", "memory": "256Gi", "pods": "110", **(others or {})})
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "annotations": marks},
        "status": {"capacity": capacity, "allocatable": dict(capacity)},
    }


def registered_cards(count: int, mib: int = 98304, **fields: Any) -> list[Manifest]:
    """Return cards as a plugin registers them."""
    return [
        {"id": f"xpu-{it}", "index": it, "devmem": mib, "type": "XPU", "health": True, **fields}
        for it in range(count)
    ]


def make_xpu_pod(
    name: str = "pod",
    *containers: Mapping[str, int | str],
    inits: Iterable[Mapping[str, int | str]] = (),
    label: str | None = None,
    annotations: Mapping[str, str] | None = None,
    node: str = "",
    phase: str = "",
) -> Manifest:
    """Return a pod with a container per mapping of limits."""
    metadata: Manifest = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    if label is not None:
        metadata["labels"] = {COUNT: label}
    if annotations:
        metadata["annotations"] = dict(annotations)
    spec: Manifest = {
        "initContainers": [_container(f"i{at}", it) for at, it in enumerate(inits)],
        "containers": [_container(f"c{at}", it) for at, it in enumerate(containers)],
    }
    if node:
        spec["nodeName"] = node
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


def _container(name: str, limits: Mapping[str, int | str]) -> Manifest:
    amounts = {key: str(it) for key, it in limits.items() if key != "restartPolicy"}
    found: Manifest = {"name": name, "resources": {"limits": amounts, "requests": amounts}}
    if "restartPolicy" in limits:
        found["restartPolicy"] = limits["restartPolicy"]
    return found


def share_marks(
    idx: str, total: int, *, assigned: str = "true", of: int = 8064, time: str = "1"
) -> dict[str, str]:
    """Return the annotations of a share."""
    return {
        f"{PREFIX}_IDX": idx,
        f"{PREFIX}_POD": str(total),
        f"{PREFIX}_DEV": str(of),
        f"{PREFIX}_ASSIGNED": assigned,
        f"{PREFIX}_ASSUME_TIME": time,
    }


def inventory_of(
    node: Node,
    *,
    node_xpu: Manifest | None = None,
    unhealthy: Iterable[int] = (),
    is_stale: bool = False,
) -> XPUInventory:
    """Return the XPU part of a node's inventory, by the default names."""
    return build_xpus(
        NodeDevices.of(node),
        None if node_xpu is None else node_xpu_from_manifest(node_xpu),
        PolicySet().xpu_names,
        unhealthy=unhealthy,
        is_stale=is_stale,
    )


class XPUWorld:
    """An engine with the XPU concern, asked in one line."""

    def __init__(self, *concerns: AnyConcern, **settings: Any) -> None:
        self.engine = Engine([*concerns, CONCERN])
        self.take_settings(**settings)

    def take_settings(self, **settings: Any) -> None:
        """Let this be the settings of the only policy."""
        settings.setdefault("pluginsWithoutIdentity", [])
        spec = PlacementPolicySpec.model_validate({"concerns": {"xpu": settings}})
        self.policies = PolicySet([PlacementPolicy(name="only", spec=spec)])
        self.engine.configure(self.policies.specs)

    def put_node(
        self,
        manifest: Manifest,
        *,
        node_xpu: Manifest | None = None,
        unhealthy: Iterable[int] = (),
        **parts: Any,
    ) -> None:
        """Let a node be there, with its devices by way of the inventory's wire form."""
        node = node_from_manifest(manifest)
        built = inventory_of(node, node_xpu=node_xpu, unhealthy=unhealthy)
        status = NodeInventoryStatus(xpu=built.xpu, xpus=built.xpus, **parts)
        self.engine.ledger.write_node(node, as_read(node.metadata.name, status))

    def see(self, manifest: Manifest) -> Pod:
        """Let a pod be seen."""
        pod = pod_from_manifest(manifest)
        self.engine.ledger.see(pod)
        return pod

    def request(self, pod: Manifest, *, is_strict: bool = False) -> PodRequest:
        """Return what a pod asks."""
        policy = self.policies.choose({}, {}).spec
        return self.engine.read_request(pod_from_manifest(pod), policy, is_strict=is_strict)

    def why(self, pod: Manifest) -> dict[str, str]:
        """Return why a pod does not fit each node, empty where it does."""
        verdicts = self.engine.verdicts(self.request(pod))
        return {it.node: it.reason.text if it.reason else "" for it in verdicts}

    def scores(self, pod: Manifest) -> dict[str, float]:
        """Return the scores of the nodes that fit."""
        verdicts = self.engine.verdicts(self.request(pod))
        return {it.node: it.scores["xpu"] for it in verdicts if it.reason is None}

    def given(self, pod: Manifest, node: str = "n1") -> list[tuple[int, int]]:
        """Return (index, MiB) of what a node would give, in the order written."""
        given = self.engine.allocate_on(self.request(pod), node).get("xpu", {})
        return [(it["i"], it["mem"]) for it in given.get("devices", ())]

    def marks(self, pod: Manifest, node: str = "n1", at_ns: int = 0) -> Mapping[str, str]:
        """Return what would be written on a pod that goes to a node."""
        given = self.engine.allocate_on(self.request(pod), node)["xpu"]
        columns = self.engine.table.columns["xpu"]
        placed = Placed(node=node, at_ns=at_ns)
        return CONCERN.annotations(columns, pod_from_manifest(pod), given, placed)
