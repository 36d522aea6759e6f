"""The little that the operator keeps of the objects that its informers watch.

150,000 pods pass through here, so each becomes a few strings and numbers at once. A pod belongs to the
node that it is bound to, else to the one that our allocation sends it to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

import msgspec

from berthmaster.api import names
from berthmaster.api.allocation import Allocation, read_allocation
from berthmaster.api.objects import Condition, ConfigMap, Resources, Struct
from berthmaster.api.objects import decode_pod as decode_whole_pod
from berthmaster.api.policy import Mode
from berthmaster.api.power import PowerNode, read_nanocores
from berthmaster.api.xpu_names import DEFAULT_NAMES
from berthmaster.concerns import xpu
from berthmaster.concerns.numa.amounts import is_extended, read_request
from berthmaster.concerns.numa.inventory import HeldByContainer
from berthmaster.concerns.numa.request import GUARANTEED, exclusive
from berthmaster.concerns.power.request import assumed_of
from berthmaster.concerns.xpu.holdings import read_holding
from berthmaster_operator.xpus.planning import XPUPod

_LONGEST_LIST = 4096

OUR_CONDITIONS = (
    names.DISK_IO_READY_ON_NODE,
    names.TOPOLOGY_READY_ON_NODE,
    names.XPU_READY_ON_NODE,
    names.DATASET_READY_ON_NODE,
    names.POWER_READY_ON_NODE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """A pod; `node` is empty while nobody knows where it goes."""

    uid: str
    namespace: str
    node: str
    is_finished: bool
    name: str = ""
    # Seconds since the epoch by the API server's clock: when it was made, and when the API server
    # first showed that the kubelet had taken it.
    created_s: float | None = None
    started_s: float | None = None
    is_guaranteed: bool = False
    devices: tuple[str, ...] = ()
    # The containers that hold anything alone, and what; in the order in which the books have them.
    held: tuple[HeldByContainer, ...] = ()
    # What it says of accelerators, None for nothing.
    xpu: XPUPod | None = None
    # CPU that rule WAOv1 assumed for it, in billionths of a core.
    assumed: int = 0
    # Whether no other pod of its name was on the node lately; the fleet knows.
    is_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureSeen:
    """A pod that ended as Failed.

    `unaligned_s` is when the API server showed that its kubelet could not align it and turned it away, in
    seconds since the epoch by its clock; None where it failed of something else.
    """

    uid: str
    pod: str
    node: str
    unaligned_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A Node, its labels, our own conditions on it, by type, and what power reads of it."""

    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    # Devices in them, and annotations.
    capacity: Resources = field(default_factory=dict)
    allocatable: Resources = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    power: PowerNode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapSeen:
    """A small ConfigMap of kube-system, as those that list unhealthy devices."""

    name: str
    version: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InventorySeen:
    """A NodeInventory as stored; `status` is raw JSON, read only when it is needed."""

    name: str
    uid: str
    version: str
    owner_uid: str
    status: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsSeen:
    """The ConfigMap of disk models."""

    name: str
    namespace: str
    uid: str
    data: dict[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """A pod of the webhook, and the digest of the certificate that it serves, empty for none."""

    name: str
    serving: str


class _Owner(Struct, frozen=True):
    uid: str = ""


class _Meta(Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


class _Managed(Struct, frozen=True):
    subresource: str = ""
    time: str = ""


class _PodMeta(_Meta, frozen=True):
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    managed_fields: list[_Managed] | None = None


class _Resources(Struct, frozen=True):
    requests: dict[str, str | float] | None = None
    limits: dict[str, str | float] | None = None


class _Container(Struct, frozen=True):
    name: str = ""
    resources: _Resources = _Resources()
    restart_policy: str = ""


class _PodSpec(Struct, frozen=True):
    node_name: str = ""
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    resources: _Resources | None = None


class _PodStatus(Struct, frozen=True):
    phase: str = ""
    reason: str = ""
    qos_class: str = ""
    start_time: str | None = None


class _Pod(Struct, frozen=True):
    metadata: _PodMeta = _PodMeta()
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _Address(Struct, frozen=True):
    type: str = ""
    address: str = ""


class _NodeStatus(Struct, frozen=True):
    conditions: list[Condition] | None = None
    addresses: list[_Address] | None = None
    capacity: Resources | None = None
    allocatable: Resources | None = None


class _NodeMeta(_Meta, frozen=True):
    labels: dict[str, str] | None = None


class _Node(Struct, frozen=True):
    metadata: _NodeMeta = _NodeMeta()
    status: _NodeStatus = _NodeStatus()


class _Inventory(Struct, frozen=True):
    metadata: _Meta = _Meta()
    status: msgspec.Raw = msgspec.Raw(b"{}")


class _Stub(Struct, frozen=True):
    metadata: _Meta = _Meta()


_stub = msgspec.json.Decoder(_Stub).decode
_pod = msgspec.json.Decoder(_Pod).decode
_node = msgspec.json.Decoder(_Node).decode
_inventory = msgspec.json.Decoder(_Inventory).decode
_config_map = msgspec.json.Decoder(ConfigMap).decode


def decode_pod(raw: bytes) -> PodSeen:
    """Read a pod; raises `msgspec.ValidationError` on a field of the wrong type."""
    pod = _pod(raw)
    node = pod.spec.node_name
    text = (pod.metadata.annotations or {}).get(names.ALLOCATION)
    allocation = read_allocation(text) if text else None
    if not node and allocation is not None and allocation.mode != Mode.OBSERVE:
        node = allocation.node
    return PodSeen(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        node=node,
        is_finished=pod.status.phase in ("Succeeded", "Failed"),
        name=pod.metadata.name,
        created_s=_seconds(pod.metadata.creation_timestamp),
        started_s=_written_s(pod) if pod.spec.node_name and pod.status.start_time else None,
        is_guaranteed=pod.status.qos_class == GUARANTEED,
        devices=(devices := _devices(pod.spec)),
        held=_held(pod) if devices or pod.status.qos_class == GUARANTEED else (),
        assumed=assumed_of(allocation.allocated.get("power")) if allocation is not None else 0,
        xpu=_xpu(raw, pod, node, allocation) if devices or _has_xpus(pod) else None,
    )


def _has_xpus(pod: _Pod) -> bool:
    return not DEFAULT_NAMES.placed_keys.isdisjoint(pod.metadata.annotations or ())


def _xpu(raw: bytes, pod: _Pod, node: str, allocation: Allocation | None) -> XPUPod | None:
    is_ours = allocation is not None and allocation.node == node
    allocated = allocation.allocated.get(xpu.CONCERN.name) if allocation and is_ours else None
    whole = decode_whole_pod(raw)
    holding = read_holding(whole, allocated)
    if holding is None:
        return None
    return XPUPod(
        uid=pod.metadata.uid,
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        holding=holding,
        is_bound=bool(pod.spec.node_name),
        is_leaving=pod.metadata.deletion_timestamp is not None,
        created_s=_seconds(pod.metadata.creation_timestamp),
        bound_s=next(
            (
                _seconds(it.last_transition_time or "")
                for it in whole.status.conditions or ()
                if it.type == "PodScheduled" and it.status == "True"
            ),
            None,
        ),
    )


def decode_failure(raw: bytes) -> FailureSeen:
    """Read a pod that ended as Failed; raises as `decode_pod`."""
    pod = _pod(raw)
    is_unaligned = pod.status.reason == names.TOPOLOGY_AFFINITY_ERROR
    return FailureSeen(
        uid=pod.metadata.uid,
        pod=f"{pod.metadata.namespace}/{pod.metadata.name}",
        node=pod.spec.node_name,
        unaligned_s=_written_s(pod) if is_unaligned else None,
    )


def _written_s(pod: _Pod) -> float | None:
    """Return the last write to the status: the kubelet, which alone tells of starts, was no later."""
    written = (it.time for it in pod.metadata.managed_fields or () if it.subresource == "status")
    times = [at_s for it in written if (at_s := _seconds(it)) is not None]
    return max(times, default=None)


def _staying(spec: _PodSpec) -> Iterator[_Container]:
    """Yield the containers that last as long as the pod: sidecars, then the others."""
    yield from (it for it in spec.init_containers or () if it.restart_policy == "Always")
    yield from spec.containers or ()


def _devices(spec: _PodSpec) -> tuple[str, ...]:
    """Return the devices that containers which stay ask for."""
    found = {
        name
        for container in _staying(spec)
        for side in (container.resources.requests, container.resources.limits)
        for name in side or ()
        if is_extended(name)
    }
    return tuple(sorted(found)) if found else ()


def _held(pod: _Pod) -> tuple[HeldByContainer, ...]:
    is_guaranteed = pod.status.qos_class == GUARANTEED
    has_pod_resources = pod.spec.resources is not None
    found = []
    for it in _staying(pod.spec):
        asked = {**(it.resources.limits or {}), **(it.resources.requests or {})}
        amounts = tuple((name, read_request(name, text)) for name, text in sorted(asked.items()))
        held = exclusive(amounts, is_guaranteed, has_pod_resources)
        if held:
            found.append((it.name, tuple(name for name, _ in held)))
    return _intern(tuple(found))


@lru_cache(maxsize=4096)
def _intern(held: tuple[HeldByContainer, ...]) -> tuple[HeldByContainer, ...]:
    # The pods of a workload have the same.
    return held


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def decode_replica(raw: bytes) -> ReplicaSeen:
    """Read a pod of the webhook; raises as `decode_pod`."""
    metadata = _pod(raw).metadata
    return ReplicaSeen(
        name=metadata.name, serving=(metadata.annotations or {}).get(names.SERVING, "")
    )


def decode_node(raw: bytes) -> NodeSeen:
    """Read a Node; raises as `decode_pod`."""
    node = _node(raw)
    ours = {it.type: it for it in node.status.conditions or () if it.type in OUR_CONDITIONS}
    name, internal = node.metadata.name, "InternalIP"
    addresses = (it.address for it in node.status.addresses or () if it.type == internal)
    return NodeSeen(
        name=name,
        uid=node.metadata.uid,
        labels=node.metadata.labels or {},
        conditions=ours,
        capacity=_extended(node.status.capacity),
        allocatable=_extended(node.status.allocatable),
        annotations=node.metadata.annotations or {},
        power=PowerNode(
            name=name,
            labels=node.metadata.labels or {},
            address=next(addresses, ""),
            capacity_nanocores=read_nanocores(node.status.capacity),
        ),
    )


def decode_config_map(raw: bytes) -> ConfigMapSeen:
    """Read a ConfigMap; of its data only short texts are kept. Raises as `decode_pod`."""
    found = _config_map(raw)
    data = {key: it for key, it in (found.data or {}).items() if len(it) <= _LONGEST_LIST}
    return ConfigMapSeen(
        name=found.metadata.name, version=found.metadata.resource_version, data=data
    )


def _extended(resources: Resources | None) -> Resources:
    return {name: it for name, it in (resources or {}).items() if "/" in name}


def decode_inventory(raw: bytes) -> InventorySeen:
    """Read a NodeInventory; raises as `decode_pod`."""
    found = _inventory(raw)
    owners = found.metadata.owner_references or []
    return InventorySeen(
        name=found.metadata.name,
        uid=found.metadata.uid,
        version=found.metadata.resource_version,
        owner_uid=owners[0].uid if owners else "",
        status=bytes(found.status),
    )


def decode_models(raw: bytes) -> ModelsSeen:
    """Read the ConfigMap of disk models; raises as `decode_pod`."""
    found = _config_map(raw)
    return ModelsSeen(
        name=found.metadata.name,
        namespace=found.metadata.namespace,
        uid=found.metadata.uid,
        data=found.data,
    )


def decode_version(raw: bytes) -> str:
    """Read only the resourceVersion, of an object that must not be kept, such as a Secret."""
    return decode_identity(raw)[1]


def decode_identity(raw: bytes | msgspec.Raw) -> tuple[str, str]:
    """Read only the uid and the resourceVersion; raises `msgspec.DecodeError`."""
    metadata = _stub(raw).metadata
    return metadata.uid, metadata.resource_version


def is_older(version: str, than: str) -> bool:
    """Tell whether a resourceVersion is surely older; versions that are no numbers never are."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
