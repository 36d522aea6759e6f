"""What is known of accelerators and of who has them, as commands show it.

The devices are those of the NodeInventory; where there is none, of the Node itself, so that clusters
are seen in which our programs do not run. What pods have is read as the ledger reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from berthmaster.api import names as keys
from berthmaster.api.allocation import read_allocation
from berthmaster.api.inventory import XPU, XPUNode, inventory_from_manifest
from berthmaster.api.node_xpus import node_xpu_from_manifest
from berthmaster.api.objects import Pod, decode_pod, node_from_manifest
from berthmaster.api.policy import Mode, PolicySet, policy_from_manifest
from berthmaster.api.quantities import QuantityError, parse_size
from berthmaster.api.xpu_names import XPUNames
from berthmaster.cluster.client import Client, read_items
from berthmaster.cluster.errors import ApiError
from berthmaster.concerns.xpu.holdings import Held, list_devices, read_holding, resolve
from berthmaster.concerns.xpu.inventory import NodeDevices, build_xpus

Manifest = Mapping[str, Any]
_OURS = f"/apis/{keys.API_VERSION}"
_decode_page = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class XPUPodFacts:
    """A pod and its devices; `pending_mib` is what it asks of no device that anybody knows."""

    namespace: str
    name: str
    held: Held
    is_bound: bool

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def mib(self) -> Mapping[int, int]:
        """Return MiB by device index."""
        return dict(self.held.mib)

    @property
    def pending_mib(self) -> int:
        """Return MiB of no known device."""
        return self.held.pending_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class XPUNodeFacts:
    """A node with devices, and the pods that have them; pods by device, namespace and name."""

    name: str
    address: str
    node: XPUNode
    xpus: tuple[XPU, ...]
    pods: tuple[XPUPodFacts, ...]
    # By the kubelet: memory to share, and devices.
    allocatable_mib: int
    count: int

    def used_mib(self, index: int) -> int:
        """Return what pods have of a device."""
        return sum(it.mib.get(index, 0) for it in self.pods)


async def gather(client: Client, node: str = "") -> tuple[list[XPUNodeFacts], XPUNames]:
    """Return the nodes with devices, by name, and what the cluster calls things.

    Raises ClusterError: no answer, or no right to list nodes and pods.
    """
    policies = await _list(client, f"{_OURS}/placementpolicies", is_optional=True)
    found = PolicySet(it for it in map(_policy, policies) if it is not None)
    nodes = await _list(client, "/api/v1/nodes")
    inventories = await _list(client, f"{_OURS}/nodeinventories", is_optional=True)
    node_xpus = await _list(client, f"{_OURS}/nodexpus", is_optional=True)
    pods = []
    async for page in client.list_pages("/api/v1/pods"):
        for item in read_items(page):
            try:
                pods.append(decode_pod(bytes(item)))
            except msgspec.ValidationError:
                continue
    facts = build_facts(nodes, pods, inventories, node_xpus, found.xpu_names)
    return [it for it in facts if node in ("", it.name)], found.xpu_names


def build_facts(
    nodes: Iterable[Manifest],
    pods: Iterable[Pod],
    inventories: Iterable[Manifest],
    node_xpus: Iterable[Manifest],
    names: XPUNames,
) -> list[XPUNodeFacts]:
    """Return the nodes with devices, by name; pure."""
    published = {it["metadata"]["name"]: it for it in inventories}
    told = {it["metadata"]["name"]: it for it in node_xpus}
    by_node: dict[str, list[Pod]] = {}
    for pod in pods:
        place = _place_of(pod)
        if place and not pod.is_finished:
            by_node.setdefault(place, []).append(pod)
    facts = []
    for manifest in sorted(nodes, key=lambda it: str(it["metadata"]["name"])):
        name = manifest["metadata"]["name"]
        node, xpus = _devices(manifest, published.get(name), told.get(name), names)
        if node is not None:
            facts.append(_facts(manifest, node, xpus, by_node.get(name, ()), names))
    return facts


def _facts(
    manifest: Manifest,
    node: XPUNode,
    xpus: tuple[XPU, ...],
    pods: Sequence[Pod],
    names: XPUNames,
) -> XPUNodeFacts:
    name = manifest["metadata"]["name"]
    devices = list_devices(name, xpus)
    found = []
    for pod in pods:
        allocation = read_allocation(pod.annotations.get(keys.ALLOCATION))
        ours = allocation.allocated.get("xpu") if allocation and allocation.node == name else None
        holding = read_holding(pod, ours)
        held = resolve(holding, names, devices) if holding is not None else None
        if held is None or not (held.mib or held.pending_mib):
            continue
        metadata = pod.metadata
        found.append(
            XPUPodFacts(
                namespace=metadata.namespace,
                name=metadata.name,
                held=held,
                is_bound=bool(pod.spec.node_name),
            )
        )
    status = manifest.get("status") or {}
    allocatable = status.get("allocatable") or {}
    return XPUNodeFacts(
        name=name,
        address=_address(status),
        node=node,
        xpus=xpus,
        pods=tuple(sorted(found, key=_order)),
        allocatable_mib=_amount(allocatable, names.share_memory),
        count=_amount(status.get("capacity") or {}, names.share_count),
    )


def _devices(
    manifest: Manifest, inventory: Manifest | None, node_xpu: Manifest | None, names: XPUNames
) -> tuple[XPUNode | None, tuple[XPU, ...]]:
    if inventory is not None:
        try:
            status = inventory_from_manifest(inventory).status
        except ValidationError:
            status = None
        if status is not None and status.xpu is not None:
            return status.xpu, status.xpus or ()
    node = node_from_manifest(manifest)
    built = build_xpus(
        NodeDevices.of(node),
        None if node_xpu is None else node_xpu_from_manifest(node_xpu),
        names,
    )
    return built.xpu, built.xpus or ()


def _order(pod: XPUPodFacts) -> tuple[bool, int, str, str]:
    return (not pod.held.mib, min(pod.mib, default=0), pod.namespace, pod.name)


def _place_of(pod: Pod) -> str:
    if pod.spec.node_name:
        return pod.spec.node_name
    allocation = read_allocation(pod.annotations.get(keys.ALLOCATION))
    return "" if allocation is None or allocation.mode == Mode.OBSERVE else allocation.node


def _address(status: Manifest) -> str:
    addresses = status.get("addresses") or ()
    found = (it.get("address", "") for it in addresses if it.get("type") == "InternalIP")
    return next(found, "") or "unknown"


def _amount(resources: Manifest, name: str) -> int:
    try:
        return parse_size(resources.get(name, 0))
    except QuantityError:
        return 0


def _policy(manifest: Manifest) -> Any:
    try:
        return policy_from_manifest(manifest)
    except ValidationError:
        return None


async def _list(client: Client, path: str, *, is_optional: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        async for page in client.list_pages(path):
            found += _decode_page(page).get("items") or ()
    except ApiError as error:
        if not (is_optional and error.status in (403, 404)):
            raise
    return found
